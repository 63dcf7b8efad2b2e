"""Labels: what a cohort says of its subjects in CSV and TSV files: diagnosis, age, site, …

Values are carried as the text that stands in the file. What is empty, or `n/a` (BIDS), `NA`, `NaN`, `null` or `.`, in
capitals or not, is absent; `none` is a value, as in "tumour: none". Rows are found by the columns `subject` or
`participant_id` and, if any, `session` or `session_id`, with or without the prefixes `sub-` and `ses-`. In a table that
speaks of several cohorts the column `cohort` says of which a row does.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from bfp.cohorts.sessions import Key
from bfp.errors import InputError
from bfp.storage import Place
from bfp.words import some_of

READS_AT_ONCE = 32  # of small files, each one request on object storage
COHORT_COLUMN = "cohort"
SUBJECT_COLUMNS = ("subject", "participant_id")
SESSION_COLUMNS = ("session", "session_id")
_ABSENT = frozenset({"", "n/a", "na", "nan", "null", "."})  # in lower case


class Row(NamedTuple):
    """A row of a table: its cells, stripped, by column, and the line of the file on which it ends."""

    line: int
    cells: dict[str, str]


@dataclass(frozen=True)  # without slots, for what is computed once
class Labels:
    """Labels by who they speak of; those of a row without a session hold for every session of the subject.

    In a table without a column of cohorts, the cohort of every row is "". source: the file, for messages.
    """

    rows: Mapping[Key, Mapping[str, str]] = field(default_factory=dict)
    source: str = ""

    @cached_property
    def cohorts(self) -> frozenset[str]:
        """The cohorts that the table names; none where it has no such column."""
        return frozenset(row.cohort for row in self.rows if row.cohort)

    def of(self, key: Key) -> dict[str, str]:
        """What is known of a session; what is said of it itself goes before what is said of its subject."""
        return {name: value for row in self.rows_of(key) for name, value in self.rows[row].items()}

    def rows_of(self, key: Key) -> list[Key]:
        """The rows that speak of a session: that of its subject, then its own."""
        cohort = key.cohort if self.cohorts else ""
        asked = (Key(cohort, key.subject, ""), Key(cohort, key.subject, key.session))
        return [row for row in dict.fromkeys(asked) if row in self.rows]

    def joined(self, other: Labels) -> Labels:
        """Both; where both say something of the same row, `other` goes before."""
        keys = {**self.rows, **other.rows}
        return Labels({key: {**self.rows.get(key, {}), **other.rows.get(key, {})} for key in keys}, self.source)

    def check_speaks_of(self, cohorts: Collection[str]) -> None:
        """Raise InputError where the table names cohorts, and none of these."""
        if self.cohorts and not self.cohorts & set(cohorts):
            ours, theirs = some_of(sorted(self.cohorts)), some_of(sorted(cohorts))
            raise InputError(
                f"{self.source}: its column cohort says {ours}, and not {theirs}; give the column another name if it "
                "means something else"
            )


def read_labels(file: Place, *, subject: str | None = None, cohort_column: str | None = COHORT_COLUMN) -> Labels:
    """The labels of a CSV or TSV file. `subject` stands for a column that the file lacks (BIDS `sessions.tsv`).

    cohort_column: None for the file of one cohort, where a column `cohort` is a label like any other.
    Raises InputError where there is no column of subjects, two rows speak of the same session, or a row lacks its
    cohort.
    """
    rows: dict[Key, Mapping[str, str]] = {}
    for line, row in read_table(file):
        subject_column = next((column for column in SUBJECT_COLUMNS if column in row), None)
        if subject_column is None and subject is None:
            raise InputError(
                f"{file}: has no column subject (or participant_id); found {', '.join(row) or 'no columns'}"
            )
        session_column = next((column for column in SESSION_COLUMNS if column in row), None)
        names_cohort = cohort_column in row
        key = Key(
            present(row[cohort_column]) if cohort_column and names_cohort else "",
            (row[subject_column] if subject_column else subject or "").removeprefix("sub-"),
            present(row[session_column] if session_column else "").removeprefix("ses-"),
        )
        if names_cohort and not key.cohort:
            raise InputError(f"{file}:{line}: subject {key.subject} has no {cohort_column}; every row needs one")
        if key in rows:
            whose = f"subject {key.subject} session {key.session or '(none)'}" + f" of {key.cohort}" * bool(key.cohort)
            raise InputError(f"{file}:{line}: {whose} has two rows; leave one")
        identity = (subject_column, session_column, cohort_column)
        rows[key] = {column: value for column, value in row.items() if column not in identity and present(value)}
    return Labels(rows, str(file))


def read_table(file: Place) -> list[Row]:
    """The rows of a CSV or TSV file (told by its name, `.tsv`, else by a tab in the first line).

    Raises InputError where it is no text, or a row has more cells than there are columns.
    """
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text file in UTF-8 (byte {error.start}); save it as CSV or TSV") from error
    first, _, _ = text.partition("\n")
    delimiter = (
        "\t" if file.name.endswith(".tsv") or "\t" in first else ";" if first.count(";") > first.count(",") else ","
    )
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [column.strip() for column in next(lines, [])]
        numbered = [(lines.line_num, cells) for cells in lines if any(cell.strip() for cell in cells)]
    except csv.Error as error:  # a quote that never ends makes one cell of the rest of the file
        where = f"{file}:{lines.line_num}"
        raise InputError(f"{where}: not a CSV or TSV table: {error}; is a quote never closed?") from error
    if len(set(columns)) < len(columns):
        raise InputError(f"{file}: two columns have the same name; found {', '.join(columns)}")
    rows = []
    for line, cells in numbered:
        if len(cells) > len(columns):
            raise InputError(f"{file}:{line}: {len(cells)} cells, but {len(columns)} columns")
        cells += [""] * (len(columns) - len(cells))
        rows.append(Row(line, {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}))
    return rows


def present(value: str) -> str:
    """The value, or "" where the cell says that there is none."""
    return "" if value.lower() in _ABSENT else value

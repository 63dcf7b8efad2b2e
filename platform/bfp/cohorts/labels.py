"""Labels: what a cohort says of its subjects in CSV and TSV files: diagnosis, age, site, …

Values are carried as the text that stands in the file; what is empty or `n/a` (BIDS) is absent. Rows are found by the
columns `subject` or `participant_id` and, if any, `session` or `session_id`, with or without the prefixes `sub-` and
`ses-`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field

from bfp.errors import InputError
from bfp.storage import Place

SUBJECT_COLUMNS = ("subject", "participant_id")
SESSION_COLUMNS = ("session", "session_id")
_ABSENT = ("", "n/a", "N/A")


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels by (subject, session); those of a row without a session hold for every session of the subject."""

    rows: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)

    def of(self, subject: str, session: str) -> dict[str, str]:
        """What is known of a session; what is said of it itself goes before what is said of its subject."""
        return {**self.rows.get((subject, ""), {}), **self.rows.get((subject, session), {})}

    def joined(self, other: Labels) -> Labels:
        """Both; where both say something of the same row, `other` goes before."""
        keys = {**self.rows, **other.rows}
        return Labels({key: {**self.rows.get(key, {}), **other.rows.get(key, {})} for key in keys})


def read_labels(file: Place, *, subject: str | None = None) -> Labels:
    """The labels of a CSV or TSV file. `subject` stands for a column that the file lacks (BIDS `sessions.tsv`).

    Raises InputError where there is no column of subjects, or two rows speak of the same session.
    """
    rows: dict[tuple[str, str], Mapping[str, str]] = {}
    for line, row in enumerate(read_table(file), start=2):
        subject_column = next((column for column in SUBJECT_COLUMNS if column in row), None)
        if subject_column is None and subject is None:
            raise InputError(
                f"{file}: has no column subject (or participant_id); found {', '.join(row) or 'no columns'}"
            )
        session_column = next((column for column in SESSION_COLUMNS if column in row), None)
        key = (
            (row[subject_column] if subject_column else subject or "").removeprefix("sub-"),
            present(row[session_column] if session_column else "").removeprefix("ses-"),
        )
        if key in rows:
            raise InputError(f"{file}:{line}: subject {key[0]} session {key[1] or '(none)'} has two rows; leave one")
        identity = (subject_column, session_column)
        rows[key] = {column: value for column, value in row.items() if column not in identity and present(value)}
    return Labels(rows)


def read_table(file: Place) -> list[dict[str, str]]:
    """The rows of a CSV or TSV file (told by its name, `.tsv`, else by a tab in the first line), cells stripped.

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
    columns = [column.strip() for column in next(lines, [])]
    if len(set(columns)) < len(columns):
        raise InputError(f"{file}: two columns have the same name; found {', '.join(columns)}")
    rows = []
    for cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(columns):
            raise InputError(f"{file}:{lines.line_num}: {len(cells)} cells, but {len(columns)} columns")
        cells += [""] * (len(columns) - len(cells))
        rows.append({column: cell.strip() for column, cell in zip(columns, cells, strict=True)})
    return rows


def present(value: str) -> str:
    """The value, or "" where the cell says that there is none."""
    return "" if value in _ABSENT else value

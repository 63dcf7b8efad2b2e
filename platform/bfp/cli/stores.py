"""The commands of a slice store: what is in it, whether it is whole, and what it can do without."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp.cli.display import Display
from bfp.cli.output import grid, shown, table, write
from bfp.cli.runs import local_time
from bfp.errors import InputError, Interrupted
from bfp.reports.numbers import number_text
from bfp.storage import Place
from bfp.words import bytes_text, counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bfp.store.check import Checked, Progress
    from bfp.store.prune import StoreFile, Survey

SHOWN_ROWS = 30  # of scans worth a look, and of faults; --json has all
BARS = "▁▂▃▄▅▆▇█"
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

# what is in it --------------------------------------------------------------------------------------------------------


class Contents(NamedTuple):
    """What `bfp store show` shows of a store: a snapshot's totals, `store.summary`'s tables, and the pictures made."""

    store: Place
    snapshot: int
    totals: dict[str, Any]
    preprocessing: dict[str, Any]
    modalities: list[Any]
    spreads: list[Any]
    segmentations: list[Any]
    rejected: list[Any]
    flagged: list[Any]
    pictures: list[Place]


def contents_of(at: Place, *, pictures: Place | None) -> Contents:
    """What is in a store; pictures are written into that folder. Raises InputError where there is no store."""
    from bfp.store.reader import SliceStore
    from bfp.store.summary import summarise

    store = SliceStore.open(at)
    summary = summarise(store)
    made = list[Place]()
    if pictures is not None and store.totals.stacks:
        from bfp.drivers.ingest_results import pictures_of

        made = [pictures / block.file.rpartition("/")[2] for block in pictures_of(store, folder=pictures)]
    # The snapshot counts rows, of which a 4-D scan may have many.
    totals = store.totals.model_dump() | {"scans": sum(row.scans for row in summary.modalities)}
    return Contents(at, store.snapshot, totals, store.preprocessing, *summary, made)


def contents_text(contents: Contents) -> Iterator[RenderableType]:
    """A store's contents as tables, what is worth a look last, and of that the furthest outliers first."""
    yield f"{contents.store}, snapshot {contents.snapshot}"
    yield grid((name.replace("_", " "), number_text(value)) for name, value in contents.totals.items())
    yield table(
        "scans (medians of shift and foreground)",
        ["cohort", "modality", "scans", "subjects", "stacks", "shift, mm", "foreground", "flagged"],
        ([_cell(entry) for entry in row] for row in contents.modalities),
        right=range(2, 8),
    )
    if any(row.scans > 1 for row in contents.spreads):
        yield table(
            "how the QC figures are spread",
            ["cohort", "modality", "figure", "scans", "least", "5 %", "median", "95 %", "most", "least to most"],
            ([*map(_cell, row[:-1]), _bars(row.bins)] for row in contents.spreads if row.scans > 1),
            right=range(3, 9),
        )
    if contents.segmentations:
        yield table(
            "label maps and brain masks",
            ["cohort", "segmentation", "drawn on", "found", "used", "doubtful", "not used"],
            ([*map(_cell, row[:-1]), "\n".join(row.unused)] for row in contents.segmentations),
            right=range(3, 6),
        )
    if contents.rejected:
        rows = ([row.reason, str(row.scans), "\n".join(row.examples)] for row in contents.rejected)
        yield table("left out", ["reason", "scans", "such as"], rows, right=(1,))
        yield "their files stand in the store's table `rejected`, column `uri`"
    if contents.flagged:
        rows = ([*map(_cell, row[:5]), "\n".join(row.warnings)] for row in contents.flagged[:SHOWN_ROWS])
        columns = ["cohort", "subject", "session", "modality", "shift, mm", "why"]
        yield table("worth a look", columns, rows, right=(4,))
        yield counted(len(contents.flagged), "scan is", "scans are") + " worth a look" + _more(contents.flagged)
    for picture in contents.pictures:
        yield f"picture: {shown(picture)}"


def _bars(counts: Iterable[int]) -> str:
    """One character a bin, as high as its share of the fullest; a space for an empty one."""
    counts = list(counts)
    return "".join(BARS[-(-8 * count // max(counts)) - 1] if count else " " for count in counts)


# whether it is whole --------------------------------------------------------------------------------------------------


def checked(at: Place, *, snapshot: int | None) -> Checked:
    """`store.check`, with a display of how far it is."""
    from bfp.store.check import check

    with _displayed("checking", unit="commits") as progress:
        return check(at, snapshot=snapshot, progress=progress)


def check_text(found: Checked) -> Iterator[RenderableType]:
    """What was looked at, then what is wrong, by file."""
    looked = f"{counted(found.parts, 'file')} of {counted(found.commits, 'commit')}, {counted(found.rows, 'row')}"
    yield f"{found.store}, snapshot {found.snapshot}: {looked}, {bytes_text(found.size_bytes)}"
    if not found.faults:
        yield "whole: every file has the size, the checksum and the rows that it should"
        return
    yield table("damaged", ["file", "what is wrong", "what to do"], found.faults[:SHOWN_ROWS])
    yield f"{counted(len(found.faults), 'fault')}" + _more(found.faults)


# what it can do without -----------------------------------------------------------------------------------------------


class PruneRow(NamedTuple):
    """Files of one kind that nobody needs; oldest: when the first of them was written, by this machine's time zone."""

    kind: str
    files: int
    size_bytes: int
    oldest: str


class Pruned(NamedTuple):
    """What a prune found, and what it removed: nothing where nobody said so. asked: the user was, and saw it."""

    store: Place
    snapshots_kept: list[int]
    found: list[PruneRow]
    spared_young: int
    removed_files: int
    removed_bytes: int
    asked: bool


def pruned(at: Place, *, keep_snapshots: int | None, older_than: str, yes: bool, ask: bool) -> Pruned:
    """Find what the store can do without; remove it with `yes`, or once the user says so at a terminal (`ask`).

    Raises InputError where that is all that the store has: it has no snapshot.
    """
    from bfp.store.prune import remove, survey

    found = survey(at, keep_snapshots=keep_snapshots, older_than_s=_seconds(older_than))
    if found.waste and not found.kept:
        raise InputError(
            f"{at}: has no snapshot, so that all of its files would go: an ingest did not finish, or a file was lost; "
            "submit the ingest again, which takes up what is there, or remove the folder if nothing of it is wanted"
        )
    removed: list[StoreFile] = []
    asked = bool(found.waste) and ask and not yes and sys.stdin.isatty()
    if found.waste and (yes or (asked and _agreed(found))):
        with _displayed("removing", unit="files") as progress:
            removed = remove(found, progress=progress)
    return Pruned(
        at,
        found.kept,
        _prune_rows(found),
        found.young,
        len(removed),
        sum(each.size_bytes for each in removed),
        asked,
    )


def prune_text(done: Pruned) -> Iterator[RenderableType]:
    """What was found and what came of it."""
    if done.found and not done.removed_files:
        if not done.asked:
            yield from _found_text(done.found)
        yield "nothing was removed" + ("" if done.asked else "; --yes removes it")
    elif done.removed_files:
        yield f"removed {counted(done.removed_files, 'file')}, {bytes_text(done.removed_bytes)}"
    else:
        yield "nothing to remove"
    if done.spared_young:
        yield f"{counted(done.spared_young, 'file')} more may be of an ingest that is going on: written too lately"
    yield f"{done.store}: {counted(len(done.snapshots_kept), 'snapshot')} kept"


def _agreed(found: Survey) -> bool:
    import typer

    write(_found_text(_prune_rows(found)), stderr=True)
    try:
        return typer.confirm("Remove these?", err=True)
    except typer.Abort:
        raise Interrupted("stopped; nothing was removed") from None


def _found_text(rows: list[PruneRow]) -> Iterator[RenderableType]:
    yield table(
        "no kept snapshot needs",
        ["what", "files", "size", "oldest"],
        ([row.kind, f"{row.files:,}", bytes_text(row.size_bytes), row.oldest] for row in rows),
        right=(1, 2),
    )


def _prune_rows(found: Survey) -> list[PruneRow]:
    rows = []
    for kind in dict.fromkeys(each.kind for each in found.waste):
        own = [each for each in found.waste if each.kind == kind]
        oldest = local_time(datetime.fromtimestamp(min(each.modified_s for each in own), UTC).isoformat())
        rows.append(PruneRow(kind, len(own), sum(each.size_bytes for each in own), oldest))
    return rows


def _seconds(age: str) -> float:
    """An age in words, such as 1d or 12h. Raises InputError where it is none."""
    if not (found := re.fullmatch(r"(\d+(?:[.]\d+)?)([smhd])", age)):
        raise InputError(f"--older-than {age}: no age; write 1d, 12h or 30m")
    return float(found[1]) * UNITS_S[found[2]]


# together -------------------------------------------------------------------------------------------------------------


@contextmanager
def _displayed(phase: str, *, unit: str) -> Iterator[Progress]:
    with Display() as display:

        def progress(done: int, total: int) -> None:
            if done == 1:
                display({"event": "phase", "phase": phase, "total": total, "unit": unit})
            display({"event": "progress", "done": done})

        yield progress
        display({"event": "end"})


def _more(rows: list[Any]) -> str:
    return f"; {len(rows) - SHOWN_ROWS:,} not shown, --json has all" if len(rows) > SHOWN_ROWS else ""


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else number_text(value)

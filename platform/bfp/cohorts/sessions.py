"""Sessions: all that is known of one subject at one visit before a scan is opened.

Each source (`bids`, `table`, `glob`) lists its candidates; `session_of` judges them, by the same rules for all:
what cannot be read or was not asked for is left out, and one scan of each modality is taken.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from bfp.errors import Reason, Unusable
from bfp.storage import Entry

BRAIN = "brain"
"""The name of the segmentation that is a session's brain mask, for a recipe that wants one."""


class Key(NamedTuple):
    """Who and when: sessions are sorted by it."""

    cohort: str
    subject: str
    session: str


@dataclass(frozen=True, slots=True)
class Scan:
    """One file that is one modality of a session; of a pair the header, and `voxels` is the other file; or a series.

    chosen: of how many candidates it was taken, and by what rule; "" where it was the only one.
    warnings: what is doubtful about it by its name alone, as sentences for a person.
    """

    modality: str
    file: Entry
    chosen: str = ""
    warnings: tuple[str, ...] = ()
    voxels: Entry | None = None

    @property
    def files(self) -> tuple[Entry, ...]:
        return (self.file, self.voxels) if self.voxels else (self.file,)


@dataclass(frozen=True, slots=True)
class LabelMap:
    """One file of a segmentation, drawn on the grid of the session's scan of modality `drawn_on`.

    A file that is named and not there has size -1. voxels, chosen, warnings: as of a scan. inside: of a brain mask, the
    labels that are brain; () for all but 0. refused: why it is not used, by its name alone; "" where it may be.
    """

    name: str
    drawn_on: str
    file: Entry
    voxels: Entry | None = None
    chosen: str = ""
    warnings: tuple[str, ...] = ()
    inside: tuple[int, ...] = ()
    refused: str = ""

    @property
    def files(self) -> tuple[Entry, ...]:
        return (self.file, self.voxels) if self.voxels else (self.file,)


@dataclass(frozen=True, slots=True)
class SegmentationSource:
    """How a cohort's label maps are found: by the end of the file name (BIDS) or by a column (table).

    inside: as of a label map.
    """

    name: str
    drawn_on: str
    suffix: str | None = None
    column: str | None = None
    inside: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A scan that is not used: one row of `rejected`. Where the name told no subject or modality, they are "".

    detail names no file, here or elsewhere: a name may be a patient's, and details stand in reports and logs.
    """

    key: Key
    modality: str
    uri: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Session:
    """One subject at one visit: the scans to prepare (by modality, sorted), and those left out already.

    spares: in the order of the rule, what stands among the left out as duplicates of these scans.
    """

    key: Key
    scans: tuple[Scan, ...]
    label_maps: tuple[LabelMap, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()
    spares: tuple[Scan, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may become a scan. `rank` orders the candidates of a modality: the lowest is taken."""

    modality: str
    file: Entry
    rank: Any = ()
    warnings: tuple[str, ...] = ()
    voxels: Entry | None = None

    @property
    def files(self) -> tuple[Entry, ...]:
        return (self.file, self.voxels) if self.voxels else (self.file,)


def session_of(
    key: Key,
    candidates: Iterable[Candidate],
    *,
    wanted: Collection[str],
    rule: str,
    label_maps: Callable[[Mapping[str, Candidate]], Iterable[LabelMap]] = lambda taken: (),
    labels: Mapping[str, str] | None = None,
    left_out: Iterable[LeftOut] = (),
) -> Session:
    """The session of these candidates: one scan of each wanted modality; the others are left out.

    rule says in words what `rank` orders by ("the fewest entities, …"); it stands with the scan that was taken and in
    the rows of its duplicates. label_maps: those that go with the scans that were taken, by modality.
    """
    key = Key(*map(as_text, key))
    taken: dict[str, Candidate] = {}
    duplicates: list[Candidate] = []
    usable: Counter[str] = Counter()
    out = [replace(row, key=key, uri=as_text(row.uri), detail=as_text(row.detail)) for row in left_out]
    for candidate in sorted(candidates, key=lambda candidate: (candidate.rank, candidate.file.place.uri)):
        modality, uri = as_text(candidate.modality), as_text(candidate.file.place.uri)
        if modality not in wanted:
            out.append(LeftOut(key, modality, uri, Reason.UNWANTED, f"{modality}; asked for: {', '.join(wanted)}"))
        elif uri != candidate.file.place.uri:
            out.append(LeftOut(key, modality, uri, Reason.NAME, "a path that is not UTF-8; rename it"))
        elif gone := [file for file in candidate.files if file.size < 0]:
            why = absent(gone[0])
            out.append(LeftOut(key, modality, uri, why.reason, why.detail))
        else:
            usable[modality] += 1
            first = taken.setdefault(modality, candidate)
            if first is not candidate:
                duplicates.append(candidate)
                out.append(LeftOut(key, modality, uri, Reason.DUPLICATE, rule))
    return Session(
        key,
        scans=tuple(_scan(taken[modality], of=usable[modality], rule=rule) for modality in sorted(taken)),
        label_maps=tuple(sorted(label_maps(taken), key=lambda label_map: label_map.name)),
        labels=dict(sorted((labels or {}).items())),
        left_out=tuple(sorted(out, key=lambda row: row.uri)),
        spares=tuple(_scan(each, of=usable[each.modality], rule=rule) for each in duplicates),
    )


def with_spare(session: Session, refused: LeftOut) -> Session | None:
    """The session with the next of its duplicates in place of a scan that was refused; None where there is none."""
    spare = next((scan for scan in session.spares if scan.modality == refused.modality), None)
    taken = next((scan for scan in session.scans if _is_row_of(scan, refused)), None)
    if spare is None or taken is None:
        return None
    warnings = spare.warnings
    if maps := [each.name for each in session.label_maps if each.drawn_on == spare.modality]:
        warnings += (f"{', '.join(maps)}: perhaps drawn on the scan that was refused in favour of this one",)
    instead = replace(spare, chosen=f"{spare.chosen}; one before it was refused", warnings=warnings)
    return replace(
        session,
        scans=tuple(instead if scan is taken else scan for scan in session.scans),
        left_out=(*(row for row in session.left_out if not _is_row_of(spare, row)), refused),
        spares=tuple(scan for scan in session.spares if scan is not spare),
    )


def _is_row_of(scan: Scan, row: LeftOut) -> bool:
    return (row.modality, row.uri) == (scan.modality, scan.file.place.uri)


def _scan(candidate: Candidate, *, of: int, rule: str) -> Scan:
    return Scan(candidate.modality, candidate.file, chosen(of, rule), candidate.warnings, candidate.voxels)


def chosen(of: int, rule: str) -> str:
    """Of how many candidates one was taken, and by what rule; "" where it was the only one."""
    return f"of {of}: {rule}" if of > 1 else ""


def absent(file: Entry) -> Unusable:
    """Why a file of size -1 cannot be read: nobody may look at it, it is a link to nothing, or nothing at all."""
    if file.place.is_local and os.path.isdir(file.place.uri):
        unseen = (each for name in sorted(os.listdir(file.place.uri)) if (each := (file.place / name).unseen()))
        if why := next(unseen, ""):
            return Unusable(Reason.UNREADABLE, f"a file of the series: {why}")
        return Unusable(Reason.DANGLING, "a file of the series is a link to nothing")
    if file.place.is_local and (why := file.place.unseen()):
        return Unusable(Reason.UNREADABLE, why)
    linked = file.place.is_local and file.place.path.is_symlink()
    kind = next((end for end in (".nii.gz", ".nii", ".hdr", ".img") if file.place.name.endswith(end)), "file")
    return Unusable(Reason.DANGLING if linked else Reason.MISSING, f"nothing is where its {kind} should be")


def as_text(name: str) -> str:
    """A name of a file, with escapes for bytes that are not UTF-8: no table could hold them (PEP 383)."""
    return name.encode(errors="backslashreplace").decode()

"""Preparing a session: its files are read, decoded and made into stacks, within a time limit.

What `ingest` and `infer` do to every session, as an ordinary function of one. A scan that cannot be used is left out
with its reason, and the others go on; a label map that cannot be used is a warning on a scan of the session.

What the bytes of a file are at fault for stays so. What they are not (no permission, a disk that fails, a time limit)
may pass: the session is `passing` then, and whoever keeps it sees to it that it is tried again the next time. An object
store that fails is neither: it raises, since it would fail for every scan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from bfp.cohorts.sessions import BRAIN, LabelMap, LeftOut, Scan, Session, absent
from bfp.errors import Reason, StorageError, Unusable
from bfp.imaging.nifti import MAX_FILE_BYTES, Volume, decode
from bfp.imaging.session import Prepared, ScanFacts, Segmentation, prepare_session
from bfp.imaging.stacks import Recipe
from bfp.storage import Entry
from bfp.words import counted

MAY_PASS = (Reason.UNREADABLE, Reason.TIMEOUT)
"""Reasons that are no fault of the file's bytes; they are given here alone."""

Value = TypeVar("Value")


class ScanRecord(NamedTuple):
    """A scan that is in the stacks: what was found in it, how many stacks show it, and what is doubtful about it."""

    scan: Scan
    facts: ScanFacts
    stacks: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SessionStacks:
    """A session prepared: its stacks, by working grid; the scans that are in them; those that are not, and why.

    passing: whether a scan or label map is not in them for a reason that may pass.
    """

    session: Session
    prepared: tuple[Prepared, ...]
    scans: tuple[ScanRecord, ...]
    left_out: tuple[LeftOut, ...]
    passing: bool = False


def prepare(session: Session, *, recipe: Recipe, scan_timeout_s: float) -> SessionStacks:
    """The stacks of a session from its files.

    A session that takes longer than scan_timeout_s a scan is left out as a whole. Raises StorageError when a file that
    discovery saw cannot be fetched, or is another by now.
    """
    limit_s = scan_timeout_s * max(len(session.scans), 1)
    try:
        return within(limit_s, lambda: _prepare(session, recipe))
    except TimeoutError:
        detail = f"not ready after {limit_s:g} s ({counted(len(session.scans), 'scan')} of {scan_timeout_s:g} s)"
        late = [
            LeftOut(session.key, scan.modality, scan.file.place.uri, Reason.TIMEOUT, detail) for scan in session.scans
        ]
        return SessionStacks(session, (), (), (*session.left_out, *late), passing=True)


def within(seconds: float, work: Callable[[], Value]) -> Value:
    """What `work` returns or raises, or TimeoutError when that takes longer.

    Works in any thread of any process, where a signal would not. A thread cannot be ended from outside: what was too
    slow goes on in the background to its own end, which the largest size of a volume bounds.
    """
    outcome: Future[Value] = Future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # handed to the caller, where it is raised
            outcome.set_exception(error)
        else:
            outcome.set_result(value)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result(seconds)


def _prepare(session: Session, recipe: Recipe) -> SessionStacks:
    left_out = list(session.left_out)

    def leave_out(scan: Scan, unusable: Unusable) -> None:
        left_out.append(LeftOut(session.key, scan.modality, scan.file.place.uri, unusable.reason, unusable.detail))

    volumes: dict[str, Volume] = {}
    for scan in session.scans:
        try:
            header, voxels = _contents(scan)
            volumes[scan.modality] = decode(header, voxels=voxels, volumes=recipe.volumes)
        except Unusable as unusable:
            leave_out(scan, unusable)

    label_maps: dict[str, Segmentation] = {}
    unusable_maps: dict[str, Unusable] = {}
    for label_map in session.label_maps:
        try:
            label_maps[label_map.name] = _segmentation(label_map)
        except Unusable as unusable:
            unusable_maps[label_map.name] = unusable

    mask = label_maps.pop(BRAIN, None) if recipe.brain == "given" else None
    done = prepare_session(
        volumes, recipe=recipe, segmentations=label_maps, brain_mask=mask.volume if mask is not None else None
    )
    for scan in session.scans:
        if scan.modality in volumes and scan.modality in done.rejected:
            why = done.rejected[scan.modality]
            if why.reason is Reason.NO_BRAIN_MASK and BRAIN in unusable_maps:
                why = Unusable(Reason.NO_BRAIN_MASK, str(unusable_maps[BRAIN]))
            leave_out(scan, why)
    unusable_maps |= {name: done.rejected[name] for name in label_maps if name in done.rejected}
    reasons = [*(row.reason for row in left_out), *(each.reason for each in unusable_maps.values())]
    return SessionStacks(
        session,
        tuple(done.prepared),
        _records(session, done.prepared, unusable_maps),
        tuple(left_out),
        passing=any(reason in MAY_PASS for reason in reasons),
    )


def _records(session: Session, prepared: list[Prepared], unusable_maps: dict[str, Unusable]) -> tuple[ScanRecord, ...]:
    """The scans in the stacks. What is wrong with a label map stands with the scan it was drawn on, else the first."""
    found = [(facts, stacks) for stacks in prepared for facts in stacks.facts]
    files = {scan.modality: scan for scan in session.scans}
    drawn_on = {label_map.name: label_map.drawn_on for label_map in session.label_maps}
    records = []
    for position, (facts, stacks) in enumerate(found):
        own = tuple(
            f"no labels of {name}: {unusable}"
            for name, unusable in sorted(unusable_maps.items())
            if drawn_on[name] == facts.modality
            or (position == 0 and not any(drawn_on[name] == other.modality for other, _ in found))
        )
        scan = files[facts.modality]
        records.append(ScanRecord(scan, facts, len(stacks.slices), (*scan.warnings, *facts.warnings, *own)))
    return tuple(records)


def _segmentation(label_map: LabelMap) -> Segmentation:
    """A blank label map is one all the same: it says that there is nothing."""
    header, voxels = _contents(label_map)
    return Segmentation(decode(header, voxels=voxels, may_be_blank=True), label_map.drawn_on)


def _contents(source: Scan | LabelMap) -> tuple[bytes, bytes | None]:
    """The bytes of the file, and of the other where they are a pair."""
    return _read(source.file), _read(source.voxels) if source.voxels else None


def _read(file: Entry) -> bytes:
    """The bytes of a file that discovery saw."""
    if file.size < 0:
        raise absent(file)
    if file.size > MAX_FILE_BYTES:
        raise Unusable(Reason.TOO_LARGE, f"a file of {file.size:,} bytes; the limit is {MAX_FILE_BYTES:,}")
    try:
        return file.read()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise Unusable(Reason.UNREADABLE, "it was listed, and is gone") from error
        if file.place.is_local and isinstance(error.__cause__, OSError):
            raise Unusable(Reason.UNREADABLE, f"{error.__cause__.strerror}") from error
        raise

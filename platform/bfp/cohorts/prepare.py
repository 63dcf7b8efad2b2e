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


class MapRecord(NamedTuple):
    """A label map of the session: why it was not used, None where it was, and what is doubtful about it."""

    label_map: LabelMap
    unusable: Unusable | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SessionStacks:
    """A session prepared: its stacks, by working grid; the scans that are in them; those that are not, and why.

    label_maps: all that the session has; none where it took too long. passing: whether a scan or label map is not in
    them for a reason that may pass.
    """

    session: Session
    prepared: tuple[Prepared, ...]
    scans: tuple[ScanRecord, ...]
    left_out: tuple[LeftOut, ...]
    label_maps: tuple[MapRecord, ...] = ()
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
    done = prepare_session(volumes, recipe=recipe, segmentations=label_maps, brain_mask=mask)
    for scan in session.scans:
        if scan.modality in volumes and scan.modality in done.rejected:
            why = done.rejected[scan.modality]
            if why.reason is Reason.NO_BRAIN_MASK and BRAIN in unusable_maps:
                why = Unusable(Reason.NO_BRAIN_MASK, str(unusable_maps[BRAIN]))
            leave_out(scan, why)
    unusable_maps |= {name: done.rejected[name] for name in label_maps if name in done.rejected}
    doubts = dict(done.doubts)
    if mask is not None:
        doubts[BRAIN] = mask.volume.warnings
        if not any(facts.brain == "given" for stacks in done.prepared for facts in stacks.facts):
            unusable_maps[BRAIN] = next(
                (each for each in done.rejected.values() if each.reason is Reason.NO_BRAIN_MASK),
                Unusable(Reason.UNPLACED, f"the {mask.drawn_on}, which gave no stacks"),
            )
    maps = tuple(
        MapRecord(each, unusable_maps.get(each.name), each.warnings + doubts.get(each.name, ()))
        for each in session.label_maps
    )
    reasons = [*(row.reason for row in left_out), *(each.reason for each in unusable_maps.values())]
    return SessionStacks(
        session,
        tuple(done.prepared),
        _records(session, done.prepared, maps, mask_name=BRAIN if mask is not None else ""),
        tuple(left_out),
        maps,
        passing=any(reason in MAY_PASS for reason in reasons),
    )


def _records(
    session: Session, prepared: list[Prepared], maps: tuple[MapRecord, ...], *, mask_name: str
) -> tuple[ScanRecord, ...]:
    """The scans in the stacks. What is wrong with a label map stands with the scan it was drawn on, else the first.

    mask_name: of the map that is the brain mask, whose own warnings are among those of the scans already; "" for none.
    """
    found = [(facts, stacks) for stacks in prepared for facts in stacks.facts]
    files = {scan.modality: scan for scan in session.scans}
    present = {facts.modality for facts, _ in found}
    records = []
    for position, (facts, stacks) in enumerate(found):
        own = tuple(
            text
            for each in maps
            if each.label_map.drawn_on == facts.modality or (position == 0 and each.label_map.drawn_on not in present)
            for text in _told_of(each, by_name_alone=each.label_map.name == mask_name)
        )
        scan = files[facts.modality]
        records.append(ScanRecord(scan, facts, len(stacks.slices), (*scan.warnings, *facts.warnings, *own)))
    return tuple(records)


def _told_of(record: MapRecord, *, by_name_alone: bool) -> list[str]:
    """What a scan's row says of a label map."""
    name = record.label_map.name
    if record.unusable is not None:
        return [f"no labels of {name}: {record.unusable}"]
    return [f"labels of {name}: {text}" for text in (record.label_map.warnings if by_name_alone else record.warnings)]


def _segmentation(label_map: LabelMap) -> Segmentation:
    """A blank label map is one all the same: it says that there is nothing."""
    if label_map.refused:
        raise Unusable(Reason.UNPLACED, label_map.refused)
    header, voxels = _contents(label_map)
    volume = decode(header, voxels=voxels, may_be_blank=True)
    return Segmentation(volume, label_map.drawn_on, label_map.inside)


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
        data = file.place.read()
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise Unusable(Reason.UNREADABLE, "it was listed, and is gone") from error
        if file.place.is_local and isinstance(error.__cause__, OSError):
            raise Unusable(Reason.UNREADABLE, f"{error.__cause__.strerror}") from error
        raise
    if len(data) != file.size:
        raise StorageError(
            f"{file.place}: {len(data)} bytes, but {file.size} when it was listed: it is being written to; submit again"
        )
    return data

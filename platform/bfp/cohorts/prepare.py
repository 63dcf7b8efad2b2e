"""Preparing a session: its files are read, decoded and made into stacks, within a time limit.

What `ingest` and `infer` do to every session, as an ordinary function of one. A scan that cannot be used is left out
with its reason, and the others go on; a label map that cannot be used is a warning on a scan of the session.

A session comes in one piece, as a rule. Where the volumes of 4-D scans are wanted each, its scans come one by one and
of a 4-D scan one volume after the other: besides the bytes of one file there is never more than one volume's stacks.
Volumes that cannot be used make one row of their scan, which is in the stacks all the same with its others.

What the bytes of a file are at fault for stays so. What they are not (no permission, a disk that fails, a time limit)
may pass: the session is `passing` then, and whoever keeps it sees to it that it is tried again the next time. An object
store that fails is neither: it raises, since it would fail for every scan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from bfp.cohorts.sessions import BRAIN, LabelMap, LeftOut, Scan, Session, absent
from bfp.errors import Reason, StorageError, Unusable
from bfp.imaging.nifti import MAX_FILE_BYTES, Series, Volume, decode, decode_each
from bfp.imaging.session import Prepared, PreparedSession, ScanFacts, Segmentation, prepare_series, prepare_session
from bfp.imaging.stacks import Recipe
from bfp.storage import Entry
from bfp.words import counted

MAY_PASS = (Reason.UNREADABLE, Reason.TIMEOUT)
"""Reasons that are no fault of the file's bytes; they are given here alone."""

_SHOWN_VOLUMES = 8  # whose numbers a row of `rejected` tells

Value = TypeVar("Value")


class ScanRecord(NamedTuple):
    """A scan that is in the stacks, or one of its volumes (`facts.volume`): what was found in it, how many stacks show
    it, and what is doubtful about it."""

    scan: Scan
    facts: ScanFacts
    stacks: int
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class SessionStacks:
    """A session prepared, or a piece of it: its stacks, by working grid; the scans that are in them; those that are
    not, and why.

    passing: whether a scan or label map is not in them for a reason that may pass.
    """

    session: Session
    prepared: tuple[Prepared, ...]
    scans: tuple[ScanRecord, ...]
    left_out: tuple[LeftOut, ...]
    passing: bool = False


def prepare(session: Session, *, recipe: Recipe, scan_timeout_s: float) -> Iterator[SessionStacks]:
    """The stacks of a session from its files: in one piece, or in the pieces that the recipe's `volumes: each` makes.

    What takes longer than scan_timeout_s a scan, or a volume, is left out: the whole session, or the rest of the scan.
    Raises StorageError when a file that discovery saw cannot be fetched, or is another by now.
    """
    for own in _prepared_together(session, recipe):
        limit_s, last = scan_timeout_s * max(len(own.scans), 1), None
        try:
            for piece in _each_within(limit_s, _prepare(own, recipe)):
                yield piece
                last = piece
                if not piece.prepared or piece.prepared[-1].volume is None:
                    break  # only a volume has others after it
        except TimeoutError:
            scans = counted(len(own.scans), "scan")
            yield _late(own, last, f"not ready after {limit_s:g} s ({scans} of {scan_timeout_s:g} s)")


def _prepared_together(session: Session, recipe: Recipe) -> list[Session]:
    """The session, or where volumes are wanted each its scans, in the order of the recipe: only one file is held then.

    A label map goes with the scan that it was drawn on, the brain mask with each; what else there is with the first.
    """
    if recipe.volumes != "each" or len(session.scans) < 2:
        return [session]
    scans = sorted(session.scans, key=lambda scan: recipe.rank(scan.modality))
    known = {scan.modality for scan in scans}
    return [
        replace(
            session,
            scans=(scan,),
            label_maps=tuple(
                label_map
                for label_map in session.label_maps
                if label_map.drawn_on == scan.modality
                or (label_map.name == BRAIN and recipe.brain == "given")
                or (scan is scans[0] and label_map.drawn_on not in known)
            ),
            left_out=session.left_out if scan is scans[0] else (),
        )
        for scan in scans
    ]


def _late(session: Session, last: SessionStacks | None, detail: str) -> SessionStacks:
    """What took too long is left out. last: the piece of it that came before."""
    left_out = session.left_out
    if last is not None:
        left_out, detail = (), f"volume {last.prepared[-1].volume} was in the stacks, those after it {detail}"
    late = [LeftOut(session.key, scan.modality, scan.file.place.uri, Reason.TIMEOUT, detail) for scan in session.scans]
    return SessionStacks(session, (), (), (*left_out, *late), passing=True)


def _each_within(seconds: float, pieces: Iterator[SessionStacks]) -> Iterator[SessionStacks]:
    """The pieces, or TimeoutError when the next one takes longer."""
    while (piece := within(seconds, lambda: next(pieces, None))) is not None:
        yield piece


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


def _prepare(session: Session, recipe: Recipe) -> Iterator[SessionStacks]:
    if recipe.volumes == "each":
        yield from _prepare_each(session, recipe)
        return
    volumes: dict[str, Volume] = {}
    unread: dict[str, Unusable] = {}
    for scan in session.scans:
        try:
            header, voxels = _contents(scan)
            volumes[scan.modality] = decode(header, voxels=voxels, volumes=recipe.volumes)
        except Unusable as unusable:
            unread[scan.modality] = unusable
    maps = _label_maps(session, recipe)
    done = prepare_session(volumes, recipe=recipe, segmentations=maps.usable, brain_mask=maps.brain)
    yield _piece(session, done, maps, unread=unread)


def _prepare_each(session: Session, recipe: Recipe) -> Iterator[SessionStacks]:
    """The stacks of the one scan of a session, if it has any: a piece for each of its volumes that can be used."""
    maps = _label_maps(session, recipe)
    if not session.scans:
        yield _piece(session, PreparedSession([], {}), maps, unread={})
        return
    (scan,) = session.scans
    told, told_maps = session, maps  # what is still to be told: warnings, label maps and left out scans are so once
    try:
        series = _series(scan)
        if len(series) == 1:
            done = prepare_session(
                {scan.modality: series.volume(0)}, recipe=recipe, segmentations=maps.usable, brain_mask=maps.brain
            )
            yield _piece(session, done, maps, unread={})
            return
        lost: dict[int, Unusable] = {}
        volumes = prepare_series(scan.modality, series, recipe=recipe, segmentations=maps.usable, brain_mask=maps.brain)
        for number, done in enumerate(volumes):
            if not done.prepared:
                lost[number] = maps.why(done.rejected[scan.modality])
                continue
            yield _piece(told, done, told_maps, unread={})
            told = replace(session, scans=(replace(scan, warnings=()),), label_maps=(), left_out=())
            told_maps = _LabelMaps({}, None, {})
        if lost:
            raise _volumes_lost(lost, of=len(series))
    except Unusable as unusable:
        yield _piece(told, PreparedSession([], {}), told_maps, unread={scan.modality: unusable})


def _volumes_lost(lost: Mapping[int, Unusable], *, of: int) -> Unusable:
    """Why volumes of a scan, by number, are not in the stacks: the reason of the first."""
    numbers = ", ".join(map(str, list(lost)[:_SHOWN_VOLUMES])) + (", …" if len(lost) > _SHOWN_VOLUMES else "")
    first = lost[min(lost)]
    return Unusable(first.reason, f"{len(lost)} of {of} volumes (from 0: {numbers}); the first: {first.detail}")


class _LabelMaps(NamedTuple):
    """Those of a session by name: usable to be cut into slices; brain: the mask that the recipe wants, if it does."""

    usable: dict[str, Segmentation]
    brain: Volume | None
    unusable: dict[str, Unusable]

    def why(self, unusable: Unusable) -> Unusable:
        """Why a scan cannot be used, where the mask that it lacks is one that could not be."""
        if unusable.reason is Reason.NO_BRAIN_MASK and BRAIN in self.unusable:
            return Unusable(Reason.NO_BRAIN_MASK, str(self.unusable[BRAIN]))
        return unusable


def _label_maps(session: Session, recipe: Recipe) -> _LabelMaps:
    usable: dict[str, Segmentation] = {}
    unusable: dict[str, Unusable] = {}
    for label_map in session.label_maps:
        try:
            usable[label_map.name] = _segmentation(label_map)
        except Unusable as why:
            unusable[label_map.name] = why
    mask = usable.pop(BRAIN, None) if recipe.brain == "given" else None
    return _LabelMaps(usable, mask.volume if mask is not None else None, unusable)


def _piece(
    session: Session, done: PreparedSession, maps: _LabelMaps, *, unread: Mapping[str, Unusable]
) -> SessionStacks:
    """What was made of a session's scans. unread: by modality, why others are not in it."""
    rejected = {name: maps.why(unusable) for name, unusable in done.rejected.items()}
    left_out = [
        LeftOut(session.key, scan.modality, scan.file.place.uri, why[scan.modality].reason, why[scan.modality].detail)
        for why in (unread, rejected)
        for scan in session.scans
        if scan.modality in why
    ]
    unusable_maps = maps.unusable | {name: why for name, why in rejected.items() if name in maps.usable}
    reasons = [*(row.reason for row in left_out), *(each.reason for each in unusable_maps.values())]
    return SessionStacks(
        session,
        tuple(done.prepared),
        _records(session, done.prepared, unusable_maps),
        (*session.left_out, *left_out),
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


def _series(scan: Scan) -> Series:
    header, voxels = _contents(scan)
    return decode_each(header, voxels=voxels)


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

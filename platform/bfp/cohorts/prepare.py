"""Preparing sessions: their files are read, decoded and made into stacks, within time limits.

What `ingest` and `infer` do to every session, as an ordinary function. The files of the next scans are read meanwhile
(`reading`). A scan that cannot be used is left out with its reason, and the others go on; a label map that cannot be
used is a warning on a scan of the session.

A session comes in one piece, as a rule. Where the volumes of 4-D scans are wanted each, its scans come one by one and
of a 4-D scan one volume after the other: besides the bytes of few files there is never more than one volume's stacks.
Volumes that cannot be used make one row of their scan, which is in the stacks all the same with its others.

What the bytes of a file are at fault for stays so. What they are not (no permission, a disk that fails, a time limit)
may pass: the session is `passing` then, and whoever keeps it sees to it that it is tried again the next time. An object
store that fails is neither: it raises, since it would fail for every scan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from bfp.cohorts.dicom import nifti_of
from bfp.cohorts.reading import Contents, ReadAhead
from bfp.cohorts.sessions import BRAIN, LabelMap, LeftOut, Scan, Session, with_spare
from bfp.cohorts.threads import begin
from bfp.errors import Reason, Unusable
from bfp.imaging.label_maps import Segmentation
from bfp.imaging.nifti import MAX_FILE_BYTES, Volume, decode, decode_each
from bfp.imaging.session import Prepared, PreparedSession, ScanFacts, prepare_series, prepare_session
from bfp.imaging.stacks import Recipe
from bfp.words import some_of

MAY_PASS = (Reason.UNREADABLE, Reason.TIMEOUT)
"""Reasons that are no fault of the file's bytes; a slow program for brain masks is a TIMEOUT. What discovery leaves
out for them makes no session passing: once it can be looked at, the session, and with it the shard, is another."""

_SHOWN_VOLUMES = 8  # whose numbers a row of `rejected` tells

Value = TypeVar("Value")


class ScanRecord(NamedTuple):
    """A scan that is in the stacks, or one of its volumes (`facts.volume`): what was found in it, how many stacks show
    it, and what is doubtful about it."""

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
    """A session prepared, or a piece of it: its stacks, by working grid; the scans that are in them; those that are
    not, and why.

    label_maps: all that the session has; none where it took too long. passing: whether a scan or label map is not in
    them for a reason that may pass.
    """

    session: Session
    prepared: tuple[Prepared, ...]
    scans: tuple[ScanRecord, ...]
    left_out: tuple[LeftOut, ...]
    label_maps: tuple[MapRecord, ...] = ()
    passing: bool = False


def prepare(session: Session, *, recipe: Recipe, scan_timeout_s: float) -> Iterator[SessionStacks]:
    """The stacks of one session: see `prepare_in_turn`."""
    return prepare_in_turn([session], recipe=recipe, scan_timeout_s=scan_timeout_s)


def prepare_in_turn(sessions: Sequence[Session], *, recipe: Recipe, scan_timeout_s: float) -> Iterator[SessionStacks]:
    """The stacks of each session from its files, in the order of the sessions, each in one or several pieces.

    A scan or label map that is not read and decoded in scan_timeout_s is left out, and the others go on without it. So
    long for each of these they may take together to become stacks, where one waits for another, or all are left out;
    where the volumes of a scan come one by one, each of them may take so long, or it and those after it are left out.
    A scan that cannot be used gives its place to the next of its duplicates, and the session is prepared anew: it is
    rare, and whether a scan fits its session's grid only shows with the others at hand. One that may be usable the next
    time keeps its place: the store would hold now this one, now that.

    Raises StorageError when a file that discovery saw cannot be fetched, or is another by now.
    """
    together = [own for session in sessions for own in _prepared_together(session, recipe)]
    sources: list[Scan | LabelMap] = []
    for own in together:
        maps = [each for each in own.label_maps if not each.refused]
        sources += [*maps, *own.scans] if recipe.volumes == "each" else [*own.scans, *maps]
    timely = _Timely(ReadAhead(sources), scan_timeout_s)
    for own in together:
        pieces = _prepare(own, recipe, timely)
        first = next(pieces)
        while (other := _with_spares(first)) is not None:
            pieces = _prepare(other, recipe, timely)
            first = next(pieces)
        yield first
        del first
        yield from pieces


def _prepared_together(session: Session, recipe: Recipe) -> list[Session]:
    """The session, or where volumes are wanted each its scans, in the order of the recipe: only one file is held then.

    A label map goes with the scan that it was drawn on, what was left out with the scan of its modality; with the first
    where that is not there.
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
                if label_map.drawn_on == scan.modality or (scan is scans[0] and label_map.drawn_on not in known)
            ),
            left_out=tuple(
                row
                for row in session.left_out
                if row.modality == scan.modality or (scan is scans[0] and row.modality not in known)
            ),
        )
        for scan in scans
    ]


def _with_spares(done: SessionStacks) -> Session | None:
    """The session with other scans in place of those that have no use now or later; None where it has none."""
    session: Session | None = None
    for row in done.left_out:
        if row.reason not in (*MAY_PASS, Reason.NO_BRAIN_MASK):  # a mask that is missing is so for all
            session = with_spare(session or done.session, row) or session
    return session


def within(seconds: float, work: Callable[[], Value]) -> Value:
    """What `work` returns or raises, or TimeoutError when that takes longer.

    Works in any thread of any process, where a signal would not. A thread cannot be ended from outside: what was too
    slow goes on in the background, with the memory that it holds. Computing comes to its end, since the size of a
    volume is bounded; reading that hangs (`reading` does it elsewhere, with nothing else to hold) may stay for ever.
    """
    return begin(work).result(seconds)


@dataclass(frozen=True, slots=True)
class _Timely:
    """The steps of preparing a session, each within its time limit; limit_s: of a scan."""

    ahead: ReadAhead
    limit_s: float

    def decoded(self, source: Scan | LabelMap, how: Callable[[Contents], Value]) -> Value:
        """What `how` makes of a file's contents. Raises Unusable where they are not read, and that is not made, in
        time."""
        began = time.monotonic()
        try:
            contents = self.ahead.take(source, timeout_s=self.limit_s)
            left_s = began + self.limit_s - time.monotonic()
            return within(left_s, lambda: how(_of_series(contents, timeout_s=left_s)))
        except TimeoutError:
            raise Unusable(Reason.TIMEOUT, f"not read and decoded after {self.limit_s:g} s") from None

    def prepared(self, modalities: Collection[str], work: Callable[[], PreparedSession]) -> PreparedSession:
        """What `work` makes of the scans of these modalities; where that is too slow, nothing."""
        limit_s = self.limit_s * max(len(modalities), 1)
        try:
            return within(limit_s, work)
        except TimeoutError:
            scans = f" ({len(modalities)} scans of its session, {self.limit_s:g} s each)" if len(modalities) > 1 else ""
            late = Unusable(Reason.TIMEOUT, f"no stacks after {limit_s:g} s{scans}")
            return PreparedSession([], dict.fromkeys(modalities, late))


def _of_series(contents: Contents, *, timeout_s: float) -> Contents:
    """Those of the image that a DICOM series makes; others as they are."""
    if not contents.series:
        return contents
    return Contents(nifti_of(contents.series, timeout_s=timeout_s, max_bytes=MAX_FILE_BYTES))


def _prepare(session: Session, recipe: Recipe, timely: _Timely) -> Iterator[SessionStacks]:
    if recipe.volumes == "each":
        yield from _prepare_each(session, recipe, timely)
        return
    how = recipe.volumes
    volumes: dict[str, Volume] = {}
    unread: dict[str, Unusable] = {}
    for scan in session.scans:
        try:
            volumes[scan.modality] = timely.decoded(
                scan, lambda found: decode(found.file, voxels=found.voxels, volumes=how)
            )
        except Unusable as unusable:
            unread[scan.modality] = unusable.bare()
    maps = _label_maps(session, recipe, timely)
    done = timely.prepared(
        volumes, lambda: prepare_session(volumes, recipe=recipe, segmentations=maps.usable, brain_mask=maps.brain)
    )
    yield _piece(session, done, maps, unread=unread)


def _prepare_each(session: Session, recipe: Recipe, timely: _Timely) -> Iterator[SessionStacks]:
    """The stacks of the one scan of a session, if it has any: a piece for each of its volumes that can be used."""
    maps = _label_maps(session, recipe, timely)
    if not session.scans:
        yield _piece(session, PreparedSession([], {}), maps, unread={})
        return
    (scan,) = session.scans
    told, told_maps = session, maps  # what is still to be told: warnings, label maps and left out scans are so once
    try:
        series = timely.decoded(scan, lambda found: decode_each(found.file, voxels=found.voxels))
        if len(series) == 1:
            done = timely.prepared(
                [scan.modality],
                lambda: prepare_session(
                    {scan.modality: series.volume(0)},
                    recipe=recipe,
                    segmentations=maps.usable,
                    brain_mask=maps.brain,
                ),
            )
            yield _piece(session, done, maps, unread={})
            return
        lost: dict[int, Unusable] = {}
        volumes = prepare_series(scan.modality, series, recipe=recipe, segmentations=maps.usable, brain_mask=maps.brain)
        for number in range(len(series)):
            done = timely.prepared([scan.modality], lambda: next(volumes))
            if done.prepared:
                yield _piece(told, done, told_maps, unread={})
                told = replace(session, scans=(replace(scan, warnings=()),), label_maps=(), left_out=())
                told_maps = _LabelMaps({}, None, {})
                continue
            lost[number] = maps.why(done.rejected[scan.modality])
            if lost[number].reason is Reason.TIMEOUT:  # whose work still goes on
                left = f"{len(series) - number} of {len(series)} volumes (from number {number}, counted from 0)"
                raise Unusable(Reason.TIMEOUT, f"{left}; the first: {lost[number].detail}")
        if lost:
            raise _volumes_lost(lost, of=len(series))
    except Unusable as unusable:
        yield _piece(told, PreparedSession([], {}), told_maps, unread={scan.modality: unusable.bare()})


def _volumes_lost(lost: Mapping[int, Unusable], *, of: int) -> Unusable:
    """Why volumes of a scan, by number, are not in the stacks: the reason of the first."""
    first, numbers = lost[min(lost)], some_of(lost, most=_SHOWN_VOLUMES)
    return Unusable(first.reason, f"{len(lost)} of {of} volumes (from 0: {numbers}); the first: {first.detail}")


class _LabelMaps(NamedTuple):
    """Those of a session by name: usable to be cut into slices; brain: the mask that the recipe wants, if it does."""

    usable: dict[str, Segmentation]
    brain: Segmentation | None
    unusable: dict[str, Unusable]

    def why(self, unusable: Unusable) -> Unusable:
        """Why a scan cannot be used, where the mask that it lacks is one that could not be."""
        if unusable.reason is Reason.NO_BRAIN_MASK and BRAIN in self.unusable:
            return Unusable(Reason.NO_BRAIN_MASK, str(self.unusable[BRAIN]))
        return unusable


def _label_maps(session: Session, recipe: Recipe, timely: _Timely) -> _LabelMaps:
    usable: dict[str, Segmentation] = {}
    unusable: dict[str, Unusable] = {}
    for label_map in session.label_maps:
        try:
            if label_map.refused:
                raise Unusable(Reason.UNPLACED, label_map.refused)
            # a blank label map is one all the same: it says that there is nothing
            labels = timely.decoded(label_map, lambda found: decode(found.file, voxels=found.voxels, may_be_blank=True))
            usable[label_map.name] = Segmentation(labels, label_map.drawn_on, label_map.inside)
        except Unusable as why:
            unusable[label_map.name] = why.bare()
    mask = usable.pop(BRAIN, None) if recipe.brain == "given" else None
    return _LabelMaps(usable, mask, unusable)


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
    doubts = dict(done.doubts)
    if maps.brain is not None:
        doubts[BRAIN] = maps.brain.volume.warnings
        if not any(facts.brain == "given" for stacks in done.prepared for facts in stacks.facts):
            unusable_maps[BRAIN] = next(
                (each for each in rejected.values() if each.reason is Reason.NO_BRAIN_MASK),
                Unusable(Reason.UNPLACED, f"the {maps.brain.drawn_on}, which gave no stacks"),
            )
    records = tuple(
        MapRecord(each, unusable_maps.get(each.name), each.warnings + doubts.get(each.name, ()))
        for each in session.label_maps
    )
    reasons = [*(row.reason for row in left_out), *(each.reason for each in unusable_maps.values())]
    return SessionStacks(
        session,
        tuple(done.prepared),
        _records(session, done.prepared, records, mask_name=BRAIN if maps.brain is not None else ""),
        (*session.left_out, *left_out),
        records,
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

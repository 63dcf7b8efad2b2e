"""Preparing sessions: their files are read, decoded and made into stacks, within time limits.

What `ingest` and `infer` do to every session, as an ordinary function. The files of the next scans are read meanwhile
(`reading`). A scan that cannot be used is left out
with its reason, and the others go on; a label map that cannot be used is a warning on a scan of the session.

What the bytes of a file are at fault for stays so. What they are not (no permission, a disk that fails, a time limit)
may pass: the session is `passing` then, and whoever keeps it sees to it that it is tried again the next time. An object
store that fails is neither: it raises, since it would fail for every scan.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from bfp.cohorts.reading import Contents, ReadAhead
from bfp.cohorts.sessions import BRAIN, LabelMap, LeftOut, Scan, Session, with_spare
from bfp.errors import Reason, Unusable
from bfp.imaging.nifti import Volume, decode
from bfp.imaging.session import Prepared, PreparedSession, ScanFacts, Segmentation, prepare_session
from bfp.imaging.stacks import Recipe
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
    """The stacks of one session: see `prepare_in_turn`."""
    (done,) = prepare_in_turn([session], recipe=recipe, scan_timeout_s=scan_timeout_s)
    return done


def prepare_in_turn(sessions: Sequence[Session], *, recipe: Recipe, scan_timeout_s: float) -> Iterator[SessionStacks]:
    """The stacks of each session from its files, in the order of the sessions.

    A scan or label map that is not read and decoded in scan_timeout_s is left out, and the others go on without it. So
    long for each of these they may take together to become stacks, where one waits for another, or all are left out.
    A scan that cannot be used gives its place to the next of its duplicates, and the session is prepared anew: it is
    rare, and whether a scan fits its session's grid only shows with the others at hand. One that may be usable the next
    time keeps its place: the store would hold now this one, now that.

    Raises StorageError when a file that discovery saw cannot be fetched, or is another by now.
    """
    sources: list[Scan | LabelMap] = []
    for session in sessions:
        sources += [*session.scans, *session.label_maps]
    ahead = ReadAhead(sources)
    for session in sessions:
        done = _prepare(session, recipe, _Timely(ahead, scan_timeout_s))
        while (other := _with_spares(done)) is not None:
            done = _prepare(other, recipe, _Timely(ahead, scan_timeout_s))
        yield done


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
            return within(began + self.limit_s - time.monotonic(), lambda: how(contents))
        except TimeoutError:
            raise Unusable(Reason.TIMEOUT, f"not read and decoded after {self.limit_s:g} s") from None

    def prepared(self, volumes: Mapping[str, Volume], work: Callable[[], PreparedSession]) -> PreparedSession:
        """What `work` makes of these, by modality; of a session that is too slow nothing."""
        limit_s = self.limit_s * max(len(volumes), 1)
        try:
            return within(limit_s, work)
        except TimeoutError:
            scans = f"{counted(len(volumes), 'scan')} of its session, {self.limit_s:g} s each"
            late = Unusable(Reason.TIMEOUT, f"no stacks after {limit_s:g} s ({scans})")
            return PreparedSession([], dict.fromkeys(volumes, late))


def _prepare(session: Session, recipe: Recipe, timely: _Timely) -> SessionStacks:
    left_out = list(session.left_out)

    def leave_out(scan: Scan, unusable: Unusable) -> None:
        left_out.append(LeftOut(session.key, scan.modality, scan.file.place.uri, unusable.reason, unusable.detail))

    volumes: dict[str, Volume] = {}
    for scan in session.scans:
        try:
            volumes[scan.modality] = timely.decoded(
                scan, lambda found: decode(found.file, voxels=found.voxels, volumes=recipe.volumes)
            )
        except Unusable as unusable:
            leave_out(scan, unusable)

    label_maps: dict[str, Segmentation] = {}
    unusable_maps: dict[str, Unusable] = {}
    for label_map in session.label_maps:
        try:
            # a blank label map is one all the same: it says that there is nothing
            labels = timely.decoded(label_map, lambda found: decode(found.file, voxels=found.voxels, may_be_blank=True))
            label_maps[label_map.name] = Segmentation(labels, label_map.drawn_on)
        except Unusable as unusable:
            unusable_maps[label_map.name] = unusable

    mask = label_maps.pop(BRAIN, None) if recipe.brain == "given" else None
    brain_mask = mask.volume if mask is not None else None
    done = timely.prepared(
        volumes, lambda: prepare_session(volumes, recipe=recipe, segmentations=label_maps, brain_mask=brain_mask)
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

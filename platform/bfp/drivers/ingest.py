"""kind: ingest — cohorts become a slice store.

1. list the cohorts' files: scans are grouped to sessions, sessions to shards
2. each shard that is not committed yet is prepared on one CPU (Ray Data): its scans are read, decoded, registered,
   resampled, windowed and cut into stacks; its files are written, and its commit last
3. what the cohorts say of their sessions (labels) is committed beside it
4. a snapshot makes all that live at once, in place of what these cohorts had before

A run that is stopped or killed loses the shards that were being prepared and repeats no other. A scan that cannot be
used becomes a row of `rejected`; a shard that fails otherwise (the storage, memory, a mistake of ours) fails the run at
its end, with everything else committed and no snapshot taken.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp.cohorts import Session, Shard, plan_shards
from bfp.drivers.inputs import recipe_of, sessions_of, slice_spacing_mm
from bfp.drivers.plan import Plan
from bfp.errors import InputError, Interrupted, JobFailed, Reason
from bfp.imaging import IMAGING_VERSION
from bfp.runs import Run
from bfp.specs.ingest import Ingest
from bfp.storage import Place, place
from bfp.store import layout
from bfp.store.layout import Commit, SegmentationInfo

if TYPE_CHECKING:
    from bfp.imaging.stacks import Recipe
    from bfp.store.summary import Summary

RAY_START_S = 15
WORKER_GB = 0.7  # the most that a worker took for heads at 1 mm, three to a session
POLL_S = 0.2  # how soon a request to stop is noticed
CHOSEN = (Reason.UNWANTED, Reason.DUPLICATE)
"""Reasons that are the user's choice and no fault of a scan: `max_rejected` does not count them."""

Task = Callable[[dict[str, Any]], dict[str, Any]]


# what will be done ----------------------------------------------------------------------------------------------------


def plan(spec: Ingest) -> Plan:
    """Lists the cohorts and looks into the store: whatever is wrong with them is said before anything is written."""
    store, preprocessing = place(spec.store), _preprocessing(spec)
    _segmentations(spec)
    layout.check_same(store, preprocessing)
    sessions = sessions_of(spec.cohorts, spec.preprocessing)
    store.check_writable()
    shards = _shards(spec, sessions)
    committed = layout.committed(store)
    todo = [shard for shard in shards if shard.name not in committed]
    scans, workers = sum(shard.scans for shard in todo), spec.compute.workers or os.cpu_count() or 1
    estimate = _estimate(spec, todo)
    seconds = RAY_START_S + estimate.seconds / workers
    left_out = Counter(row.reason for session in sessions for row in session.left_out)
    latest = layout.latest_snapshot(store)
    rows = [
        (f"cohort {name}", _counted(list(own))) for name, own in groupby(sessions, key=lambda each: each.key.cohort)
    ]
    if left_out:
        rows.append(("left out by name", "; ".join(f"{count} {reason}" for reason, count in left_out.most_common())))
    rows += [
        ("store", f"{store}, " + (f"snapshot {latest.number}" if latest else "new")),
        ("to do", f"{scans:,} scans in {len(todo)} shards; {len(shards) - len(todo)} shards are committed already"),
        ("will write", f"about {estimate.stacks:,} stacks, {estimate.size_bytes / 1e6:,.0f} MB"),
        ("time", f"about {max(1, seconds / 60):,.0f} min with {workers} workers, one CPU and {WORKER_GB} GB each"),
    ]
    figures = {
        "sessions": len(sessions),
        "scans": sum(len(session.scans) for session in sessions),
        "left_out": sum(left_out.values()),
        "shards": len(shards),
        "shards_to_do": len(todo),
        "scans_to_do": scans,
        "workers": workers,
        "stacks_estimated": estimate.stacks,
        "bytes_estimated": estimate.size_bytes,
        "seconds_estimated": round(seconds),
    }
    return Plan(rows=rows, figures=figures, warnings=_warnings(left_out))


class _Estimate(NamedTuple):
    """What preparing shards will come to; `seconds` are those of one CPU."""

    stacks: int
    size_bytes: int
    seconds: float


def _estimate(spec: Ingest, todo: list[Shard]) -> _Estimate:
    """From what heads are like and what was measured on scans with skull and noise, on one core, 1 mm and 224 pixels.

    A scan gives 180 mm of slices. Decoding and resampling one took 0.25 s, registering it 0.5 s; zstd took 0.3 of the
    size of the channels that are not empty, 250 MB of pixels a second.
    """
    sessions = [session for shard in todo for session in shard.sessions if session.scans]
    scans = sum(len(session.scans) for session in sessions)
    slices = round(180 / slice_spacing_mm(spec.preprocessing))
    slice_bytes = spec.preprocessing.size**2
    if spec.preprocessing.stacks.form == "neighbours":
        stacks, filled, registered = slices * scans, 3 * slices * scans, 0
    else:
        stacks, filled, registered = slices * len(sessions), slices * scans, scans - len(sessions)
    if spec.preprocessing.registration == "none":
        registered = 0
    seconds = 0.25 * scans + 0.5 * registered + 3 * slice_bytes * stacks / 250e6
    return _Estimate(stacks, round(0.3 * slice_bytes * filled), seconds)


def _counted(sessions: list[Session]) -> str:
    modalities = Counter(scan.modality for session in sessions for scan in session.scans)
    subjects = len({session.key.subject for session in sessions})
    scans = ", ".join(f"{count:,} {modality}" for modality, count in sorted(modalities.items()))
    return f"{subjects:,} subjects, {len(sessions):,} sessions: {scans}"


def _warnings(left_out: Counter[Reason]) -> list[str]:
    if not left_out[Reason.DANGLING]:
        return []
    return [f"{left_out[Reason.DANGLING]} files are links to nothing; in a DataLad dataset, `datalad get` them first"]


def _preprocessing(spec: Ingest) -> dict[str, Any]:
    """The preprocessing as it stands in store.json."""
    return spec.preprocessing.model_dump(mode="json")


def _shards(spec: Ingest, sessions: list[Session]) -> list[Shard]:
    return plan_shards(
        sessions,
        mean_sessions=spec.sessions_per_shard,
        preprocessing=layout.fingerprint(_preprocessing(spec)),
        version=IMAGING_VERSION,
    )


def _segmentations(spec: Ingest) -> dict[str, dict[str, SegmentationInfo]]:
    """What each cohort's segmentations mean. Raises InputError where two cohorts mean different things by one name."""
    found = {
        cohort.name: {
            each.name: SegmentationInfo(drawn_on=each.drawn_on, classes=each.classes) for each in cohort.segmentations
        }
        for cohort in spec.cohorts
    }
    meanings: dict[str, tuple[str, dict[str, list[int]]]] = {}
    for cohort, own in found.items():
        for name, info in own.items():
            first, classes = meanings.setdefault(name, (cohort, info.classes))
            if classes != info.classes:
                raise InputError(
                    f"segmentation {name} means {classes} in cohort {first} and {info.classes} in {cohort}; "
                    "give the two different names"
                )
    return found


# doing it -------------------------------------------------------------------------------------------------------------


def execute(spec: Ingest, run: Run) -> None:
    """Prepare and commit what is new, take a snapshot, and say what the store holds of these cohorts."""
    from bfp.drivers.ingest_results import results_of
    from bfp.store.reader import SliceStore
    from bfp.store.summary import summarise

    store = place(spec.store)
    run.phase("listing", unit="sessions")
    sessions = sessions_of(spec.cohorts, spec.preprocessing)
    run.progress(len(sessions))
    shards = _shards(spec, sessions)
    layout.make(store, _preprocessing(spec))
    committed = layout.committed(store)

    _prepare_all([shard for shard in shards if shard.name not in committed], spec=spec, run=run)

    run.phase("committing")
    commits = layout.read_commits(store, [shard.name for shard in shards])
    commits += _commit_sessions(store, sessions, _segmentations(spec))
    made = SliceStore.of_commits(store, commits)
    summary = summarise(made)
    too_many = _too_many(summary, spec.max_rejected)
    snapshot = None if too_many else layout.take_snapshot(store, commits, cohorts=[each.name for each in spec.cohorts])

    run.phase("describing")
    results = results_of(spec, run, made, summary, snapshot=snapshot.number if snapshot else None)
    run.result(results.as_json())
    run.note(f"{results.figures['scans']} done, {results.figures['rejected']} rejected")
    if too_many:
        raise JobFailed(too_many)


def prepare_shard(shard: Shard, *, store: Place, recipe: Recipe, scan_timeout_s: float) -> Commit:
    """Prepare the sessions of a shard and commit it: the whole work of one task."""
    from bfp.cohorts.prepare import prepare
    from bfp.store.shards import commit_shard

    return commit_shard(
        store,
        (prepare(session, recipe=recipe, scan_timeout_s=scan_timeout_s) for session in shard.sessions),
        name=shard.name,
        cohort=shard.cohort,
        size_px=recipe.size_px,
        version=IMAGING_VERSION,
    )


def _prepare_all(todo: list[Shard], *, spec: Ingest, run: Run) -> None:
    """Prepare and commit shards on Ray.

    Raises Interrupted when the run is asked to stop, and JobFailed, once all others are done, where a shard was not.
    """
    run.phase("preparing", total=sum(shard.scans for shard in todo), unit="scans")
    task = partial(
        shard_task,
        store=place(spec.store),
        recipe=recipe_of(spec.preprocessing),
        scan_timeout_s=spec.compute.scan_timeout_s,
    )
    unfinished = {shard.name: shard for shard in todo}
    scans = stacks = rejected = 0
    failures: list[str] = []
    rows = on_ray(todo, task=task, workers=spec.compute.workers, retries=spec.compute.retries)
    for done in _unless_stopped(rows, run=run):
        if done["failure"]:
            failures.append(done["failure"])
            continue
        scans += unfinished.pop(done["name"]).scans
        stacks, rejected = stacks + done["stacks"], rejected + done["rejected"]
        shards = f"{len(todo) - len(unfinished)} of {len(todo)}"
        run.progress(scans, shards=shards, stacks=stacks, rejected=rejected)
    if unfinished:
        raise JobFailed(_unfinished(len(unfinished), len(todo), failures))


def _unfinished(unfinished: int, of: int, failures: list[str]) -> str:
    causes = list(dict.fromkeys(failures))
    if lost := unfinished - len(failures):
        causes.append(f"{lost} lost their worker each time, most likely for want of memory: lower compute.workers")
    message = f"{unfinished} of {of} shards could not be prepared; the others are committed: submit again to go on"
    return "\n    ".join([message, *causes])


def on_ray(shards: list[Shard], *, task: Task, workers: int | None, retries: int) -> Iterator[dict[str, Any]]:
    """What `task` returns of each shard, in the order they are done; nothing of one whose worker died each time."""
    if not shards:
        return
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a worker that dies costs its shard only; the caller sees which are missing
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 wants its arguments named, and has no name for this one; its default repeats for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        rows = ray.data.from_items(
            [{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards)
        ).map(task, num_cpus=1, concurrency=workers, max_retries=retries)
    yield from rows.iter_rows()


def shard_task(row: dict[str, Any], *, store: Place, recipe: Recipe, scan_timeout_s: float) -> dict[str, Any]:
    """`prepare_shard` as Ray maps it: name, stacks, rejected, and failure, "" where all went well."""
    shard: Shard = pickle.loads(row["shard"])
    try:
        commit = prepare_shard(shard, store=store, recipe=recipe, scan_timeout_s=scan_timeout_s)
    except Exception as error:  # Ray Data would drop the row and its cause; the driver fails the run with it
        cause = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return {"name": shard.name, "stacks": 0, "rejected": 0, "failure": cause}
    return {"name": shard.name, "stacks": commit.rows("stacks"), "rejected": commit.rows("rejected"), "failure": ""}


def _unless_stopped(rows: Iterable[dict[str, Any]], *, run: Run) -> Iterator[dict[str, Any]]:
    """The rows as they come; raises Interrupted as soon as the run is asked to stop, also while none comes."""
    arrived: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()

    def fetch() -> None:
        try:
            for row in rows:
                arrived.put(row)
            arrived.put(None)
        except BaseException as error:  # raised again where the rows are used
            arrived.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    while True:
        if run.stopping:
            raise Interrupted("stopped: the shards that are committed stay; submit again to go on with the others")
        try:
            row = arrived.get(timeout=POLL_S)
        except queue.Empty:
            continue
        if row is None:
            return
        if isinstance(row, BaseException):
            raise row
        yield row


def _too_many(summary: Summary, max_rejected: float | None) -> str:
    """What to say where more scans are rejected than the spec allows; "" where not."""
    if max_rejected is None:
        return ""
    faulty = sum(row.scans for row in summary.rejected if row.reason not in CHOSEN)
    done = sum(row.scans for row in summary.modalities)
    share = faulty / max(faulty + done, 1)
    if share <= max_rejected:
        return ""
    return (
        f"{faulty} of {faulty + done} scans ({share:.1%}) are rejected, more than max_rejected: {max_rejected:g}; "
        "no snapshot was taken. The report lists them: mend the scans, or raise max_rejected, and submit again"
    )


def _commit_sessions(
    store: Place, sessions: list[Session], segmentations: dict[str, dict[str, SegmentationInfo]]
) -> list[Commit]:
    """What each cohort says of its sessions; files whose name told no subject are none of them."""
    from bfp.store.shards import session_row
    from bfp.store.writer import commit_sessions

    return [
        commit_sessions(
            store,
            [session_row(session) for session in own if session.key.subject],
            cohort=cohort,
            segmentations=segmentations[cohort],
        )
        for cohort, own in groupby(sessions, key=lambda session: session.key.cohort)
    ]

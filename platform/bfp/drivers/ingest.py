"""kind: ingest — cohorts become a slice store.

1. list the cohorts' files: scans are grouped to sessions, sessions to shards
2. each shard that is not committed yet is prepared on one CPU (Ray Data): its scans are read, decoded, registered,
   resampled, windowed and cut into stacks; its files are written, and its commit last
3. what the cohorts say of their sessions (labels) is committed beside it
4. a snapshot makes all that live at once, in place of what these cohorts had before

A run that is stopped or killed loses the shards that were being prepared and repeats no other. A scan that cannot be
used becomes a row of `rejected`; where that may pass (no permission, a disk that fails, the time limit) its shard is
prepared again at the next submit. A shard that fails otherwise (the object store, memory, a mistake of ours) fails the
run at its end, with everything else committed and no snapshot taken.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp.cohorts import Session, Shard, plan_shards
from bfp.cohorts.sessions import Key
from bfp.drivers import sizing
from bfp.drivers.attempts import Lost, attempts
from bfp.drivers.inputs import carried, recipe_of, sessions_of
from bfp.drivers.plan import Capacity, Plan, capacity_here, memory_warnings
from bfp.drivers.preparing import (
    TRIED_AGAIN,
    check_available,
    cost_of,
    estimate_warnings,
    find_brain_program,
    minutes,
    not_done,
    too_many,
    worker_gb,
)
from bfp.drivers.streaming import until_stopped
from bfp.errors import InputError, Interrupted, JobFailed, Reason, StorageError
from bfp.imaging import IMAGING_VERSION
from bfp.memory import SCANS, keep_freed_memory
from bfp.runs import Run
from bfp.specs.ingest import Ingest
from bfp.specs.profile import NO_PROFILE, Profile
from bfp.storage import Place, place, repeats
from bfp.store import layout, turns
from bfp.store.layout import Commit, Numbered, SegmentationInfo
from bfp.words import bytes_text, counted

if TYPE_CHECKING:
    from bfp.imaging.stacks import Recipe

Task = Callable[[dict[str, Any]], dict[str, Any]]

SMALLER = "lower sessions_per_shard, whose files a worker holds beside the session it prepares"


# what will be done ----------------------------------------------------------------------------------------------------


def plan(spec: Ingest, *, capacity: Capacity | None = None, profile: Profile = NO_PROFILE) -> Plan:
    """Lists the cohorts and looks into the store: whatever is wrong with them is said before anything is written.

    capacity: what the target lends; None for this machine.
    """
    check_available(spec.preprocessing, spec.cohorts)
    brain_program = find_brain_program(spec.preprocessing, profile)
    store, preprocessing = place(spec.store), spec.preprocessing.stored(brain_program=brain_program)
    _segmentations(spec)
    layout.check_same(store, preprocessing)
    sessions = sessions_of(spec.cohorts, spec.preprocessing)
    store.check_writable()
    if not store.creates_once():
        raise InputError(
            f"store: {store}: this object store ignores conditional writes (If-None-Match), so of two ingests at once "
            "one could lose the other's snapshot; choose a bucket that heeds them, as on AWS and Ceph, or a disk"
        )
    shards = shards_of(spec, sessions, preprocessing=preprocessing)
    committed = layout.whole(store, [shard.name for shard in shards])
    todo = [shard for shard in shards if shard.name not in committed]
    capacity = capacity or capacity_here()
    estimate = _estimate(spec, todo, cpus=capacity.cpus)
    each_gb = worker_gb(spec.preprocessing)
    left_out = Counter(row.reason for session in sessions for row in session.left_out)
    latest = layout.latest_snapshot(store)
    leaving = _leaving(store, latest, sessions, shards) if latest else {}
    rows = [(f"cohort {name}", _found(list(own))) for name, own in groupby(sessions, key=lambda each: each.key.cohort)]
    segmentations = carried(spec.cohorts, sessions)
    rows += [(f"segmentation {each.segmentation}", each.text) for each in segmentations]
    if left_out:
        rows.append(("left out by name", "; ".join(f"{count} {reason}" for reason, count in left_out.most_common())))
    rows.append(("store", f"{store}, " + (f"snapshot {latest.number}" if latest else "new")))
    rows += [("leaves", f"{counted(len(keys), 'session')} of cohort {name}") for name, keys in leaving.items()]
    done = counted(len(shards) - len(todo), "shard is", "shards are")
    workers = counted(estimate.workers, "worker")
    rows += [
        ("to do", f"{counted(estimate.scans, 'scan')} in {counted(len(todo), 'shard')}; {done} committed already"),
        ("will write", f"about {counted(estimate.stacks, 'stack')}, {bytes_text(estimate.size_bytes)}"),
        ("memory", f"about {estimate.workers * each_gb:.1f} GB: {each_gb:.1f} GB for each of {workers}"),
        ("time", f"{minutes(estimate.seconds)} with {workers}, one CPU each"),
    ]
    figures = {
        "sessions": len(sessions),
        "scans": sum(len(session.scans) for session in sessions),
        "left_out": sum(left_out.values()),
        "leaving": sum(map(len, leaving.values())),
        "shards": len(shards),
        "shards_to_do": len(todo),
        "scans_to_do": estimate.scans,
        "workers": estimate.workers,
        "stacks_estimated": estimate.stacks,
        "bytes_estimated": estimate.size_bytes,
        "seconds_estimated": round(estimate.seconds),
    }
    doubts = _doubts(spec, sessions, left_out)
    doubts += [_leaves(latest, keys, named=True) for keys in leaving.values() if latest]
    doubts += [each.warning for each in segmentations if each.warning]
    doubts += estimate_warnings(spec.preprocessing) + memory_warnings(estimate.workers * each_gb, capacity)
    return Plan(rows=rows, figures=figures, warnings=doubts)


class _Estimate(NamedTuple):
    """What the work will come to."""

    scans: int
    stacks: int
    size_bytes: int
    workers: int
    seconds: float


def _estimate(spec: Ingest, todo: list[Shard], *, cpus: int) -> _Estimate:
    cost = cost_of([session for shard in todo for session in shard.sessions], spec.preprocessing)
    workers = min(spec.compute.workers or cpus, cpus)
    scans = sum(shard.scans for shard in todo)
    told = sizing.ingest(cost, scans=scans, shards=len(todo), size_px=spec.preprocessing.size, workers=workers)
    return _Estimate(
        scans=scans,
        stacks=told.stacks,
        size_bytes=told.size_bytes,
        workers=workers,
        seconds=told.seconds,
    )


def _leaving(store: Place, latest: Numbered, sessions: list[Session], shards: list[Shard]) -> dict[str, list[Key]]:
    """By cohort, the sessions that the snapshot has of it and the listing has not."""
    names = {shard.name for shard in shards}
    cohorts = {session.key.cohort for session in sessions}
    live = [record for record in latest.snapshot.commits if record.cohort in cohorts]
    if all(record.name in names for record in live if record.kind == "shard"):
        return {}  # the usual case, known without a table being read
    from bfp.store.reader import SliceStore

    table = SliceStore.of_commits(store, live).sessions()
    before = {Key(*key) for key in zip(*(table[name].to_pylist() for name in Key._fields), strict=True)}
    gone = sorted(before - {session.key for session in sessions})
    return {name: list(keys) for name, keys in groupby(gone, key=lambda key: key.cohort)}


def _leaves(latest: Numbered, gone: list[Key], *, named: bool) -> str:
    """named: with the first of them, for a terminal; what is kept names nobody."""
    first = f" ({' '.join(filter(None, gone[0][1:]))}, …)" if named else ""
    sessions = counted(len(gone), "session is", "sessions are")
    return (
        f"cohort {gone[0].cohort}: {sessions} in snapshot {latest.number} and not found now{first}, and will be in no "
        "further snapshot: is this the same source, and all of it? Another source needs another name"
    )


def _found(sessions: list[Session]) -> str:
    modalities = Counter(scan.modality for session in sessions for scan in session.scans)
    subjects = len({session.key.subject for session in sessions})
    scans = ", ".join(f"{count:,} {modality}" for modality, count in sorted(modalities.items()))
    return f"{counted(subjects, 'subject')}, {counted(len(sessions), 'session')}: {scans}"


def _doubts(spec: Ingest, sessions: list[Session], left_out: Counter[Reason]) -> list[str]:
    found = []
    if count := left_out[Reason.DANGLING]:
        links = counted(count, "file is a link", "files are links")
        found.append(f"{links} to nothing; in a DataLad dataset, `datalad get` first")
    labelled = {session.key.cohort for session in sessions if session.labels}
    found += [
        f"cohort {cohort.name}: {cohort.labels} speaks of none of its sessions; compare its subjects with those found"
        for cohort in spec.cohorts
        if cohort.labels and cohort.name not in labelled
    ]
    return found


def shards_of(spec: Ingest, sessions: list[Session], *, preprocessing: dict[str, Any] | None = None) -> list[Shard]:
    """The shards that sessions make by this spec; a shard's name follows from both.

    preprocessing: as it stands in store.json, where that tells more than the spec.
    """
    return plan_shards(
        sessions,
        mean_sessions=spec.sessions_per_shard,
        preprocessing=layout.fingerprint(preprocessing or spec.preprocessing.stored()),
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


def execute(spec: Ingest, run: Run, *, profile: Profile = NO_PROFILE) -> None:
    """Prepare and commit what is new, take a snapshot, and say what the store holds of these cohorts."""
    from bfp.drivers.ingest_results import results_of
    from bfp.store.reader import SliceStore
    from bfp.store.summary import summarise

    store = place(spec.store)
    brain_program = find_brain_program(spec.preprocessing, profile)
    preprocessing = spec.preprocessing.stored(brain_program=brain_program)
    run.phase("listing", unit="sessions")
    sessions = sessions_of(spec.cohorts, spec.preprocessing)
    run.progress(len(sessions))
    shards = shards_of(spec, sessions, preprocessing=preprocessing)
    layout.make(store, preprocessing)
    names = [shard.name for shard in shards]
    layout.renew(store, names)
    _wait_for_prunes(store, run)
    committed = layout.whole(store, names)

    todo = [shard for shard in shards if shard.name not in committed]
    made_now = _prepare_all(todo, spec=spec, run=run, brain_program=brain_program)
    if again := sum(commit != shard for shard, commit in made_now.items()):
        run.warn(f"scans of {counted(again, 'shard')} {TRIED_AGAIN}")

    run.phase("committing")
    kept = [made_now.get(name, name) for name in names]
    kept += _commit_sessions(store, sessions, _segmentations(spec))
    made = SliceStore.of_commits(store, _all_whole(store, kept))
    try:
        summary = summarise(made)
    except StorageError:
        _all_whole(store, kept)
        raise
    rejected, used = {row.reason: row.scans for row in summary.rejected}, sum(row.scans for row in summary.modalities)
    refused = too_many(rejected, used=used, allowed=spec.max_rejected, meanwhile="no snapshot was taken")
    if not used:
        scans = counted(sum(rejected.values()), "scan")
        refused = f"of {scans} none could be used, and no snapshot was taken; the report says why"
    if not refused and (latest := layout.latest_snapshot(store)):
        for keys in _leaving(store, latest, sessions, shards).values():
            run.warn(_leaves(latest, keys, named=False))
    snapshot = None if refused else _take_snapshot(spec, kept, run)

    run.phase("describing")
    results = results_of(spec, run, made, summary, snapshot=snapshot.number if snapshot else None)
    run.result(results.as_json())
    run.note(f"{results.figures['scans']} done, {results.figures['rejected']} rejected")
    if refused:
        raise JobFailed(refused)


def _take_snapshot(spec: Ingest, names: list[str], run: Run) -> Numbered:
    """The snapshot of the commits of these names, when it is its turn. Raises JobFailed where one is gone by then."""
    store = place(spec.store)
    with turns.marked(store, "ingest") as marker:
        _wait_for_prunes(store, run, keep=marker.keep)
        commits = _all_whole(store, names)
        marker.keep()
        return layout.take_snapshot(store, commits, cohorts=[each.name for each in spec.cohorts])


def _wait_for_prunes(store: Place, run: Run, *, keep: Callable[[], None] = lambda: None) -> None:
    """As `store.turns` wants it; `keep` is called now and then. Raises Interrupted when the run is asked to stop."""
    for waits, _ in enumerate(turns.while_pruned(store)):
        keep()
        if not waits:
            run.note("waiting for a prune of the store to end")
        if run.stopping:
            raise Interrupted("stopped, while a prune of the store was going on; submit again to go on")
        time.sleep(turns.POLL_S)


def _all_whole(store: Place, names: list[str]) -> list[Commit]:
    """The commits of these names. Raises JobFailed where one is gone, or a part of it."""
    whole = layout.whole(store, names)
    if gone := set(names) - whole.keys():
        raise JobFailed(
            f"a prune of the store took {counted(len(gone), 'commit')}, or parts of it, while this ran; submit again, "
            "which makes anew what is missing"
        )
    return [whole[name] for name in names]


def prepare_shard(shard: Shard, *, store: Place, recipe: Recipe, scan_timeout_s: float) -> Commit:
    """Prepare the sessions of a shard and commit it: the whole work of one task.

    Ray begins a task anew whose worker died, also right after its commit.
    """
    from bfp.cohorts.prepare import prepare_in_turn
    from bfp.store.shards import commit_shard

    if (stands := layout.standing(store, shard.name)) is not None:
        return stands
    return commit_shard(
        store,
        prepare_in_turn(shard.sessions, recipe=recipe, scan_timeout_s=scan_timeout_s),
        name=shard.name,
        cohort=shard.cohort,
        size_px=recipe.size_px,
        version=IMAGING_VERSION,
    )


def _prepare_all(todo: list[Shard], *, spec: Ingest, run: Run, brain_program: list[str]) -> dict[str, str]:
    """Prepare and commit shards on Ray; of each, the name of its commit (`store.shards` says when it is another).

    Raises Interrupted when the run is asked to stop, and JobFailed, once all others are done, where a shard was not.
    """
    run.phase("preparing", total=sum(shard.scans for shard in todo), unit="scans")
    limit_s = spec.compute.scan_timeout_s
    recipe = recipe_of(spec.preprocessing, brain_program=brain_program, scan_timeout_s=limit_s)
    task = partial(shard_task, store=place(spec.store), recipe=recipe, scan_timeout_s=limit_s)
    scans_of = {shard.name: shard.scans for shard in todo}
    commits: dict[str, str] = {}
    scans = stacks = rejected = repeated = 0
    failures: list[str] = []
    lost = Lost()
    rows = on_ray(todo, task=task, workers=spec.compute.workers, retries=spec.compute.retries)
    for done in until_stopped(rows, lambda: run.stopping):
        if isinstance(done, Lost):
            lost = done
            continue
        repeated += done["repeats"]
        if done["failure"]:
            failures.append(done["failure"])
            continue
        commits[done["name"]] = done["commit"]
        scans += scans_of[done["name"]]
        stacks, rejected = stacks + done["stacks"], rejected + done["rejected"]
        shards = f"{len(commits)} of {len(todo)}"
        repeats = {"repeats": repeated} if repeated else {}
        run.progress(scans, shards=shards, stacks=stacks, rejected=rejected, **repeats)
    if repeated:
        run.warn(f"{counted(repeated, 'request')} to object storage failed and were made again")
    if run.stopping:
        raise Interrupted(f"stopped after {len(commits)} of {counted(len(todo), 'shard')}; submit again to go on")
    if message := not_done(len(todo), failures, lost, unit="shard", verb="prepared", smaller=SMALLER):
        raise JobFailed(message)
    return commits


def on_ray(shards: list[Shard], *, task: Task, workers: int | None, retries: int) -> Iterator[dict[str, Any] | Lost]:
    """What `task` returns of each shard, as they are done, and how many are lost: their worker died each time.

    task: takes a row with the pickled `shard`, returns one with its `name`. retries: of a shard whose worker died.
    """
    if shards:
        todo = {shard.name: shard for shard in shards}
        once = partial(_once_on_ray, task)
        yield from attempts(todo, once, name_of=lambda row: str(row["name"]), workers=workers, retries=retries)


def _once_on_ray(task: Task, shards: list[Shard], workers: int | None) -> Iterator[dict[str, Any]]:
    import ray.data
    from ray.util.annotations import RayDeprecationWarning

    context = ray.data.DataContext.get_current().copy()
    context.max_errored_blocks = -1  # a worker that dies costs its shard only; `attempts` sees which are missing
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray 2.60 wants its arguments named, and has no name for this one; by default it repeats for ever.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        rows = ray.data.from_items(
            [{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards)
        ).map(task, num_cpus=1, concurrency=workers, max_retries=0)  # `attempts` says why
    yield from rows.iter_rows()


def shard_task(row: dict[str, Any], *, store: Place, recipe: Recipe, scan_timeout_s: float) -> dict[str, Any]:
    """`prepare_shard` as Ray maps it: name, commit, stacks, rejected, failure, "" where all went well, and repeats."""
    keep_freed_memory(**SCANS)
    shard: Shard = pickle.loads(row["shard"])
    before = repeats()
    done = {"name": shard.name, "commit": "", "stacks": 0, "rejected": 0, "failure": "", "repeats": 0}
    try:
        commit = prepare_shard(shard, store=store, recipe=recipe, scan_timeout_s=scan_timeout_s)
    except Exception as error:  # Ray Data would drop the row and its cause; the driver fails the run with it
        cause = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        return {**done, "failure": cause, "repeats": repeats() - before}
    stacks, rejected = commit.rows("stacks"), commit.rows("rejected")
    return {**done, "commit": commit.name, "stacks": stacks, "rejected": rejected, "repeats": repeats() - before}


def _commit_sessions(
    store: Place, sessions: list[Session], segmentations: dict[str, dict[str, SegmentationInfo]]
) -> list[str]:
    """Commit what each cohort says of its sessions, and return the names of the commits.

    Files whose name told no subject are no sessions.
    """
    from bfp.store.shards import session_row
    from bfp.store.writer import commit_sessions

    return [
        commit_sessions(
            store,
            [session_row(session) for session in own if session.key.subject],
            cohort=cohort,
            segmentations=segmentations[cohort],
        ).name
        for cohort, own in groupby(sessions, key=lambda session: session.key.cohort)
    ]

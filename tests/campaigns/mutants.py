"""Hostile and damaged files by the ten thousand: each ends in stacks or in a rejected row whose reason is true.

    python -m tests.campaigns.mutants [--count 10000] [--seed 0] [--only MUTATION] [FILE...]

Every mutation (`mutations`) is applied to seeds drawn from made scans and the FILEs given, and each mutant is a
session of its own in a cohort that a glob finds. A batch, one for each mutation, goes the way of ingest (discovery,
preparation, commit to a store) in a process of its own whose memory is limited, so that a crash is noticed and told. Of
ten mutants one is registered onto a good scan, and five have stacks of neighbouring slices.

Broken promises are: an exception or a warning of numpy's; a process that dies or hangs; an outcome that is not true of
the mutant; a good scan beside it that is lost; more than LIMIT_S of CPU for a session, or LIMIT_MB of memory for a
batch; a store whose rows say anything else; a file outside the store: in the working directory, the folder for
temporary files or any of the DEPTH folders above the store, which are the batch's own. Prints a line for each mutation,
with the slowest session by CPU time and by the clock (which what else the machine does prolongs); exits 1 where a
promise was broken.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bfp.cohorts import Source, discover
from bfp.cohorts.prepare import SessionStacks, prepare
from bfp.errors import Reason
from bfp.imaging.stacks import Recipe
from bfp.storage import Place
from bfp.store import layout
from bfp.store.reader import SliceStore
from bfp.store.shards import commit_shard
from tests.campaigns.mutations import MUTATIONS, SHAPE, SPACING_MM, STACKS, Mutant, Outcome, Seed, seed_of, seeds
from tests.cohorts.makers import RECIPE, write_scan

LIMIT_S = 2.0
LIMIT_MB = 256
HANGS_S = 60
DEPTH = 6  # more than any `..` of a mutant's name leads up
_ADDRESS_SPACE = 3 << 30  # on top of what the process has when it begins; threads reserve much that they never touch
_PATTERN = r"/(?P<subject>\d+)/(?P<modality>T1w|FLAIR)/[^/]*\Z"

MODALITIES = replace(RECIPE, register="rigid")
NEIGHBOURS = replace(RECIPE, form="neighbours", channels=("", "", ""), modalities=("T1w",), gap_mm=9.0)


class Task(NamedTuple):
    """One mutant as a session: the modality that is damaged, and how it is prepared."""

    number: int
    modality: str
    recipe: Recipe
    admissible: frozenset[Outcome]


class Told(NamedTuple):
    """What became of a session: of its damaged scan and of the others."""

    number: int
    outcome: Outcome
    others: tuple[Outcome, ...]
    cpu_s: float
    wall_s: float


@dataclass(slots=True)
class Tally:
    """What a batch came to."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    slowest_s: float = 0.0  # of CPU time
    slowest_wall_s: float = 0.0
    peak_mb: float = 0.0
    broken: list[str] = field(default_factory=list)


# making ---------------------------------------------------------------------------------------------------------------


def make(folder: Path, mutation: str, *, number: int, seed: int, among: Sequence[Seed]) -> Task:
    """Write one mutant to `folder`/number/modality/; its seed follows from the mutation, the number and the seed."""
    draw = np.random.default_rng([seed, zlib.crc32(mutation.encode()), number])
    mutant = MUTATIONS[mutation](among[int(draw.integers(len(among)))], draw)
    kind = 1 if mutant.volumes == "each" else number % 10  # which goes with neighbours alone
    modality = "FLAIR" if kind == 0 else "T1w"
    if kind == 0:
        write_scan(folder / str(number) / "T1w/good.nii", shape=SHAPE, spacing_mm=SPACING_MM, seed=1)
    at = folder / str(number) / modality
    at.mkdir(parents=True)
    for name, data in mutant.files.items():
        (at / name).write_bytes(data)
    recipe = replace(NEIGHBOURS if kind % 2 else MODALITIES, volumes=mutant.volumes)
    return Task(number, modality, recipe, _told_of(mutant, registered=kind == 0))


def _told_of(mutant: Mutant, *, registered: bool) -> frozenset[Outcome]:
    """A scan that is not the reference need not have slices of its own, but may not be found to overlap it."""
    if registered and Reason.NO_SLICES in mutant.admissible:
        return mutant.admissible | {Reason.REGISTRATION}
    return mutant.admissible


# running --------------------------------------------------------------------------------------------------------------


def ingest(cohort: Path, store: Place, tasks: Mapping[int, Task], tell: Callable[[Told], None]) -> None:
    """Discover the mutants, prepare and commit them, as `ingest` does; tells what became of each as it is known."""
    left_out: list[str] = []

    def prepared() -> Iterator[SessionStacks]:
        source = Source("mutants", "glob", Place(f"{cohort}/*/*/*"), pattern=_PATTERN)
        for session in discover(source, wanted=("T1w", "T2w", "FLAIR")):
            task = tasks[int(session.key.subject)]
            cpu, wall = time.process_time(), time.perf_counter()
            pieces = list(prepare(session, recipe=task.recipe, scan_timeout_s=HANGS_S / 3))
            tell(_outcome_of(pieces, task, cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - wall))
            left_out.extend(row.uri for piece in pieces for row in piece.left_out)
            yield from pieces

    layout.make(store, {"size": RECIPE.size_px})
    commit = commit_shard(store, prepared(), name="a", cohort="mutants", size_px=RECIPE.size_px, version=0)
    rejected = SliceStore.of_commits(store, [commit]).rejected().to_pylist()
    assert [row["uri"] for row in rejected] == left_out
    assert all(row["reason"] in set(Reason) and row["detail"] for row in rejected)


def _outcome_of(pieces: list[SessionStacks], task: Task, *, cpu_s: float, wall_s: float) -> Told:
    outcomes: dict[str, Outcome] = {row.modality: row.reason for piece in pieces for row in piece.left_out}
    outcomes |= {record.scan.modality: STACKS for piece in pieces for record in piece.scans}
    own = outcomes.pop(task.modality)
    return Told(task.number, own, tuple(outcomes.values()), cpu_s, wall_s)


def _in_a_process_of_its_own(folder: Path, tasks: Mapping[int, Task], replies: Connection) -> None:
    """`ingest` with numpy's warnings as errors and little memory; sends each Told, then the peak in MB or a text."""
    warnings.simplefilter("error", RuntimeWarning)
    for name in ("cwd", "tmp"):
        (outermost(folder) / name).mkdir()
    os.chdir(outermost(folder) / "cwd")
    tempfile.tempdir = os.environ["TMPDIR"] = str(outermost(folder) / "tmp")
    # What every process needs once is no mutant's doing: a good session goes first.
    ingest(
        folder / "good", Place(f"{folder}/good-store"), {0: Task(0, "FLAIR", MODALITIES, frozenset())}, lambda _: None
    )
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + _ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = peak_mb()
    try:
        ingest(folder / "cohort", Place(f"{folder}/store"), tasks, replies.send)
    except BaseException:
        replies.send(traceback.format_exc())
    replies.send(peak_mb() - before)


def peak_mb() -> float:
    """The most memory that this process has held."""
    if sys.platform == "linux":  # where getrusage begins with what the parent held
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def judge(told: Told, task: Task) -> str:
    """Which promise it broke; "" where none."""
    if told.outcome not in task.admissible:
        return f"became {told.outcome!r}; true would be {', '.join(map(repr, sorted(task.admissible)))}"
    if any(other != STACKS for other in told.others):
        return f"the good scan beside it became {told.others}"
    if told.cpu_s > LIMIT_S:
        return f"took {told.cpu_s:.1f} s of CPU"
    return ""


def outermost(folder: Path) -> Path:
    """The uppermost folder in which strays are looked for."""
    return folder.parents[DEPTH - 1]


def run_batch(empty: Path, mutation: str, *, numbers: Sequence[int], seed: int, among: Sequence[Seed]) -> Tally:
    """Make the mutants of these numbers below an empty folder, let a process ingest them, and judge what it tells."""
    tally, folder = Tally(), empty.joinpath(*"abcdef"[:DEPTH])
    assert outermost(folder) == empty, folder
    tasks = {number: make(folder / "cohort", mutation, number=number, seed=seed, among=among) for number in numbers}
    for modality in ("T1w", "FLAIR"):
        write_scan(folder / f"good/0/{modality}/good.nii", shape=SHAPE, spacing_mm=SPACING_MM)
    before = files_below(empty)

    spawn = multiprocessing.get_context("spawn")
    replies, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_in_a_process_of_its_own, args=(folder, tasks, theirs))
    process.start()
    theirs.close()
    waiting = sorted(tasks, key=str)  # sessions are prepared in the order of their keys
    for reply in _replies(replies, process.kill):
        match reply:
            case Told() as told:
                waiting.remove(told.number)
                tally.outcomes[told.outcome] += 1
                tally.slowest_s = max(tally.slowest_s, told.cpu_s)
                tally.slowest_wall_s = max(tally.slowest_wall_s, told.wall_s)
                if wrong := judge(told, tasks[told.number]):
                    tally.broken.append(f"{mutation} {told.number}: {wrong}")
            case float() as peak:
                tally.peak_mb = peak
            case str() as text:
                tally.broken.append(f"{mutation}, {waiting[:1] or 'the commit'}: {text}")
    process.join()
    if process.exitcode:
        cause = signal.Signals(-process.exitcode).name if process.exitcode < 0 else f"exit {process.exitcode}"
        tally.broken.append(f"{mutation}, {waiting[:1] or 'the commit'}: the process ended with {cause}")
    elif waiting:
        tally.broken.append(f"{mutation}: nothing was told of {waiting}")
    if tally.peak_mb > LIMIT_MB:
        tally.broken.append(f"{mutation}: {tally.peak_mb:.0f} MB of memory")
    if found := strays(folder, before):
        tally.broken.append(f"{mutation}: files outside the store: {found}")
    return tally


def _replies(replies: Connection, kill: Callable[[], None]) -> Iterator[object]:
    """What a process sends until it ends; it is killed where it sends nothing for long."""
    while True:
        if not replies.poll(HANGS_S):
            kill()
        try:
            yield replies.recv()
        except EOFError:
            return


def strays(folder: Path, before: set[str]) -> list[str]:
    """The files outside the stores of a batch that were not there before."""
    empty = outermost(folder)
    stores = tuple(f"{(folder / name).relative_to(empty)}/" for name in ("store", "good-store"))
    return sorted(file for file in files_below(empty) - before if not file.startswith(stores))


def files_below(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}


# printing -------------------------------------------------------------------------------------------------------------


def line(mutation: str, tally: Tally) -> str:
    outcomes = ", ".join(f"{count} {outcome.partition(' (')[0]}" for outcome, count in tally.outcomes.most_common())
    count = tally.outcomes.total()
    slowest = f"{1000 * tally.slowest_s:>6.0f} ms {1000 * tally.slowest_wall_s:>6.0f} ms"
    return f"{mutation:<28} {count:>6} {slowest} {tally.peak_mb:>5.0f} MB  {outcomes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=MUTATIONS, metavar="MUTATION")
    given = parser.parse_args()
    among = [*seeds(), *(seed_of(file.name, file.read_bytes()) for file in given.files)]
    chosen = [given.only] if given.only else list(MUTATIONS)
    each = -(-given.count // len(chosen))
    print(f"{each} mutants by each of {len(chosen)} mutations, of {len(among)} seeds, seed {given.seed}", flush=True)
    print(f"{'mutation':<28} {'count':>6} {'CPU':>9} {'clock':>9} {'peak':>8}  outcomes")
    whole, began = Tally(), time.monotonic()
    for mutation in chosen:
        folder = Path(tempfile.mkdtemp(prefix="bfp-mutants-"))
        try:
            tally = run_batch(folder, mutation, numbers=range(each), seed=given.seed, among=among)
        finally:
            shutil.rmtree(folder)
        print(line(mutation, tally), flush=True)
        for broken in tally.broken:
            print(f"    BROKEN {broken}", flush=True)
        whole.outcomes += tally.outcomes
        whole.slowest_s = max(whole.slowest_s, tally.slowest_s)
        whole.slowest_wall_s = max(whole.slowest_wall_s, tally.slowest_wall_s)
        whole.peak_mb = max(whole.peak_mb, tally.peak_mb)
        whole.broken += tally.broken
    print(line("all", whole))
    print(f"{len(whole.broken)} promises broken in {time.monotonic() - began:.0f} s")
    sys.exit(bool(whole.broken))


if __name__ == "__main__":
    main()

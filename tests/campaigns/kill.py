"""`kill -9` at random moments of `bfp submit`, then the same submit: nothing is lost and nothing differs.

    python -m tests.campaigns.kill FOLDER [--kills 100] [--seed 0] [--jobs ingest infer] [--victims driver raylet]

Makes a demo cohort in FOLDER and runs the demo's ingest and pretrain once undisturbed. Each round then runs both
again, killed one to five times at moments drawn over the whole of an undisturbed run, from the first import to the
report; what is killed is drawn too: the driver, one of its Ray workers that is at work, or its raylet. Rounds go on
until so many kills hit; a moment that came after the end is none.

The job `pretrain-s3` is the pretraining with its run in a Ceph gateway on this machine, whose answers are slow, and a
checkpoint every CHECKPOINT_EVERY steps. Most of its kills wait for a moment at which a checkpoint's upload has begun;
those after which files of a step stand without its marker are counted.

The job `infer` takes a model with random weights over INFERRED small sessions, whose rows are kept in parts. In the end
each session must be in the table once, with the probability of the undisturbed run, and in one part alone: what was
kept is not done again.

At the end of a round `bfp store prune` is run, as if an hour later, which must leave the store as the undisturbed one,
byte for byte, and no part of a shard that was committed may have been written again meanwhile, within a submit or by a
later one; the encoder, the last checkpoint's tensors and the losses must be equal. Prints a line a round, and whom the
kills hit; exits 1 where anything differed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from bfp.cli.demo import places
from bfp.demo.cohort import make_cohort
from bfp.demo.plan import Groups
from bfp.runs import RunFolder
from bfp.storage import Place, place
from bfp.words import counted
from tests.ceph import gateway, in_environment
from tests.conftest import CHECKOUT
from tests.faults import Fault, FaultProxy
from tests.inference.makers import make_model, write_subject
from tests.processes import below

BFP = Path(sys.executable).parent / "bfp"
SUBJECTS = Groups(6, 6, 2)
VICTIMS = ("driver", "worker", "raylet")
LATE = "after the end"
TRAINS = b"ray::RayTrainWorker"
AT_WORK = {"ingest": b"ray::Map(shard_task)", "infer": b"ray::Map", "pretrain": TRAINS, "pretrain-s3": TRAINS}
"""How the title of a Ray worker begins while it does the job's work; other `ray::` processes idle, or serve Ray."""
INFERRED = 400  # sessions: six parts
LOOKED_EVERY_S = 0.05  # at the store: a shard takes longer
PRETRAIN_STEPS, CHECKPOINT_EVERY = 60, 10
BUCKET = "bfp-kill"
INTO_AN_UPLOAD = 0.8  # of the kills of pretrain-s3
GIVES_UP_S = 300  # a submit that lost its raylet or a worker has ended by then, done or failed


def command(kind: str, base: Path, *, name: str, store: str) -> list[str]:
    """`bfp submit` of one of the demo's specs, under a name and with a store of its own."""
    if kind == "infer":
        return [str(BFP), "submit", str(base / "infer.yaml"), f"--name={name}"]
    spec = kind.removesuffix("-s3")
    changes = [*places(spec, str(base)), f"name={name}", f"store='{base / store}'", f"output='{runs(kind, base)}'"]
    if spec == "pretrain":
        changes += ["train.epochs=1", f"train.steps_per_epoch={PRETRAIN_STEPS}"]
        changes += [f"train.checkpoint_every={CHECKPOINT_EVERY}"]
        if kind != spec:  # what is compared needs no probe, and checkpoints no large batches
            changes += ["probe=null", "train.batch_size=8", "compute.cpus_per_worker=1"]
    else:
        changes += ["sessions_per_shard=2"]
    return [str(BFP), "submit", f"{CHECKOUT}/jobs/demo/{spec}.yaml", *(f"--set={change}" for change in changes)]


def runs(kind: str, base: Path) -> Place:
    """Where the runs of a job stand."""
    return place(f"s3://{BUCKET}/runs" if kind.endswith("-s3") else str(base / "runs"))


def finish(line: Sequence[str]) -> float:
    """Run it to its end; returns the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return time.monotonic() - began


class Kill(NamedTuple):
    """Which process was killed, or LATE where there was none left, and whether that cut an upload short."""

    victim: str
    in_upload: bool


class Uploads:
    """The checkpoints of a run that are on their way: of which files stand, and no marker."""

    def __init__(self, run: Place) -> None:
        self._folder = run / "checkpoints"

    def begun(self) -> set[tuple[str, str, float]]:
        """Their files, each with what changes when it is written again."""
        files = list(self._folder.files()) if self._folder.folders() else []
        marked = {entry.place.name.removesuffix(".json") for entry in files if entry.place.name.endswith(".json")}
        return {
            (entry.place.uri, entry.etag, entry.modified_s)
            for entry in files
            if entry.place.parent.name.startswith("step-") and entry.place.parent.name not in marked
        }


def kill(
    line: Sequence[str],
    victim: str,
    *,
    at_work: bytes,
    after_s: float,
    draw: random.Random,
    uploads: Uploads | None = None,
    into_upload: bool = False,
) -> Kill:
    """Start it and kill a process of it after so many seconds, and then not before an upload has begun (into_upload).

    Where there is no such process (Ray is not up yet, or no worker is at work) it is the driver.
    """
    left = uploads.begun() if uploads else set()
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        while uploads and into_upload and process.poll() is None and not uploads.begun() - left:
            time.sleep(0.02)
        there = list(descendants(process.pid, at_work=at_work))
        workers = [pid for pid, name in there if name == "worker"]
        found = sorted(pid for pid, name in there if name == victim)
        killed, pid = (victim, draw.choice(found)) if found else ("driver", process.pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            killed = LATE
        # a worker that outlives its driver may commit what the next submit has begun: that is no shard done again
        dead = [pid] if killed == "worker" else workers
        until = time.monotonic() + GIVES_UP_S
        while time.monotonic() < until and any(title_of(pid).startswith(at_work) for pid in dead):
            time.sleep(0.02)
        cut = killed != LATE and uploads is not None and bool(uploads.begun() - left)
        process.wait(GIVES_UP_S)
        while time.monotonic() < until and any(title_of(pid).startswith(at_work) for pid in workers):
            time.sleep(0.1)
        return Kill(killed, cut)
    return Kill(LATE, False)


def descendants(root: int, *, at_work: bytes) -> Iterator[tuple[int, str]]:
    """The processes below a driver that are Ray workers at work or its raylet (Linux)."""
    for pid in below(root) - {root}:
        title = title_of(pid)
        if title.startswith(at_work):
            yield pid, "worker"
        elif title.endswith(b"/raylet"):
            yield pid, "raylet"


def title_of(pid: int) -> bytes:
    """What a process calls itself; b"" where it is gone."""
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().partition(b"\0")[0]
    return b""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


class Watch:
    """Looks at a store all the time, and keeps which parts of committed shards were written again.

    Commits are only ever added, and what is done again writes its parts: each is known by its file and time since its
    commit was first seen.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: set[Path] = set()
        self._written: dict[Path, tuple[int, int]] = {}
        self._ended = threading.Event()
        self.again: list[str] = []

    def look(self) -> None:
        for file in sorted(set((self._store / "commits").glob("*.json")) - self._known):
            self._known.add(file)
            commit = json.loads(file.read_text())
            parts = [self._store / part["file"] for part in commit["parts"] if commit["kind"] == "shard"]
            self._written |= {part: _identity(part) for part in parts}
        for part, before in self._written.items():
            if (now := _identity(part)) != before:
                self._written[part] = now
                self.again.append(f"{part.relative_to(self._store)} written again")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Until the end of the block, in a thread of its own."""

        def go() -> None:
            while not self._ended.wait(LOOKED_EVERY_S):
                self.look()

        thread = threading.Thread(target=go)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self.look()


def _identity(part: Path) -> tuple[int, int]:
    """What changes whenever a file is written or made to count as written; (0, 0) where it is gone."""
    with suppress(FileNotFoundError):
        found = part.stat()
        return found.st_ino, found.st_mtime_ns
    return 0, 0


def pruned(store: Path) -> int:
    """Run `bfp store prune` as if an hour later, without any grace; returns how many files it removed."""
    for file in store.rglob("*"):
        if file.is_file():
            now = file.stat()
            os.utime(file, (now.st_atime - 3600, now.st_mtime - 3600))
    line = [str(BFP), "store", "prune", str(store), "--older-than=30m", "--yes", "--json"]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}\nended with {done.returncode}\n{done.stderr}")
    return int(json.loads(done.stdout)["removed_files"])


def make_inference(base: Path) -> None:
    """The sessions, the model and the spec of the job `infer`."""
    for number in range(INFERRED):
        write_subject(base / "inferred", f"{number:03d}", modalities=("T1w",), seed=1)
    make_model(base / "model", shown=("T1w",))
    spec = {
        "kind": "infer",
        "name": "infer",
        "output": str(base / "runs"),
        "model": str(base / "model"),
        "cohorts": [{"name": "inferred", "bids": str(base / "inferred")}],
    }
    (base / "infer.yaml").write_text(json.dumps(spec))


def inferred(run: Path) -> dict[str, object]:
    """The probability of each session, and those that stand in the table or in parts more than once, or in no part."""
    table = pq.read_table(run / "predictions" / "predictions.parquet").to_pylist()
    kept = [pq.read_table(part)["subject"].to_pylist() for part in (run / "predictions").glob("part-*.parquet")]
    in_table, in_parts = (Counter(names) for names in ([row["subject"] for row in table], itertools.chain(*kept)))
    return {
        "probabilities": {row["subject"]: round(row["prob_AD"], 4) for row in table},
        "in the table more than once": [name for name, count in in_table.items() if count > 1],
        "in one part alone": sorted(in_parts.items()),
    }


def trained(run: Place) -> dict[str, object]:
    """What a pretraining came to: the encoder's bytes, the checkpoint's tensors by hash, the losses by step."""
    marker = max(name for name in (run / "checkpoints").names() if name.endswith(".json"))
    files = json.loads((run / "checkpoints" / marker).read())["files"]
    return {
        "encoder": (run / "model/model.safetensors").read(),
        "checkpoint": (marker, {name: fact for name, fact in files.items() if name != ".metadata"}),
        "losses": sorted((row["step"], row["value"]) for row in RunFolder(run).metrics() if row["name"] == "loss"),
    }


def differing(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=tuple(AT_WORK), default=["ingest", "pretrain"])
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    given = parser.parse_args()
    with ExitStack() as stack:
        behind: list[str] = []
        if "pretrain-s3" in given.jobs:
            behind = ["env", f"AWS_ENDPOINT_URL={stack.enter_context(slow_gateway(given.folder.resolve()))}"]
        sys.exit(campaign(given, behind=behind) > 0)


@contextmanager
def slow_gateway(folder: Path) -> Iterator[str]:
    """A gateway that this process asks itself, and before it a proxy that answers slowly: its endpoint."""
    import s3fs

    with gateway(folder / "ceph") as made, in_environment(made.environment()):
        s3fs.S3FileSystem().mkdir(BUCKET)
        proxy = FaultProxy(made.endpoint, hold_s=60)
        proxy.plan = lambda number: Fault.SLOW
        with proxy.serving():
            yield proxy.endpoint


def campaign(given: argparse.Namespace, *, behind: list[str]) -> int:
    """How many results differ. behind: what the commands that need object storage begin with."""
    base, draw = given.folder.resolve(), random.Random(given.seed)
    make_cohort(base / "cohort", subjects=SUBJECTS, seed=given.seed, workers=2, progress=lambda done, total: None)

    store_of = {kind: "store-{}" if kind == "ingest" else "store-undisturbed" for kind in AT_WORK}

    def line_of(kind: str, number: str, *, store: str) -> list[str]:
        line = command(kind, base, name=f"{kind}-{number}", store=store)
        return [*behind, *line] if kind.endswith("-s3") else line

    lasts_s: dict[str, float] = {}
    expected: dict[str, dict[str, object]] = {}
    if "infer" in given.jobs:
        make_inference(base)
    needed = [] if set(given.jobs) == {"infer"} else ["ingest"]
    for kind in (*needed, *(kind for kind in given.jobs if kind != "ingest")):
        lasts_s[kind] = finish(line_of(kind, "undisturbed", store="store-undisturbed"))
        expected[kind] = outcome(kind, base, "undisturbed")
        print(f"{kind}, undisturbed: {lasts_s[kind]:.0f} s", flush=True)

    kills: Counter[str] = Counter()
    number = bad = leftovers = in_uploads = 0
    while kills.total() - kills[LATE] < given.kills:
        number += 1
        for kind in given.jobs:
            line = line_of(kind, str(number), store=store_of[kind].format(number))
            uploads = Uploads(runs(kind, base) / f"{kind}-{number}") if kind.endswith("-s3") else None
            killed, watch = list[str](), Watch(base / f"store-{number}")
            with watch.watching():
                for _ in range(draw.randint(1, 5)):
                    into_upload = uploads is not None and draw.random() < INTO_AN_UPLOAD
                    # what waits for an upload must leave one to wait for
                    moment = draw.uniform(0.5, (0.5 if into_upload else 1.1) * lasts_s[kind])
                    victim, in_upload = kill(
                        line,
                        draw.choice(given.victims),
                        at_work=AT_WORK[kind],
                        after_s=moment,
                        draw=draw,
                        uploads=uploads,
                        into_upload=into_upload,
                    )
                    kills[victim] += 1
                    in_uploads += in_upload
                    when = f"at {moment:.1f} s" + " or later, in an upload" * in_upload
                    killed += [f"{victim} {when}"] if victim != LATE else []
                last_s = finish(line)
            left = 0 if kind == "infer" else pruned(base / store_of[kind].format(number))
            leftovers += left
            wrong = differing(outcome(kind, base, str(number)), expected[kind]) + watch.again
            bad += bool(wrong)
            said = f"DIFFERS: {', '.join(wrong)}" if wrong else "equal"
            print(
                f"round {number} {kind}: {'; '.join(killed) or 'none in time'}; then {last_s:.0f} s; "
                f"{counted(left, 'file')} pruned: {said}",
                flush=True,
            )
    hits = ", ".join(f"{kills[victim]} of the {victim}" for victim in VICTIMS)
    print(
        f"{kills.total() - kills[LATE]} kills ({hits}; {kills[LATE]} moments more came after the end) in {number} "
        f"rounds; {in_uploads} fell inside a checkpoint's upload; {leftovers} files were pruned; {bad} results differ "
        "from the undisturbed"
    )
    return bad


def outcome(kind: str, base: Path, name: str) -> dict[str, object]:
    if kind == "ingest":
        return dict(contents(base / f"store-{name}"))
    if kind == "infer":
        return inferred(base / "runs" / f"infer-{name}")
    return trained(runs(kind, base) / f"{kind}-{name}")


if __name__ == "__main__":
    main()

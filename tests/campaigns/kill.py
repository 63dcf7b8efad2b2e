"""`kill -9` at random moments of `bfp submit`, then the same submit: nothing is lost and nothing differs.

    python -m tests.campaigns.kill FOLDER [--rounds 10] [--seed 0] [--jobs ingest] [--victims driver raylet]

Makes a demo cohort in FOLDER and runs the demo's ingest and pretrain once undisturbed. Each round then runs both
again, killed one to five times at moments drawn over the whole of an undisturbed run, from the first import to the
report; what is killed is drawn too: the driver, one of its Ray workers, or its raylet. At the end of a round the store
must be the undisturbed one byte for byte, with no shard that was committed before a submit done again in it; the
encoder, the last checkpoint's tensors and the losses must be equal. Prints a line a round; exits 1 where anything
differed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from bfp.cli.demo import places
from bfp.demo.cohort import make_cohort
from bfp.demo.plan import Groups
from bfp.runs import RunFolder
from bfp.storage import place
from tests.conftest import CHECKOUT
from tests.processes import below

BFP = Path(sys.executable).parent / "bfp"
SUBJECTS = Groups(6, 6, 2)
VICTIMS = ("driver", "worker", "raylet")
PRETRAIN_STEPS = 60
GIVES_UP_S = 300  # a submit that lost its raylet or a worker has ended by then, done or failed


def command(kind: str, base: Path, *, name: str, store: str) -> list[str]:
    """`bfp submit` of one of the demo's specs, under a name and with a store of its own."""
    changes = [*places(kind, str(base)), f"name={name}", f"store='{base / store}'"]
    if kind == "pretrain":
        changes += ["train.epochs=1", f"train.steps_per_epoch={PRETRAIN_STEPS}", "train.checkpoint_every=10"]
    else:
        changes += ["sessions_per_shard=2"]
    return [str(BFP), "submit", f"{CHECKOUT}/jobs/demo/{kind}.yaml", *(f"--set={change}" for change in changes)]


def finish(line: Sequence[str]) -> float:
    """Run it to its end; returns the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return time.monotonic() - began


def kill(line: Sequence[str], victim: str, *, after_s: float, draw: random.Random) -> str | None:
    """Start it and kill a process of it after so many seconds; returns which, None where it had ended before.

    Before Ray is up there is only the driver to kill.
    """
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        found = sorted(pid for pid, name in descendants(process.pid) if name == victim)
        killed, pid = (victim, draw.choice(found)) if found else ("driver", process.pid)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        process.wait(GIVES_UP_S)
        return killed
    return None


def descendants(root: int) -> Iterator[tuple[int, str]]:
    """The processes below a driver that are Ray workers or its raylet (Linux)."""
    for pid in below(root) - {root}:
        with suppress(OSError):
            title = (Path("/proc") / str(pid) / "cmdline").read_bytes().partition(b"\0")[0]
            if title.startswith(b"ray::"):
                yield pid, "worker"
            elif title.endswith(b"/raylet"):
                yield pid, "raylet"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def committed_parts(store: Path) -> dict[str, int]:
    """The parts of every committed shard, and when each was written last, in ns: what is done again writes them."""
    commits = [json.loads(file.read_text()) for file in (store / "commits").glob("*.json")]
    parts = [store / part["file"] for commit in commits if commit["kind"] == "shard" for part in commit["parts"]]
    return {str(part.relative_to(store)): part.stat().st_mtime_ns for part in parts}


def rewritten(store: Path, written: dict[str, int]) -> list[str]:
    """Those of the parts in `written` that were written since; `written` is brought up to date."""
    now = committed_parts(store)
    again = [f"{name} done again" for name, time in written.items() if now.get(name) != time]
    written.update(now)
    return again


def trained(run: Path) -> dict[str, object]:
    """What a pretraining came to: the encoder's bytes, the checkpoint's tensors by hash, the losses by step."""
    marker = max((run / "checkpoints").glob("step-*.json"))
    files = json.loads(marker.read_text())["files"]
    return {
        "encoder": (run / "model/model.safetensors").read_bytes(),
        "checkpoint": (marker.name, {name: fact for name, fact in files.items() if name != ".metadata"}),
        "losses": sorted((r["step"], r["value"]) for r in RunFolder(place(str(run))).metrics() if r["name"] == "loss"),
    }


def differing(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", nargs="+", choices=("ingest", "pretrain"), default=["ingest", "pretrain"])
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    given = parser.parse_args()
    base, draw = given.folder.resolve(), random.Random(given.seed)
    make_cohort(base / "cohort", subjects=SUBJECTS, seed=given.seed, workers=2, progress=lambda done, total: None)

    store_of = {"ingest": "store-{}", "pretrain": "store-undisturbed"}
    lasts_s: dict[str, float] = {}
    expected: dict[str, dict[str, object]] = {}
    for kind in ("ingest", *(["pretrain"] if "pretrain" in given.jobs else [])):
        lasts_s[kind] = finish(command(kind, base, name=f"{kind}-undisturbed", store="store-undisturbed"))
        expected[kind] = outcome(kind, base, "undisturbed")
        print(f"{kind}, undisturbed: {lasts_s[kind]:.0f} s", flush=True)

    kills: Counter[str] = Counter()
    bad = 0
    for number in range(1, given.rounds + 1):
        for kind in given.jobs:
            line = command(kind, base, name=f"{kind}-{number}", store=store_of[kind].format(number))
            killed = []
            written, again = dict[str, int](), list[str]()
            for _ in range(draw.randint(1, 5)):
                moment = draw.uniform(0.5, 1.1 * lasts_s[kind])
                if victim := kill(line, draw.choice(given.victims), after_s=moment, draw=draw):
                    killed.append(f"{victim} at {moment:.1f} s")
                    kills[victim] += 1
                again += rewritten(base / f"store-{number}", written)
            last_s = finish(line)
            again += rewritten(base / f"store-{number}", written)
            wrong = differing(outcome(kind, base, str(number)), expected[kind]) + again
            bad += bool(wrong)
            said = f"DIFFERS: {', '.join(wrong)}" if wrong else "equal"
            print(
                f"round {number} {kind}: {'; '.join(killed) or 'none in time'}; then {last_s:.0f} s: {said}", flush=True
            )
    by_victim = ", ".join(f"{count} of the {victim}" for victim, count in sorted(kills.items()))
    print(f"{kills.total()} kills ({by_victim}) in {given.rounds} rounds; {bad} results differ from the undisturbed")
    sys.exit(bad > 0)


def outcome(kind: str, base: Path, name: str) -> dict[str, object]:
    if kind == "ingest":
        return dict(contents(base / f"store-{name}"))
    return trained(base / f"runs/pretrain-{name}")


if __name__ == "__main__":
    main()

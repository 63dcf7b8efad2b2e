"""`kill -9` of `bfp submit` at random moments, then the same submit: nothing is lost and nothing differs.

    python -m tests.campaigns.kill FOLDER [--rounds 10] [--seed 0] [--pretrain-steps 60]

Makes a demo cohort in FOLDER and runs the demo's ingest and pretrain once undisturbed. Each round then runs both again,
killed one to three times at moments drawn over the whole of an undisturbed run, from the first import to the report.
At the end of a round the store must be the undisturbed one byte for byte, and so must the encoder, the last
checkpoint's tensors and the losses. Prints a line a round; exits 1 where anything differed.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bfp.cli.demo import places
from bfp.demo.cohort import make_cohort
from bfp.demo.plan import Groups
from bfp.runs import RunFolder
from bfp.storage import place
from tests.conftest import CHECKOUT

BFP = Path(sys.executable).parent / "bfp"
SUBJECTS = Groups(6, 6, 2)


def command(kind: str, base: Path, *, name: str, store: str, steps: int) -> list[str]:
    """`bfp submit` of one of the demo's specs, under a name and with a store of its own."""
    changes = [
        *places(kind, str(base)),
        f"name={name}",
        f"store='{base / store}'",
        *(["train.epochs=1", f"train.steps_per_epoch={steps}", "train.checkpoint_every=10"] if steps else []),
    ]
    return [str(BFP), "submit", f"{CHECKOUT}/jobs/demo/{kind}.yaml", *(f"--set={change}" for change in changes)]


def finish(line: Sequence[str]) -> float:
    """Run it to its end; returns the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(line)}\nended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return time.monotonic() - began


def kill(line: Sequence[str], *, after_s: float) -> bool:
    """Start it and kill it after so many seconds; False where it had ended before."""
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def disturbed(line: Sequence[str], *, lasts_s: float, draw: random.Random) -> tuple[list[float], float]:
    """Kill it a few times, then let it finish; returns the moments of the kills and how long the last one took."""
    moments = [draw.uniform(0.5, 1.1 * lasts_s) for _ in range(draw.randint(1, 3))]
    killed = [moment for moment in moments if kill(line, after_s=moment)]
    return killed, finish(line)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


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
    parser.add_argument("--pretrain-steps", type=int, default=60)
    given = parser.parse_args()
    base, draw = given.folder.resolve(), random.Random(given.seed)
    make_cohort(base / "cohort", subjects=SUBJECTS, seed=given.seed, workers=2, progress=lambda done, total: None)

    def ingest(name: str, store: str) -> list[str]:
        return command("ingest", base, name=name, store=store, steps=0)

    def pretrain(name: str) -> list[str]:
        return command("pretrain", base, name=name, store="store", steps=given.pretrain_steps)

    ingest_s, pretrain_s = finish(ingest("ingest", "store")), finish(pretrain("pretrain"))
    store, encoder = contents(base / "store"), trained(base / "runs/pretrain")
    print(f"undisturbed: ingest {ingest_s:.0f} s, {len(store)} files; pretrain {pretrain_s:.0f} s", flush=True)
    kills, bad = 0, 0
    for number in range(1, given.rounds + 1):
        for kind, line, lasts_s in (
            ("ingest", ingest(f"ingest-{number}", f"store-{number}"), ingest_s),
            ("pretrain", pretrain(f"pretrain-{number}"), pretrain_s),
        ):
            killed, last_s = disturbed(line, lasts_s=lasts_s, draw=draw)
            if kind == "ingest":
                wrong = differing(dict(contents(base / f"store-{number}")), dict(store))
            else:
                wrong = differing(trained(base / f"runs/pretrain-{number}"), encoder)
            kills, bad = kills + len(killed), bad + bool(wrong)
            at = ", ".join(f"{moment:.1f}" for moment in killed) or "none in time"
            said = f"differs: {', '.join(wrong)}" if wrong else "equal"
            print(f"round {number} {kind}: killed after {at} s; then {last_s:.0f} s: {said}", flush=True)
    print(f"{kills} kills in {given.rounds} rounds; {bad} of {2 * given.rounds} results differ from the undisturbed")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()

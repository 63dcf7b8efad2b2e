"""Runs on a real SLURM of two virtual nodes, disturbed in the ways of a cluster, beside the same on this machine.

    python -m tests.campaigns.slurm FOLDER [--steps 600] [--trials ingest pretrain limit driver raylet twice]

An ingest of a few small scans and a pretraining of a tiny encoder run here, undisturbed. Then on SLURM:

    ingest     over both nodes: the store has the same bytes
    pretrain   over both nodes, undisturbed: the same encoder to TOLERANCE, the same losses
    limit      its time limit comes before its end, as often as it takes: the job goes back into the queue by itself
    driver     kill -9 of the driver in mid-training; the run is sent again
    raylet     kill -9 of Ray's own process on the second node in mid-training; sent again if that ended it
    twice      two submissions of one run at the same moment: one job runs

A disturbed pretraining has to come to the undisturbed encoder, and every step to stand in its figures once. Prints a
line for each trial, with what the run itself said of it, and exits 1 where anything differed. The limit takes some 10
minutes, of which SLURM lets a job that was put back wait for two each time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file

from bfp.runs import RunFolder
from bfp.storage import place
from tests.cohorts.makers import write_bids
from tests.conftest import CHECKOUT
from tests.slurm import CPUS, NODES, slurm
from tests.store.makers import make_store

STEPS = 600  # some two minutes, of which a job of three that SLURM warns half a minute before does not see the end
TOLERANCE = 1e-5
WITHIN_S = 1800.0

PROFILE = """
[whole]
target = "slurm"
nodes = {nodes}
cpus_per_node = {cpus}
time_h = 2
shared_paths = ["{folder}"]
env = {{PYTHONPATH = "{checkout}/platform"}}

[short]
target = "slurm"
nodes = {nodes}
cpus_per_node = {cpus}
time_h = 0.05
warning_s = 30
shared_paths = ["{folder}"]
env = {{PYTHONPATH = "{checkout}/platform"}}
"""
INGEST = """
kind: ingest
name: ingest
output: {folder}/runs
store: {folder}/store
cohorts: [{{name: made, bids: {folder}/bids}}]
preprocessing: {{stacks: {{form: modalities, channels: [T1w, T2w, FLAIR]}}, spacing_mm: 5.0, slice_spacing_mm: 6.0,
  size: 44, register: none}}
sessions_per_shard: 1
pictures: false
"""
PRETRAIN = """
kind: pretrain
name: pretrain
output: {folder}/runs
store: {folder}/stacks
encoder_shape: {{width: 32, depth: 2, heads: 2, layer_scale: 1.0}}
ssl: {{prototypes: 16, ibot_prototypes: 16, hidden: 32, bottleneck: 16, ibot_bottleneck: 16}}
crops: {{local_size_px: 14, local_count: 2}}
train: {{epochs: 2, steps_per_epoch: {steps}, batch_size: 8, checkpoint_every: 50, log_every: 20}}
probe: null
compute: {{workers: {nodes}, cpus_per_worker: {cpus}}}
"""


class Outcome(NamedTuple):
    """wrong: what differed; said: figures and words of the trial."""

    wrong: list[str]
    said: str


class Campaign:
    """One folder with its cohort, its store, its specs, and the runs here that others are compared with."""

    def __init__(self, folder: Path, *, steps: int) -> None:
        self.folder = folder
        self.disturbed_at = steps // 4
        told = {"folder": folder, "checkout": CHECKOUT, "nodes": NODES, "cpus": CPUS, "steps": steps // 2}
        for name, text in (("bfp.toml", PROFILE), ("ingest.yaml", INGEST), ("pretrain.yaml", PRETRAIN)):
            (folder / name).write_text(text.format(**told))
        write_bids(folder / "bids", subjects=6)
        make_store(folder / "stacks", sessions=16, segmentation="tissue")

    def command(self, kind: str, name: str, *more: str) -> list[str]:
        store = [f"--set=store={self.folder}/store-{name}"] if kind == "ingest" else []
        return [sys.executable, "-m", "bfp", "submit", f"{kind}.yaml", f"--name={name}", *store, *more]

    def submit(self, kind: str, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(kind, name, *more), cwd=self.folder, capture_output=True, text=True)

    def here(self, kind: str) -> None:
        """Run it on this machine, unless that was done."""
        if not (self.run("here-" + kind) / "results.json").exists():
            done = self.submit(kind, f"here-{kind}", f"--cpus={NODES * CPUS}")
            if done.returncode != 0:
                sys.exit(done.stderr)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def log(self, name: str) -> str:
        return "".join(log.read_text() for log in sorted(self.run(name).glob("slurm/*.log")))

    def until_step(self, name: str, step: int) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not any(done >= step for done in self.steps_said(name)):
            if time.monotonic() > deadline or " ended with " in self.log(name):
                sys.exit(f"{name}: no step {step}\n{self.log(name)}")
            time.sleep(0.5)

    def steps_said(self, name: str) -> list[int]:
        events = [json.loads(line) for line in self.log(name).splitlines() if line.startswith('{"')]
        return [event["done"] for event in events if event["event"] == "progress" and event["phase"] == "training"]

    def compared(self, name: str, *, said: str) -> Outcome:
        """A pretraining on SLURM with the one here."""
        self.here("pretrain")
        here, there = (
            load_file(self.run(run) / "model" / "model.safetensors") if self.run(run).joinpath("model").exists() else {}
            for run in ("here-pretrain", name)
        )
        if here.keys() != there.keys():
            return Outcome(["the encoder is not there"], said)
        apart = max(float(abs(here[key] - there[key]).max()) for key in here)
        steps = [
            [row["step"] for row in RunFolder(place(str(self.run(run)))).metrics() if row["name"] == "loss"]
            for run in ("here-pretrain", name)
        ]
        wrong = ["the encoder"] * (apart > TOLERANCE) + ["steps in its figures"] * (steps[0] != steps[1])
        return Outcome(wrong, f"{said}; weights at most {apart:.1e} apart")


def ingest(campaign: Campaign) -> Outcome:
    campaign.here("ingest")
    done = campaign.submit("ingest", "there", "--on=whole")
    wrong = ["its exit code"] * (done.returncode != 0)
    here, there = (contents(campaign.folder / f"store-{name}") for name in ("here-ingest", "there"))
    differ = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    return Outcome(wrong + differ, f"{len(here)} files of the store, {sum(map(len, here.values())):,} bytes")


def pretrain(campaign: Campaign) -> Outcome:
    done = campaign.submit("pretrain", "whole", "--on=whole")
    return campaign.compared("whole", said=f"exit code {done.returncode}")


def limit(campaign: Campaign) -> Outcome:
    done = campaign.submit("pretrain", "limit", "--on=short")
    log = campaign.log("limit")
    again = log.count("goes on in the queue")
    steps = [
        line.partition(" after ")[2].split(" of")[0] for line in log.splitlines() if line.startswith("bfp: stopped")
    ]
    found = campaign.compared("limit", said=f"exit code {done.returncode}, back in the queue {again} times ({steps})")
    return found._replace(wrong=found.wrong + ["never ended by its time limit (give more --steps)"] * (again == 0))


def driver(campaign: Campaign) -> Outcome:
    campaign.submit("pretrain", "driver", "--on=whole", "--detach")
    campaign.until_step("driver", campaign.disturbed_at)
    lease = json.loads(next(campaign.run("driver").glob("lease.*.json")).read_text())
    os.kill(lease["pid"], signal.SIGKILL)
    return sent_again(campaign, "driver")


def raylet(campaign: Campaign) -> Outcome:
    campaign.submit("pretrain", "raylet", "--on=whole", "--detach")
    campaign.until_step("raylet", campaign.disturbed_at)
    job = campaign.log("raylet").split()[2]
    shown = subprocess.run(["ps", "-eww", "-o", "pid,args"], capture_output=True, text=True).stdout
    found = [
        line.split()
        for line in shown.splitlines()
        if "/raylet/raylet " in line and f"/bfp-{job}-" in line and " --head " not in line
    ]
    os.kill(int(found[0][0]), signal.SIGKILL)
    return sent_again(campaign, "raylet")


def sent_again(campaign: Campaign, name: str) -> Outcome:
    """Wait for the end of a disturbed job, and send the run again if it had not come to its own."""
    first = campaign.submit("pretrain", name, "--on=whole")  # follows the job that goes on
    words = [json.loads(line)["message"] for line in campaign.log(name).splitlines() if '"event": "note"' in line]
    codes = [first.returncode]
    if first.returncode != 0:
        codes.append(campaign.submit("pretrain", name, "--on=whole").returncode)
    ends = [line for line in first.stderr.splitlines() if line.startswith("bfp: ")]
    told = ends[-1] if ends else words[-1]
    return campaign.compared(name, said=f"exit codes {codes}, said “{told.strip()}”")


def twice(campaign: Campaign) -> Outcome:
    campaign.here("ingest")
    command = campaign.command("ingest", "twice", "--on=whole")
    both = [
        subprocess.Popen(command, cwd=campaign.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate()[1] for process in both]
    jobs = {line.split()[1] for text in told for line in text.splitlines() if line.strip().startswith("job ")}
    began = campaign.log("twice").count(" begins on ")
    wrong = ["more than one job ran"] * (began != 1 or len(jobs) != 1)
    wrong += ["an exit code"] * (any(process.returncode for process in both))
    here, there = (contents(campaign.folder / f"store-{name}") for name in ("here-ingest", "twice"))
    return Outcome(wrong + ["the store"] * (here != there), f"both followed job {' and '.join(sorted(jobs))}")


TRIALS: dict[str, Callable[[Campaign], Outcome]] = {
    "ingest": ingest,
    "pretrain": pretrain,
    "limit": limit,
    "driver": driver,
    "raylet": raylet,
    "twice": twice,
}


def contents(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in sorted(store.rglob("*")) if file.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the pretraining")
    parser.add_argument("--trials", nargs="+", choices=tuple(TRIALS), default=list(TRIALS))
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("BFP_SHARED", CHECKOUT.parent / "shared"))
    bad = 0
    with slurm(shared, folder / "slurm") as configuration:
        os.environ["SLURM_CONF"] = configuration
        campaign = Campaign(folder, steps=given.steps)
        for name in given.trials:
            began = time.monotonic()
            found = TRIALS[name](campaign)
            bad += bool(found.wrong)
            ended = f"DIFFERS: {', '.join(found.wrong)}" if found.wrong else "equal"
            print(f"{name}: {ended} ({found.said}) in {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()

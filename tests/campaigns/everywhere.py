"""One spec over s3://, on this machine, on a Ray cluster of two nodes and on SLURM's two: the same from each.

    python -m tests.campaigns.everywhere FOLDER [--steps 40]

Scans, stores, runs and encoders lie in a bucket of a Ceph gateway that is started for it. On each target that can be
started here one ingest.yaml and one pretrain.yaml are submitted, each under a name of its own. Prints a line for each
and exits 1 where a store differs in a byte, or an encoder by more than TOLERANCE, from those made here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import s3fs
from safetensors.numpy import load

from bfp.storage import Place
from tests.ceph import Gateway, gateway
from tests.cohorts.makers import write_bids
from tests.conftest import CHECKOUT
from tests.raycluster import RayCluster
from tests.slurm import CPUS, NODES, NoSlurm, slurm

TOLERANCE = 1e-5
BUCKET = "s3://bfp-everywhere"
INGEST = f"""
kind: ingest
name: ingest
output: {BUCKET}/runs
store: {BUCKET}/store
cohorts: [{{name: made, bids: {BUCKET}/bids}}]
preprocessing: {{spacing_mm: 5.0, slice_spacing_mm: 6.0, size: 44, register: none}}
sessions_per_shard: 1
pictures: false
"""
PRETRAIN = f"""
kind: pretrain
name: pretrain
output: {BUCKET}/runs
store: {BUCKET}/store-here
encoder: random:vit_tiny_patch16_224
encoder_shape: {{width: 32, depth: 2, heads: 2}}
ssl: {{prototypes: 16, ibot_prototypes: 16, hidden: 32, bottleneck: 16, ibot_bottleneck: 16}}
crops: {{global_size_px: 32, local_size_px: 16, local_count: 2}}
train: {{epochs: 1, steps_per_epoch: STEPS, batch_size: 8, checkpoint_every: 10, log_every: 5}}
compute: {{workers: {NODES}, cpus_per_worker: {CPUS}}}
"""
SLURM = """
[slurm]
target = "slurm"
nodes = {nodes}
cpus_per_node = {cpus}
time_h = 1
secrets_file = "{folder}/storage.env"
logs = "{folder}/logs"
shared_paths = ["{folder}"]
env = {{PYTHONPATH = "{checkout}/platform"}}
"""


def submitted(kind: str, on: str, *, folder: Path) -> tuple[int, str]:
    """The exit code, and what it said."""
    command = [sys.executable, "-m", "bfp", "submit", f"{kind}.yaml", f"--name={kind}-{on}"]
    command += [f"--set=store={BUCKET}/store-{on}"] if kind == "ingest" else []
    command += ["--cpus=2"] if on == "here" else [f"--on={on}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr


def contents(at: str) -> dict[str, bytes]:
    """Every object below, by its name there."""
    return {file.place.uri.removeprefix(f"{at}/"): file.place.read() for file in Place(at).files()}


def encoder(run: str) -> dict[str, np.ndarray]:
    return load(Place(f"{BUCKET}/runs/{run}/model/model.safetensors").read())


def differences(on: str) -> Iterator[str]:
    here, there = contents(f"{BUCKET}/store-here"), contents(f"{BUCKET}/store-{on}")
    differing = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if differing or not here:
        yield f"store: {differing}"
    one, other = (encoder(f"pretrain-{where}") for where in ("here", on))
    apart = max(float(abs(one[name] - other[name]).max()) for name in one)
    print(f"{on}: {len(here)} files of the store compared; encoders at most {apart:.1e} apart", flush=True)
    if one.keys() != other.keys() or apart > TOLERANCE:
        yield "encoder"


def prepare(made: Gateway, folder: Path, *, steps: int) -> None:
    cohort = write_bids(folder / "bids", subjects=8)
    files = s3fs.S3FileSystem()
    files.mkdir(BUCKET.removeprefix("s3://"))
    files.put(f"{cohort}/", f"{BUCKET}/bids/", recursive=True)
    (folder / "ingest.yaml").write_text(INGEST)
    (folder / "pretrain.yaml").write_text(PRETRAIN.replace("STEPS", str(steps)))
    secrets = folder / "storage.env"
    secrets.touch(0o600)
    secrets.write_text("".join(f"{name}={value}\n" for name, value in made.environment().items()))


@contextmanager
def targets(made: Gateway, folder: Path) -> Iterator[list[str]]:
    """The names of those that could be started, in bfp.toml; the storage's credentials are their own."""
    paths = os.environ.get("PYTHONPATH", "")
    with ExitStack() as running:
        cluster = running.enter_context(RayCluster(environment={"PYTHONPATH": paths, **made.environment()}))
        os.environ["LAB_TOKEN"] = cluster.token
        names, profile = ["lab"], cluster.profile("lab")
        shared = Path(os.environ.get("BFP_SHARED", CHECKOUT.parent / "shared"))
        try:
            os.environ["SLURM_CONF"] = running.enter_context(slurm(shared, folder / "slurm"))
        except NoSlurm as missing:
            print(f"no SLURM: {missing}")
        else:
            names.append("slurm")
            profile += SLURM.format(folder=folder, checkout=CHECKOUT, nodes=NODES, cpus=CPUS)
        (folder / "bfp.toml").write_text(profile)
        yield names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True)
    wrong = []
    with gateway(folder / "ceph") as made:
        os.environ.update(made.environment())
        prepare(made, folder, steps=given.steps)
        with targets(made, folder) as names:
            for on in ("here", *names):
                for kind in ("ingest", "pretrain"):
                    code, said = submitted(kind, on, folder=folder)
                    if code != 0:
                        wrong.append(f"{on}: {kind} ended with {code}: {said[-3000:]}")
                        break
                else:
                    wrong += [] if on == "here" else [f"{on}: {text}" for text in differences(on)]
    print(json.dumps({"wrong": wrong}, indent=2) if wrong else "the same from each")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())

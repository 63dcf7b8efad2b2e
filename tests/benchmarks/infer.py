"""Sessions a minute of `bfp submit` of an inference, against the loop that one would write oneself; memory as it grows.

    python -m tests.benchmarks.infer MODEL SCANS [--sessions 50] [--repeats 3] [--memory 50 200 1000] [--workers 2]
                                     [--only T1w]

MODEL: a finetune run or a model folder of stacks of the form modalities; a copy of it is used whose preprocessing
registers by headers and cuts out no brain, or the loop would not do the same. SCANS: a BIDS folder, whose whole
sessions are repeated under new names by links until there are so many; MONAI is installed from requirements.txt.

The loop, as tutorials have it, in one process that may use all cores: for each session and modality nibabel reads the
file, MONAI orients it, brings it to the model's spacing, onto the first modality's grid, scales it between percentiles
and crops it or pads it; slices with enough foreground become stacks, the same timm model makes their patch tokens, and
the model's own head says the probabilities of their spread, pooled. What is printed is the median of the repeats, taken
in turn: sessions a minute, from the start of the process to its end (Ray's start included) and once it runs, from the
first finished session to the last. Of several modalities bfp looks whether headers agree, which the loop does not; with
`--only` sessions have some of them, and of a single one there is nothing to look for. CPU seconds are printed beside
them, which others on the machine change less. Memory: proportional set size of the driver and all workers, every second
(Linux).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from bfp.models.session_model import load_model, model_folder
from bfp.storage import place
from tests.inference.makers import rewrite
from tests.processes import below, cpu_seconds, resident_bytes

BFP = Path(sys.executable).parent / "bfp"
SAMPLED_EVERY_S = 1.0
SESSION = "a-session-is-done-at"


class Took(NamedTuple):
    """wall_s, cpu_s: from start to end; running_s: from the first finished session to the last, `after_first` of them;
    peak: bytes; rows: sessions that have a row."""

    wall_s: float
    cpu_s: float
    running_s: float
    after_first: int
    peak: int
    rows: int


def whole_sessions(scans: Path, modalities: tuple[str, ...]) -> list[list[Path]]:
    folders = sorted(folder for folder in scans.glob("sub-*/anat") if folder.is_dir())
    found = [[next(folder.glob(f"*_{name}.nii.gz"), None) for name in modalities] for folder in folders]
    return [[file for file in files if file] for files in found if all(map(readable, files))]


def readable(file: Path | None) -> bool:
    import nibabel as nib

    try:
        return file is not None and np.asanyarray(nib.load(file).dataobj).size > 0
    except (EOFError, OSError, nib.filebasedimages.ImageFileError):
        return False


def by_headers(model: Path, folder: Path) -> Path:
    """A copy of the model that prepares scans as the loop does."""
    shutil.copytree(model_folder(place(str(model))).path, folder)
    told = json.loads((folder / "model.json").read_text())
    rewrite(place(str(folder)), preprocessing=told["preprocessing"] | {"register": "header", "brain": "none"})
    return folder


def repeat(sessions: list[list[Path]], folder: Path, *, count: int) -> Path:
    """A BIDS dataset of so many sessions, by links."""
    for number, files in zip(range(count), itertools.cycle(sessions)):
        for file in files:
            link = folder / f"sub-{number:05d}/anat/sub-{number:05d}_{file.name.rpartition('_')[2]}"
            link.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                link.symlink_to(file.resolve())
    return folder


class Ran(NamedTuple):
    """A command that was run to its end. cpu_s, peak: of it and all below it; said: what it printed."""

    wall_s: float
    cpu_s: float
    peak: int
    said: str


def measured(line: list[str]) -> Ran:
    began, before, cpu_s, peak = time.perf_counter(), cpu_seconds(), 0.0, 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(line, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, sum(map(resident_bytes, below(process.pid))))
            cpu_s = max(cpu_s, cpu_seconds() - before)
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLED_EVERY_S)
        wall_s = time.perf_counter() - began
        said.seek(0)
        text = said.read()
    if process.returncode != 0:
        sys.exit(f"{' '.join(line)} ended with {process.returncode}\n{text}")
    return Ran(wall_s, cpu_s, peak, text)


def by_bfp(model: Path, bids: Path, folder: Path, *, workers: int, number: int) -> Took:
    name = f"{bids.name}-{number}"
    spec = {
        "kind": "infer",
        "name": name,
        "output": str(folder / "runs"),
        "model": str(model),
        "cohorts": [{"name": "repeated", "bids": str(bids)}],
        "privacy": {"pictures": "none"},
        "compute": {"workers": workers},
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(spec))
    ran = measured([str(BFP), "submit", str(file)])
    run = folder / "runs" / name
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    steps = [
        each for each in events if each["event"] == "progress" and each.get("phase") == "predicting" and each["done"]
    ]
    return Took(
        ran.wall_s,
        ran.cpu_s,
        _seconds(steps[-1]["time"]) - _seconds(steps[0]["time"]),
        steps[-1]["done"] - steps[0]["done"],
        ran.peak,
        pq.read_metadata(run / "predictions/predictions.parquet").num_rows,
    )


def _seconds(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def by_a_loop(model: Path, bids: Path) -> Took:
    ran = measured([sys.executable, "-m", "tests.benchmarks.infer", "--loop", str(model), str(bids)])
    times = [float(line.split()[1]) for line in ran.said.splitlines() if line.startswith(SESSION)]
    return Took(ran.wall_s, ran.cpu_s, times[-1] - times[0], len(times) - 1, ran.peak, len(times))


def loop(model: Path, bids: Path) -> None:
    """The peer. Says when each session is done, and its probability."""
    import timm
    import torch
    from monai import transforms

    folder = model_folder(place(str(model)))
    learned = load_model(folder)
    told = learned.preprocessing
    encoder = timm.create_model(f"local-dir:{folder / 'encoder'}", pretrained=True, num_classes=0).eval()
    config = encoder.pretrained_cfg
    mean, std = (torch.tensor(config[name])[None, :, None, None] for name in ("mean", "std"))
    channels, size, spacing = told["stacks"]["channels"], told["size"], told["spacing_mm"]
    step = told["slice_spacing_mm"] or spacing
    low, high = told["window"]
    load = transforms.Compose(
        [
            transforms.LoadImage(image_only=True, ensure_channel_first=True),
            transforms.Orientation("RAS", labels=None),
            transforms.Spacing((spacing, spacing, step), mode="bilinear"),
        ]
    )
    onto = transforms.ResampleToMatch(mode="bilinear")
    finish = transforms.Compose(
        [
            transforms.ScaleIntensityRangePercentiles(low, high, 0, 1, clip=True),
            transforms.ResizeWithPadOrCrop((size, size, -1)),
        ]
    )
    for anat in sorted(bids.glob("sub-*/anat")):
        files = {name: next(anat.glob(f"*_{name}.nii.gz"), None) for name in channels}
        volumes = {name: load(file) for name, file in files.items() if file}
        first = next(iter(volumes.values()))
        there = {name: finish(each if each is first else onto(each, img_dst=first)) for name, each in volumes.items()}
        absent = torch.zeros_like(next(iter(there.values())))
        stacked = torch.cat([there.get(name, absent) for name in channels]).as_tensor().permute(3, 0, 1, 2).float()
        stacks = stacked[(stacked[:, 0] > 0.05).float().mean(dim=(1, 2)) >= 0.05]
        with torch.inference_mode():
            vectors = [
                encoder.forward_features((own - mean) / std)[:, encoder.num_prefix_tokens :].std(dim=1, correction=0)
                for own in stacks.split(64)
            ]
        features = torch.cat(vectors).numpy()
        heights = np.linspace(0, 1, len(features))
        pooled = learned.pooling.pool(features, heights=heights, parts=[""] * len(features))
        print(SESSION, time.perf_counter(), learned.head.probabilities(pooled[None])[0, 1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--sessions", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", default=[50, 200, 1000])
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="*", metavar="MODALITY", help="sessions have these alone")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.loop:
        loop(given.model, given.scans)
        return
    with tempfile.TemporaryDirectory() as made:
        here = Path(made)
        model = by_headers(given.model.resolve(), here / "model")
        channels = tuple(load_model(place(str(model))).preprocessing["stacks"]["channels"])
        sessions = whole_sessions(given.scans.resolve(), tuple(given.only or channels))
        ours, theirs = list[Took](), list[Took]()
        if given.repeats:
            bids = repeat(sessions, here / f"sessions-{given.sessions}", count=given.sessions)
            for number in range(given.repeats):
                theirs.append(by_a_loop(model, bids))
                ours.append(by_bfp(model, bids, here, workers=given.workers, number=number))
            whole = [[60 * each.rows / each.wall_s for each in side] for side in (ours, theirs)]
            cpu = [statistics.median(each.cpu_s / each.rows for each in side) for side in (ours, theirs)]
            running = [[60 * each.after_first / each.running_s for each in side] for side in (ours, theirs)]
            for words, (own, other) in (("start to end", whole), ("once it runs", running)):
                print(
                    f"{given.sessions} sessions, {words}: bfp {statistics.median(own):.1f} a minute ({min(own):.1f} to "
                    f"{max(own):.1f}), the loop {statistics.median(other):.1f} ({min(other):.1f} to {max(other):.1f}): "
                    f"{statistics.median(own) / statistics.median(other):.2f} ×",
                    flush=True,
                )
            print(f"CPU seconds a session, start and end included: bfp {cpu[0]:.2f}, the loop {cpu[1]:.2f}", flush=True)
        for count in given.memory:
            took = by_bfp(
                model, repeat(sessions, here / f"memory-{count}", count=count), here, workers=given.workers, number=0
            )
            print(f"{count} sessions: peak {took.peak / 1e9:.2f} GB, {took.wall_s:.0f} s, {took.rows} rows", flush=True)


if __name__ == "__main__":
    main()

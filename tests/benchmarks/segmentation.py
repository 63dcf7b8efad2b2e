"""How well a small decoder segments real heads: regions on T1w and lesions on FLAIR of eleven older adults.

    python -m tests.benchmarks.segmentation FOLDER [--encoder random:vit_small_patch8_224] [--steps 400]
                                            [--layers last] [--task tissue lesions]

Reads scans/cohort of the trial data (BFP_SHARED, else shared/ beside the checkout), and says so where it is not there.
Stacks of 112 pixels at 2 mm; four folds, so that a decoder learns from eight subjects and is tested on the other three
(in one fold from nine, on two). Prints Dice and HD95 of each class with 95 % intervals over subjects, beside an atlas
that sees no image and, of lesions, the best grey threshold of training, all in native space. The masks of this cohort
were made by programs (DLMUSE, DLWMLS): agreement with them is what is measured.

FOLDER keeps the store and the runs: what is done there is not done again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from pathlib import Path

from bfp.cli.jobs import run_job
from bfp.reports.headline import estimate
from bfp.specs import Finetune, Ingest
from bfp.storage import place
from bfp.targets.local import Local

CHECKOUT = Path(__file__).resolve().parents[2]
SUBJECTS = range(1, 12)
SHAPE = {"width": 192, "depth": 6, "heads": 3}  # of a random encoder

CORTEX = [value for value in range(100, 208) if value not in (110, 111, 126, 127, 130, 131, 158, 159, 188, 189)]
TISSUES = {
    "ventricles": [4, 11, 49, 50, 51, 52],
    "white_matter": [40, 41, *range(81, 96)],
    "grey_matter": [38, 39, 71, 72, 73, *CORTEX],
    "deep_grey": [23, 30, 31, 32, 36, 37, 47, 48, 55, 56, 57, 58, 59, 60],
}
"""MUSE's codes: third, fourth, inferior lateral and lateral ventricles; white matter of cerebellum and lobes, fornix,
internal capsule and corpus callosum; cerebellum, vermis and cortex; accumbens, amygdala, caudate, hippocampus,
pallidum, putamen and thalamus."""


def write_table(folder: Path, cohort: Path) -> Path:
    """The cohort as a table: it is not BIDS."""
    table = folder / "scans.csv"
    folder.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["subject", "modality", "uri", "regions", "lesions"])
        for number in SUBJECTS:
            name = f"Subj{number}"
            regions, lesions = cohort / f"regions/{name}_T1_DLMUSE.nii.gz", cohort / f"lesions/{name}_FL_DLWMLS.nii.gz"
            writer.writerow([name, "T1w", cohort / f"t1/{name}_T1.nii.gz", regions, ""])
            writer.writerow([name, "FLAIR", cohort / f"flair/{name}_FL.nii.gz", "", lesions])
    return table


def ingest_spec(folder: Path, cohort: Path) -> Ingest:
    segmentations = [
        {"name": "tissue", "column": "regions", "drawn_on": "T1w", "classes": TISSUES},
        {"name": "lesions", "column": "lesions", "drawn_on": "FLAIR", "classes": {"lesion": [1]}},
    ]
    return Ingest.model_validate(
        {
            "kind": "ingest",
            "name": "ingest",
            "output": str(folder / "runs"),
            "store": str(folder / "store"),
            "cohorts": [
                {"name": "older", "table": str(write_table(folder, cohort)), "segmentations": segmentations},
            ],
            "preprocessing": {"spacing_mm": 2.0, "slice_spacing_mm": 2.0, "size": 112},
        }
    )


def finetune_spec(folder: Path, task: str, *, encoder: str, steps: int, layers: str, workers: int | None) -> Finetune:
    told = {
        "kind": "finetune",
        "name": f"{task}-{layers}",
        "output": str(folder / "runs"),
        "store": str(folder / "store"),
        "encoder": encoder,
        "task": {"type": "segmentation", "target": task, "decoder": {"layers": layers, "steps": steps}},
        "folds": 4,
        "compute": {"workers": workers},
    }
    return Finetune.model_validate(told | ({"encoder_shape": SHAPE} if encoder.startswith("random:") else {}))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--encoder", default="random:vit_small_patch8_224")
    asked.add_argument("--steps", type=int, default=400)
    asked.add_argument("--layers", choices=["last", "intermediate"], default="last")
    asked.add_argument("--task", nargs="+", choices=["tissue", "lesions"], default=["tissue", "lesions"])
    asked.add_argument("--workers", type=int)
    given = asked.parse_args()
    cohort = Path(os.environ.get("BFP_SHARED", CHECKOUT.parent / "shared")) / "scans" / "cohort"
    if not cohort.is_dir():
        print(f"skipped: no trial data at {cohort}")
        sys.exit(0)
    folder = given.folder.resolve()
    with Local(cpus=given.workers) as target:
        if not (folder / "store" / "snapshots").exists():
            ingest = ingest_spec(folder, cohort)
            run_job(ingest, target, plan=target.plan(ingest))
        for task in given.task:
            spec = finetune_spec(
                folder, task, encoder=given.encoder, steps=given.steps, layers=given.layers, workers=given.workers
            )
            began = time.monotonic()
            run_job(spec, target, plan=target.plan(spec))
            show(spec, seconds=time.monotonic() - began)


def show(spec: Finetune, *, seconds: float) -> None:
    found = json.loads((place(spec.output) / spec.name / "results.json").read())["figures"]
    print(f"\n{spec.name}: {spec.encoder}, {found['native']} of {found['sessions']} in native space, {seconds:.0f} s")
    rivals = [name for name in ("atlas", "threshold") if f"dice_{name}" in found]
    classes = list(TISSUES) if spec.name.startswith("tissue") else ["lesion"]
    for name in classes:
        beside = "; ".join(f"{rival} {estimate(f'dice_{rival}_{name}', found)}" for rival in rivals)
        hd95 = estimate(f"hd95_mm_{name}", found)
        print(f"  {name:13} Dice {estimate(f'dice_{name}', found)} (HD95 {hd95} mm); {beside}")


if __name__ == "__main__":
    main()

"""Does `atypical` know what a model was not trained on? The demo's model on new subjects, and on the same ones spoilt.

    python -m tests.benchmarks.atypical DEMO [--subjects 24] [--odd FOLDER]

DEMO: the folder of `bfp demo`, with its finetune run. New subjects of the demo's scanners are made, the
in-distribution ones, and then again

    scanner     as a scanner that training did not see takes them: another grid, 0.09 noise, a strong bias field
    upended     with the sign of the affine's third axis changed: the head is upside down, and the header says it is not
    swapped     with T1w and FLAIR under each other's name
    inverted    every scan its own negative within the head
    half        with the upper half of the head outside the field of view

--odd: scans that are no head like these (a CT, an angiogram), each taken for a T1w. Printed for each: the share of
sessions with `atypical` above 0.95, and the AUROC of `distance` against the in-distribution ones.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq

from bfp.demo.cohort import write_subject
from bfp.demo.plan import groups_of, plan_subjects
from bfp.demo.scanners import LEVEL, SITES, Protocol, Site
from bfp.metrics.auroc import auroc

BFP = Path(sys.executable).parent / "bfp"
SEED = 5000  # of no cohort that was learned from
USUAL = "usual"

UNSEEN = Site(
    field_tesla=0.5,
    noise=0.09,
    bias=0.45,
    protocols={
        "T1w": Protocol("RIP", (1.0, 2.5, 1.0), LEVEL, "<i2", 1.0, 0.0, 900.0),
        "T2w": Protocol("RIP", (1.0, 3.0, 1.0), LEVEL, "<i2", 1.0, 0.0, 800.0),
        "FLAIR": Protocol("LPS", (2.0, 2.0, 2.5), LEVEL, "<i2", 1.0, 0.0, 600.0),
    },
)


def up_axis(image: nib.Nifti1Image) -> tuple[int, int]:
    """The voxel axis along which the head stands, and whether up is along or against it."""
    direction = np.asarray(image.affine)[2, :3]
    axis = int(np.abs(direction).argmax())
    return axis, int(np.sign(direction[axis]))


def upended(image: nib.Nifti1Image) -> nib.Nifti1Image:
    axis, _ = up_axis(image)
    return nib.Nifti1Image(np.flip(image.get_fdata(dtype=np.float32), axis), image.affine)


def inverted(image: nib.Nifti1Image) -> nib.Nifti1Image:
    voxels = image.get_fdata(dtype=np.float32)
    head = voxels > 0.15 * np.percentile(voxels, 98)
    return nib.Nifti1Image(np.where(head, np.percentile(voxels, 99.5) * 1.1 - voxels, 0).clip(0), image.affine)


def half(image: nib.Nifti1Image) -> nib.Nifti1Image:
    axis, sign = up_axis(image)
    extent = image.shape[axis]
    kept = slice(0, extent // 2) if sign > 0 else slice(extent - extent // 2, extent)
    return image.slicer[tuple(kept if number == axis else slice(None) for number in range(3))]


SPOILT: dict[str, Callable[[nib.Nifti1Image], nib.Nifti1Image]] = {
    "upended": upended,
    "inverted": inverted,
    "half": half,
}


def make_cohorts(folder: Path, *, subjects: int, odd: Path | None) -> list[str]:
    planned = plan_subjects(groups_of(subjects)._replace(tumour=0), seed=SEED, prefix="new")
    whole = [replace(subject, modalities=("T1w", "T2w", "FLAIR"), broken=()) for subject in planned]
    SITES["unseen"] = UNSEEN
    for subject in whole:
        write_subject(folder / USUAL, subject)
        write_subject(folder / "scanner", replace(subject, site="unseen"))
    for name in (USUAL, "scanner"):
        shutil.rmtree(folder / name / "derivatives", ignore_errors=True)
    scans = sorted((folder / USUAL).rglob("*.nii.gz"))
    for scan in scans:
        for name, spoil in SPOILT.items():
            file = folder / name / scan.relative_to(folder / USUAL)
            file.parent.mkdir(parents=True, exist_ok=True)
            nib.save(spoil(nib.load(scan)), file)
        other = {"T1w": "FLAIR", "FLAIR": "T1w"}
        modality = scan.name.removesuffix(".nii.gz").rpartition("_")[2]
        file = folder / "swapped" / scan.relative_to(folder / USUAL)
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scan, file.with_name(file.name.replace(modality, other.get(modality, modality))))
    for number, scan in enumerate(sorted(odd.glob("*.nii.gz")) if odd else [], start=1):
        file = folder / "odd" / f"sub-{number:02d}/anat/sub-{number:02d}_T1w.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(scan, file)
    return [USUAL, "scanner", *SPOILT, "swapped", *(["odd"] if odd else [])]


def predicted(demo: Path, run: str, folder: Path, cohorts: list[str]) -> list[dict]:
    spec = {
        "kind": "infer",
        "name": "atypical",
        "output": str(folder / "runs"),
        "model": str(demo / "runs" / run),
        "cohorts": [{"name": name, "bids": str(folder / name)} for name in cohorts],
        "privacy": {"pictures": "none"},
    }
    (folder / "infer.yaml").write_text(json.dumps(spec))
    done = subprocess.run([str(BFP), "submit", str(folder / "infer.yaml")], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    rows: list[dict] = pq.read_table(folder / "runs/atypical/predictions/predictions.parquet").to_pylist()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--run", default="finetune")
    parser.add_argument("--subjects", type=int, default=24)
    parser.add_argument("--odd", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        cohorts = make_cohorts(Path(made), subjects=given.subjects, odd=given.odd)
        rows = predicted(given.demo.resolve(), given.run, Path(made), cohorts)
    usual = [row["distance"] for row in rows if row["cohort"] == USUAL]
    for name in cohorts:
        own = [row for row in rows if row["cohort"] == name]
        distances = np.array([row["distance"] for row in own])
        beyond = np.mean([row["atypical"] > 0.95 for row in own])
        both = np.array([*usual, *distances])
        classes = np.repeat([0, 1], [len(usual), len(own)])
        found = "" if name == USUAL else f"; AUROC {auroc(classes, np.stack([-both, both], axis=1)):.3f}"
        print(
            f"{name:9} {len(own):3} sessions: distance {np.median(distances):.2f} (median), {distances.min():.2f} to "
            f"{distances.max():.2f}; {beyond:.0%} beyond 95 % of the training sessions{found}"
        )


if __name__ == "__main__":
    main()

"""The demo cohort on disk: a BIDS dataset with its true tissues and lesions as derivatives.

    <folder>/dataset_description.json  README  participants.tsv  participants.json
    <folder>/sub-001/anat/sub-001_{T1w,T2w,FLAIR}.nii.gz, each with a sidecar .json
    <folder>/derivatives/tissue/sub-001/anat/sub-001_dseg.nii.gz             on the T1w grid: 1 grey, 2 white, 3 fluid
    <folder>/derivatives/lesions/sub-001/anat/sub-001_label-lesion_mask.nii.gz   on the T1w grid, tumour group only

Same arguments, same bytes, whatever the number of processes: each subject draws from a seed of its own. The dataset is
made beside its place and moved there when it is whole, so that what lies at <folder> is never half a cohort.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bfp.demo.anatomy import Template, find_maps, load_template
from bfp.demo.plan import Groups, Subject, plan_subjects
from bfp.demo.scanners import MODALITIES, SITES
from bfp.demo.scans import acquire, draw_pose, encode, lesion_mask, tissue_labels
from bfp.demo.tissue import grow_brain
from bfp.errors import InputError, Reason

RECIPE = 3  # raised whenever the same plan becomes other bytes
TISSUES = ((1, "grey matter", "GM"), (2, "white matter", "WM"), (3, "fluid", "CSF"))
NOT_NIFTI = b"<!DOCTYPE html>\n<title>403 Forbidden</title>\n<p>Please sign in to download this file.</p>\n"
PARTICIPANTS = {
    "age": {"Description": "age at the scan", "Units": "year"},
    "sex": {"Description": "sex", "Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "where the subject was scanned", "Levels": {name: f"site {name}" for name in SITES}},
    "diagnosis": {
        "Description": "diagnostic group",
        "Levels": {"control": "healthy", "disease": "neurodegeneration", "tumour": "brain tumour"},
    },
    "severity": {"Description": "true severity of atrophy, by age and by disease; no scanner sees it", "Units": "1"},
}
README = """Made by `bfp demo`: no person was scanned.

Each subject is the ICBM152 average brain (maps shipped by nilearn), deformed at random; ventricles widen and cortex
thins with the subject's severity, which age and disease raise. Subjects of the tumour group have one tumour. There is
no skull: outside the brain the scans are zero. Some sessions lack a modality, T2w and FLAIR may be a few millimetres
away from where their headers say, and two files are broken on purpose.

derivatives/tissue holds the true tissues and derivatives/lesions the true tumours (core and oedema), on the T1w grid.
"""


class BrokenFile(NamedTuple):
    """A scan that was damaged on purpose. path is relative to the dataset."""

    path: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class CohortFacts:
    """What a reader of the cohort should find.

    scans counts the files of scans, broken ones included. lacking names the sessions without a modality, as (subject,
    modality). The AUROCs tell disease from control by the true severity (oracle) and by age alone, NaN without both.
    """

    folder: Path
    subjects: Groups
    scans: int
    lacking: tuple[tuple[str, str], ...]
    broken: tuple[BrokenFile, ...]
    oracle_auroc: float
    age_auroc: float


def make_cohort(
    folder: Path,
    *,
    subjects: Groups,
    seed: int,
    workers: int,
    progress: Callable[[int, int], None],
    prefix: str = "",
) -> CohortFacts:
    """Write the cohort to folder, in as many processes as there are workers, unless the same one is there already.

    progress is told (subjects done, of how many). prefix begins every label, so that two cohorts share no subject.
    Raises InputError where something else stands at folder, and where the template's maps are missing.
    """
    planned = plan_subjects(subjects, seed=seed, prefix=prefix)
    description = _dataset_description(subjects, seed=seed, prefix=prefix)
    if not _already_made(folder, description):
        find_maps()  # before anything is written
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A name that nobody else has: what else lies here is not ours to remove.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
            growing = Path(aside) / folder.name
            for done, _ in enumerate(_write_subjects(growing, planned, workers), start=1):
                progress(done, len(planned))
            _write_tables(growing, planned)
            _write_json(growing / "dataset_description.json", description)
            growing.rename(folder)
    return _facts(folder, subjects, planned)


def write_subject(folder: Path, subject: Subject) -> None:
    """Write one subject's scans with their sidecars, true tissues and true lesion below folder, the dataset."""
    template = _template()
    rng = np.random.default_rng((*subject.seed, 0))
    brain = grow_brain(template, rng, severity=subject.severity, tumour=subject.diagnosis == "tumour")
    scanner_from_grid = draw_pose(rng) @ template.template_from_voxel
    site = SITES[subject.site]
    for number, modality in enumerate(MODALITIES, start=1):
        if modality not in subject.modalities:
            continue
        rng = np.random.default_rng((*subject.seed, number))  # what is drawn for one scan leaves the others alone
        scan = acquire(brain, modality=modality, site=site, scanner_from_grid=scanner_from_grid, rng=rng)
        protocol = site.protocols[modality]
        content = encode(
            scan.scaled,
            scan.scanner_from_voxel,
            dtype=protocol.dtype,
            slope=protocol.slope,
            intercept=protocol.intercept,
        )
        path = folder / _scan_path(subject, modality)
        _write(path, _damaged(content, dict(subject.broken).get(modality)))
        _write_json(path.with_name(path.name.replace(".nii.gz", ".json")), _sidecar(subject, modality))
        if modality == "T1w":
            truths = {f"tissue/{_anat(subject)}_dseg": tissue_labels(brain, scan)}
            if brain.tumour is not None:
                truths[f"lesions/{_anat(subject)}_label-lesion_mask"] = lesion_mask(brain.tumour, scan)
            for name, labels in truths.items():
                content = encode(labels, scan.scanner_from_voxel, dtype="u1", slope=1.0, intercept=0.0)
                _write(folder / "derivatives" / f"{name}.nii.gz", content)


def _already_made(folder: Path, description: dict) -> bool:
    """Whether this very cohort stands at folder. Raises InputError where something else does."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "dataset_description.json").read_text())
    except (OSError, ValueError):
        found = None
    if found != description:
        raise InputError(f"{folder}: holds something other than this demo cohort; remove it or choose another place")
    return True


def _write_subjects(folder: Path, planned: list[Subject], workers: int) -> Iterator[None]:
    """Write every subject, yielding as each is done, in any order."""
    if workers == 1:
        for subject in planned:
            write_subject(folder, subject)
            yield
        return
    # Spawned: forking a process that runs threads (Ray's, say) can hang. Ctrl-C is the parent's to answer.
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        tasks = [pool.submit(write_subject, folder, subject) for subject in planned]
        try:
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@cache
def _template() -> Template:
    return load_template()


def _anat(subject: Subject) -> str:
    return f"sub-{subject.label}/anat/sub-{subject.label}"


def _scan_path(subject: Subject, modality: str) -> str:
    return f"{_anat(subject)}_{modality}.nii.gz"


def _damaged(content: bytes, damage: Reason | None) -> bytes:
    """The file as it is, cut short, or replaced by the page that a failed download leaves behind."""
    if damage is Reason.TRUNCATED:
        return content[: len(content) * 3 // 5]
    return NOT_NIFTI if damage is Reason.NOT_NIFTI else content


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_json(path: Path, content: dict) -> None:
    _write(path, (json.dumps(content, indent=2) + "\n").encode())


def _write_table(path: Path, rows: list[tuple]) -> None:
    _write(path, "".join("\t".join(str(cell) for cell in row) + "\n" for row in rows).encode())


def _sidecar(subject: Subject, modality: str) -> dict:
    site = SITES[subject.site]
    return {
        "Modality": "MR",
        "InstitutionName": subject.site,
        "MagneticFieldStrength": site.field_tesla,
        "SliceThickness": max(site.protocols[modality].spacing_mm),
        "SkullStripped": True,
    }


def _dataset_description(subjects: Groups, *, seed: int, prefix: str) -> dict:
    """Also says by which recipe the cohort was made, so that it can be known again."""
    return {
        "Name": "bfp demo cohort: synthetic subjects on ICBM152 anatomy",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "License": "CC0",
        "GeneratedBy": [
            {
                "Name": "bfp demo",
                "Description": f"recipe {RECIPE}, seed {seed}, prefix '{prefix}', {subjects._asdict()}",
            }
        ],
    }


def _write_tables(folder: Path, planned: list[Subject]) -> None:
    """Everything in the dataset that is not a scan, but for the description of the dataset."""
    header = ("participant_id", "age", "sex", "site", "diagnosis", "severity")
    rows = [
        (f"sub-{subject.label}", subject.age_years, subject.sex, subject.site, subject.diagnosis, subject.severity)
        for subject in planned
    ]
    _write_table(folder / "participants.tsv", [header, *rows])
    _write_json(folder / "participants.json", PARTICIPANTS)
    _write(folder / "README", README.encode())
    for name in ("tissue", "lesions"):
        about = {
            "Name": f"bfp demo cohort: true {name}",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "bfp demo"}],
        }
        _write_json(folder / "derivatives" / name / "dataset_description.json", about)
    _write_table(folder / "derivatives" / "tissue" / "dseg.tsv", [("index", "name", "abbreviation"), *TISSUES])


def _facts(folder: Path, subjects: Groups, planned: list[Subject]) -> CohortFacts:
    return CohortFacts(
        folder=folder,
        subjects=subjects,
        scans=sum(len(subject.modalities) for subject in planned),
        lacking=tuple(
            (f"sub-{subject.label}", modality)
            for subject in planned
            for modality in MODALITIES
            if modality not in subject.modalities
        ),
        broken=tuple(
            BrokenFile(_scan_path(subject, modality), reason)
            for subject in planned
            for modality, reason in subject.broken
        ),
        oracle_auroc=_auroc(planned, "severity"),
        age_auroc=_auroc(planned, "age_years"),
    )


def _auroc(planned: list[Subject], attribute: str) -> float:
    """How often a patient has more of it than a control, ties counted half."""
    control, disease = (
        np.array([getattr(subject, attribute) for subject in planned if subject.diagnosis == group])
        for group in ("control", "disease")
    )
    if not control.size or not disease.size:
        return float("nan")
    return float(np.mean(np.sign(disease[:, None] - control) / 2 + 0.5))

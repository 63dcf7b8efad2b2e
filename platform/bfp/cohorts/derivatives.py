"""Masks as BIDS derivatives (https://bids-specification.readthedocs.io, "Derivatives"): names, sidecars, the dataset.

    <derivatives>/<cohort>/dataset_description.json      one dataset for each cohort: two may have a subject of one name
    <derivatives>/<cohort>/README.md
    <derivatives>/<cohort>/desc-<segmentation>_dseg.tsv  what the numbers mean: index, name
    <derivatives>/<cohort>/sub-01[_ses-a]/anat/sub-01[_ses-a][_acq-…]_space-orig_desc-<segmentation>_dseg.nii.gz, .json

`space-orig`: a mask lies on the voxels of one scan, whose header it has; the sidecar names that scan. What BIDS does
not allow in a label goes (`wm-lesion` becomes `wmlesion`); where that would make two subjects one, a hash tells them
apart.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bfp import __version__
from bfp.cohorts.bids import parse_name
from bfp.cohorts.sessions import Key
from bfp.imaging.grid import Grid
from bfp.imaging.nifti import encode, encode_labels
from bfp.storage import Place

BIDS_VERSION = "1.10.0"
_KEPT = ("task", "acq", "ce", "rec", "run", "echo", "part", "chunk")  # entities of a scan that its mask has too
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9]")
_IMAGE_ENDS = (".nii.gz", ".nii", ".hdr", ".img")


@dataclass(frozen=True, slots=True)
class Masks:
    """The derivatives of a run. classes: 1, 2, … of the masks; description: of what they are, for a person."""

    at: Place
    segmentation: str
    classes: tuple[str, ...]
    description: str

    def write(self, key: Key, scan: str, labels: np.ndarray, *, header: bytes | None, grid: Grid) -> str:
        """Write a session's mask and its sidecar; the mask's path below `at`.

        scan: the URI of the file on whose voxels it lies. labels: uint8 (i, j, k). header: the scan's own; None for
        one without (a DICOM series), whose mask says by its sform alone where the grid lies.
        """
        stem = f"{key.cohort}/{mask_stem(key, scan, segmentation=self.segmentation)}"
        data = encode(labels, grid=grid) if header is None else encode_labels(labels, header=header)
        (self.at / f"{stem}.nii.gz").write(data)
        (self.at / f"{stem}.json").write(_json(self._sidecar(key, scan)))
        return f"{stem}.nii.gz"

    def describe(self, scans: Sequence[tuple[Key, str]]) -> None:
        """Write what stands once in each cohort's dataset. scans: of all masks, by their URIs."""
        roots: dict[str, str | None] = {}
        for key, scan in scans:
            root = bids_root(key, scan)
            roots[key.cohort] = root if roots.get(key.cohort, root) == root else None
        for cohort, root in roots.items():
            told: dict[str, object] = {
                "Name": f"{self.segmentation} of {cohort}, predicted",
                "BIDSVersion": BIDS_VERSION,
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "bfp", "Version": __version__, "Description": self.description}],
            }
            if root is not None:
                told |= {"SourceDatasets": [{"URL": root}], "DatasetLinks": {"source": root}}
            (self.at / cohort / "dataset_description.json").write(_json(told))
            readme = f"# {told['Name']}\n\n{self.description[0].upper()}{self.description[1:]}. For research only.\n"
            (self.at / cohort / "README.md").write(readme.encode())
            rows = "".join(f"{index}\t{name}\n" for index, name in enumerate(self.classes, start=1))
            table = f"index\tname\n0\tbackground\n{rows}"
            (self.at / cohort / f"desc-{bids_label(self.segmentation)}_dseg.tsv").write(table.encode())

    def _sidecar(self, key: Key, scan: str) -> dict[str, object]:
        root = bids_root(key, scan)
        source = _as_uri(scan) if root is None else f"bids:source:{_as_uri(scan).removeprefix(root).lstrip('/')}"
        return {
            "Description": self.description,
            "Manual": False,
            "Sources": [source],
            "SpatialReference": source,
            "LabelMap": {name: index for index, name in enumerate(self.classes, start=1)},
        }


def mask_stem(key: Key, scan: str, *, segmentation: str) -> str:
    """The path of a mask below its dataset, without its extension. scan: its file's URI."""
    subject, session = f"sub-{bids_label(key.subject)}", f"ses-{bids_label(key.session)}" if key.session else ""
    name = parse_name(_stem(scan))
    entities = name.entities if name is not None else {}
    kept = [f"{entity}-{entities[entity]}" for entity in _KEPT if entity in entities]
    folder = "/".join(filter(None, [subject, session, "anat"]))
    file = "_".join(filter(None, [subject, session, *kept, "space-orig", f"desc-{bids_label(segmentation)}", "dseg"]))
    return f"{folder}/{file}"


def bids_label(text: str) -> str:
    """A text as a BIDS label, of letters and digits; where any other had to go from a name, with a hash behind it."""
    plain = _NOT_IN_LABELS.sub("", text)
    if plain == text:
        return text
    return f"{plain}x{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def bids_root(key: Key, scan: str) -> str | None:
    """The URI of the BIDS dataset that a scan lies in, by its path; None where it lies in none."""
    root, found, _ = _as_uri(scan).rpartition(f"/sub-{key.subject}/")
    if key.session:
        root, found, _ = _as_uri(scan).rpartition(f"/sub-{key.subject}/ses-{key.session}/")
    return root if found else None


def _as_uri(scan: str) -> str:
    return scan if "://" in scan else f"file://{scan}"


def _stem(scan: str) -> str:
    name = scan.rpartition("/")[2]
    return next((name.removesuffix(end) for end in _IMAGE_ENDS if name.endswith(end)), name)


def _json(told: object) -> bytes:
    return (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode()

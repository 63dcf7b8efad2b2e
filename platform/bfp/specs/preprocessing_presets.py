"""The numbers of each preprocessing preset, as far as a paper or its released code says them; the rest is bfp's own.

brainfound  Mazher, Parker, Alexander 2025 (arXiv 2510.23415), github.com/Moona-Mazher/BrainFound. T1, T2 and FLAIR are
            the three channels of a slice along the array's first axis, which is z (Dataset/multimodal_mri_dataset.py);
            scans were co-registered, cropped and skull-stripped (scripts/preprocess_with_mripreprocessor.py); the
            network sees 224 pixels (examples/demo.py). The code does not say voxel size, interpolation and grey values.
            Its reader takes the slices 10 to 149 of a volume, which without a voxel size are no place in the head:
            slices are kept by their share of foreground. The skull is stripped by deepbet; with `brain: given` beside
            the preset, by whatever made the masks.
braindino   Wu et al. 2026 (arXiv 2604.27277), github.com/mclwu22/BrainDINO. One axial slice is one image; every slice
            from the first to the last that is not empty, axes RAS (networks/…/BMF_volume_slice_dataset.py); values
            between the 1st and 99th percentile of the voxels that are not zero, standardised over these voxels, images
            of 224 pixels (datasets_3D/Classification/adni_classification.py). It departs: that code clips at the
            percentiles, its reader for pretraining standardises the whole volume, and slices are stretched to 224
            pixels; here they are clipped at 3 standard deviations, and cut at 1 mm. The code does not say what made the
            scans ready before it reads them.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

_BRAINFOUND: dict[str, Any] = {
    "stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]},
    "size": 224,
    "slice_axis": "axial",
    "register": "rigid",
    "brain": "deepbet",
}

_BRAINDINO: dict[str, Any] = {
    "stacks": {"form": "neighbours", "gap_mm": 0.0},  # the same slice in all three channels
    "size": 224,
    "slice_axis": "axial",
    "window": [1.0, 99.0],
    "intensity": "zscore",
    "min_foreground": 0.0,
}

PREPROCESSING_PRESETS = MappingProxyType({"brainfound": _BRAINFOUND, "braindino": _BRAINDINO})

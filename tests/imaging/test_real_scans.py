"""Real scans, where the trial data are to be had: what is used, what is not and why, and what registration finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bfp.errors import Reason, Unusable
from bfp.imaging.nifti import Volume, decode
from bfp.imaging.session import prepare_session
from tests.imaging.makers import recipe


def read(file: Path) -> Volume:
    return decode(file.read_bytes())


@pytest.mark.parametrize(("subject", "off"), [(6, True), (10, False)])
def test_flairs_that_their_header_puts_12_mm_off_are_flagged_and_mended(shared: Path, subject: int, off: bool) -> None:
    cohort = shared / "scans" / "cohort"
    scans = {
        "T1w": read(cohort / "t1" / f"Subj{subject}_T1.nii.gz"),
        "FLAIR": read(cohort / "flair" / f"Subj{subject}_FL.nii.gz"),
    }
    (prepared,) = prepare_session(scans, recipe=recipe(register="rigid")).prepared
    shift_mm = prepared.facts[1].shift_mm
    assert shift_mm is not None
    assert (11 < shift_mm < 15) if off else shift_mm < 3
    assert bool(prepared.facts[1].warnings) is off
    (by_header,) = prepare_session(scans, recipe=recipe(register="header")).prepared
    assert bool(by_header.facts[1].warnings) is off

    def edges_shared(pixels: np.ndarray) -> float:
        steps = [np.abs(np.diff(pixels[:, channel].astype(float), axis=1)).ravel() for channel in (0, 2)]
        return float(np.corrcoef(*steps)[0, 1])

    if off:
        assert edges_shared(prepared.pixels) > edges_shared(by_header.pixels) + 0.1


def test_odd_scans_are_used_or_refused_for_a_true_reason(shared: Path) -> None:
    outcome: dict[str, Reason | None] = {}
    for file in sorted((shared / "scans" / "odd").glob("*.nii.gz")):
        name = file.name.removesuffix(".nii.gz")
        try:
            session = prepare_session({"T1w": read(file)}, recipe=recipe())
            outcome[name] = session.rejected["T1w"].reason if session.rejected else None
        except Unusable as unusable:
            outcome[name] = unusable.reason
    refused = {name: reason for name, reason in outcome.items() if reason}
    assert refused == {"Iguana": Reason.NO_SLICES, "chris_MRA": Reason.NO_SLICES, "pcasl": Reason.NOT_3D}
    assert len(outcome) == 11


def test_a_scan_of_somebody_else_is_flagged(shared: Path) -> None:
    cohort = shared / "scans" / "cohort"
    scans = {"T1w": read(cohort / "t1" / "Subj1_T1.nii.gz"), "FLAIR": read(cohort / "flair" / "Subj6_FL.nii.gz")}
    (prepared,) = prepare_session(scans, recipe=recipe(register="rigid")).prepared
    assert any("has little in common with the T1w" in text for text in prepared.facts[1].warnings)

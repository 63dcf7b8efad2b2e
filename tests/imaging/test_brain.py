"""The brain in a scan: what is skull-stripped already, what is not, and deepbet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bfp.errors import Reason, Unusable
from bfp.imaging import brain
from bfp.imaging.brain import deepbet_mask, find_brain, stripped_brain
from bfp.imaging.nifti import Volume, decode
from bfp.imaging.session import prepare_session
from tests.imaging.makers import grid, head, recipe, scan, volume

NATIVE = grid(axes="LPS", shape=(94, 108, 90), spacing_mm=(2.0, 2.1, 2.3))
BRAIN_ML = 4 / 3 * np.pi * 60 * 77 * 60 / 1000  # of the phantom


def stripped(contrast: str = "T1w", *, background: float = 0.0) -> Volume:
    """The phantom without its skull."""
    points = NATIVE.ras(np.moveaxis(np.indices(NATIVE.shape), 0, -1))
    inside = (points**2 / np.array([60.0, 77.0, 60.0]) ** 2).sum(axis=-1) < 1
    return volume(NATIVE, np.where(inside, head(NATIVE, contrast=contrast), background).astype(np.float32))


@pytest.mark.parametrize("background", [0.0, -1.5, 1000.0], ids=["zero", "standardised", "bright"])
def test_of_a_stripped_scan_the_brain_is_what_is_not_background(background: float) -> None:
    found = stripped_brain(stripped(background=background))
    assert (found.source, found.warnings) == ("image", ())
    assert found.size_ml == pytest.approx(BRAIN_ML, rel=0.01)
    assert found.mask.grid.matches(NATIVE, tolerance_mm=1e-4)
    np.testing.assert_array_equal(found.mask.stored != 0, stripped().stored != 0)


def test_a_head_is_not_taken_for_a_stripped_brain_and_the_figure_is_told() -> None:
    noisy = scan(NATIVE, noise=8.0)
    with pytest.raises(Unusable, match=r"no brain mask: not skull-stripped: \d+% of the voxels on the volume's faces"):
        stripped_brain(noisy)
    larger = grid(shape=(100, 120, 110), spacing_mm=(2.6, 2.6, 2.6))
    points = larger.ras(np.moveaxis(np.indices(larger.shape), 0, -1))
    whole = ((points / np.array([80.0, 100.0, 90.0])) ** 2).sum(axis=-1) < 1  # air at zero all around
    with pytest.raises(Unusable, match=r"3,\d\d\d ml are not background; a brain has 300 to 2,100 ml"):
        stripped_brain(volume(larger, (200 * whole).astype(np.int16)))


def test_the_brain_of_the_reference_blackens_what_lies_outside_in_every_scan() -> None:
    scans = {"T1w": stripped(), "FLAIR": scan(NATIVE, contrast="FLAIR")}
    (prepared,) = prepare_session(scans, recipe=recipe(brain="image", intensity="zscore")).prepared
    places = prepared.working.ras(np.moveaxis(np.indices(prepared.working.shape), 0, -1))[:, :, prepared.slices]
    outside = ((places / np.array([62.0, 79.0, 62.0])) ** 2).sum(axis=-1) > 1
    for channel in (0, 2):
        assert not prepared.pixels[:, channel][outside.T[:, ::-1]].any()
    assert [(facts.brain, round(facts.brain_ml or 0)) for facts in prepared.facts] == [
        ("image", pytest.approx(BRAIN_ML, rel=0.01))
    ] * 2


def test_a_reference_with_its_skull_is_rejected_where_the_brain_is_to_come_from_the_image() -> None:
    session = prepare_session(
        {"T1w": scan(NATIVE, noise=8.0), "FLAIR": stripped("FLAIR")}, recipe=recipe(brain="image")
    )
    assert session.rejected["T1w"].reason is Reason.NO_BRAIN_MASK
    assert [facts.modality for facts in session.prepared[0].facts] == ["FLAIR"]


def test_deepbet_looks_at_the_first_modality_alone_and_leaves_stripped_scans_as_they_are(monkeypatch) -> None:
    asked: list[Volume] = []
    monkeypatch.setattr(brain, "deepbet_mask", lambda each: asked.append(each) or stripped_brain(stripped()).mask)
    noisy = scan(NATIVE, noise=8.0)
    session = prepare_session({"T1w": noisy, "FLAIR": scan(NATIVE, contrast="FLAIR")}, recipe=recipe(brain="deepbet"))
    assert asked == [noisy]
    assert [facts.brain for facts in session.prepared[0].facts] == ["deepbet", "deepbet"]
    without = prepare_session({"FLAIR": scan(NATIVE, contrast="FLAIR")}, recipe=recipe(brain="deepbet"))
    assert without.rejected["FLAIR"].reason is Reason.NO_BRAIN_MASK
    found = find_brain(stripped(), how="deepbet", given=None, for_deepbet=True)
    assert found is not None
    assert (found.source, len(asked)) == ("image", 1)
    assert found.warnings == (
        f"skull-stripped already: what is not background, {found.size_ml:,.0f} ml, is taken for the brain",
    )


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (AssertionError("Not enough foreground to calculate bounding box"), "deepbet finds no brain in the scan"),
        (ValueError("attempt to get argmax of an empty sequence"), "deepbet finds no brain in the scan"),
        (ValueError("too many values to unpack"), "deepbet failed: ValueError: too many values to unpack"),
    ],
)
def test_deepbet_finding_no_brain_is_told_from_deepbet_failing(monkeypatch, error: Exception, told: str) -> None:
    class Networks:
        def run(self, image: object) -> None:
            raise error

    monkeypatch.setattr(brain, "_deepbet", Networks)
    with pytest.raises(Unusable) as caught:
        deepbet_mask(scan(NATIVE))
    assert (caught.value.reason, caught.value.detail) == (Reason.NO_BRAIN_MASK, told)


def test_real_scans_are_told_apart(shared: Path) -> None:
    odd = shared / "scans" / "odd"
    assert stripped_brain(decode((odd / "MR_Gd.nii.gz").read_bytes())).size_ml == pytest.approx(1516, abs=60)
    heads = [odd / f"{name}.nii.gz" for name in ("chris_t1", "chris_PD", "chris_MRA", "sample1_T1", "CT_pitch")]
    heads += sorted((shared / "scans" / "cohort").glob("[tf]*/*.nii.gz"))
    for file in heads:
        with pytest.raises(Unusable, match="not skull-stripped"):
            stripped_brain(decode(file.read_bytes()))


def test_deepbet_finds_the_brain_in_a_t1w_on_its_own_grid(shared: Path) -> None:
    pytest.importorskip("deepbet", reason="an extra: pip install 'bfp[deepbet]'")
    t1w = decode((shared / "scans/cohort/t1/Subj1_T1.nii.gz").read_bytes())
    regions = decode((shared / "scans/cohort/regions/Subj1_T1_DLMUSE.nii.gz").read_bytes())
    found = find_brain(t1w, how="deepbet", given=None, for_deepbet=True)
    assert found is not None
    assert (found.source, found.warnings) == ("deepbet", ())
    assert 1300 < found.size_ml < 1800
    labelled, inside = regions.stored != 0, found.mask.stored != 0
    assert inside[labelled].mean() > 0.99
    assert inside.mean() < 2 * labelled.mean()
    with pytest.raises(Unusable, match="deepbet finds no brain"):
        deepbet_mask(volume(NATIVE, np.ones(NATIVE.shape, np.int16)))

"""A planted field comes off, on every path from a file to pixels; what has none, or cannot have one, stays."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK

import bfp.imaging.bias_field as bias_field_module
import bfp.imaging.placing as placing
from bfp.imaging.bias_field import BiasField, estimate_bias_field
from bfp.imaging.foreground import find_foreground
from bfp.imaging.grid import Grid, apply
from bfp.imaging.label_maps import Segmentation
from bfp.imaging.nifti import Volume, decode, decode_each
from bfp.imaging.resample import Interpolation, resample
from bfp.imaging.session import Prepared, prepare_series, prepare_session
from bfp.imaging.stacks import to_pixels
from bfp.imaging.window import from_uint8, intensity_window, to_uint8
from tests.imaging.makers import grid, motion, recipe, volume

NATIVE = grid(axes="LPS", shape=(70, 86, 62))
STRENGTH = 0.3
N4 = recipe(bias_field="n4")


def tissue(at: Grid, *, contrast: str = "T1w", moved: np.ndarray | None = None) -> np.ndarray:
    """A head whose brain is folded more finely than any field: the waves of `makers.head` look like one themselves."""
    points = at.ras(np.moveaxis(np.indices(at.shape), 0, -1))
    x, y, z = np.moveaxis(points if moved is None else apply(np.linalg.inv(moved), points), -1, 0)
    white, grey, fluid = {"T1w": (200, 140, 60), "FLAIR": (150, 220, 40)}[contrast]
    folds = np.sin(x / 3.1 + y / 4.3) + np.sin(y / 3.7 - z / 2.9) + np.sin(z / 3.3 + x / 5.1)
    values = np.where((x / 68) ** 2 + (y / 85) ** 2 + (z / 68) ** 2 < 1, 100, 0)
    values = np.where((x / 60) ** 2 + (y / 77) ** 2 + (z / 60) ** 2 < 1, np.where(folds > 0, white, grey), values)
    return np.where(((x - 6) / 14) ** 2 + ((y + 8) / 34) ** 2 + ((z - 6) / 16) ** 2 < 1, fluid, values)


def waves(at: Grid) -> np.ndarray:
    x, y, z = np.moveaxis(at.ras(np.moveaxis(np.indices(at.shape), 0, -1)) / 85, -1, 0)
    return 0.55 * x + 0.35 * np.sin(1.8 * y) - 0.4 * z**2 + 0.25 * x * y


INSIDE = tissue(NATIVE) > 0
LOWEST, HIGHEST = waves(NATIVE)[INSIDE].min(), waves(NATIVE)[INSIDE].max()


def gain(at: Grid) -> np.ndarray:
    """A smooth field, from 1 - STRENGTH to 1 + STRENGTH over the head."""
    return 1 - STRENGTH + 2 * STRENGTH * (waves(at) - LOWEST) / (HIGHEST - LOWEST)


def even(at: Grid, *, contrast: str = "T1w", moved: np.ndarray | None = None, noise: float = 4.0) -> np.ndarray:
    """int16, ten to a grey value of the phantom. noise: of the head, in its grey values."""
    values = tissue(at, contrast=contrast, moved=moved)
    random = np.random.default_rng(0)
    return np.where(values > 0, np.rint(10 * (values + random.normal(0, noise, at.shape))), 0).astype(np.int16)


def biased(at: Grid, *, contrast: str = "T1w", moved: np.ndarray | None = None, noise: float = 4.0) -> np.ndarray:
    """What a scanner with this coil stores of it."""
    return np.rint(even(at, contrast=contrast, moved=moved, noise=noise) * gain(at)).astype(np.int16)


def file_of(values: np.ndarray, at: Grid = NATIVE) -> bytes:
    return bytes(nibabel.Nifti1Image(values, at.ras_from_voxel).to_bytes())


def prepared(values: np.ndarray, *, at: Grid = NATIVE, how=N4, **others) -> Prepared:
    (found,) = prepare_session({"T1w": decode(file_of(values, at))}, recipe=how, **others).prepared
    return found


def field_of(scan: Volume) -> BiasField:
    found = find_foreground(scan)
    field, warnings = estimate_bias_field(found, found)
    assert field is not None
    assert warnings == ()
    return field


def spread(values: np.ndarray) -> float:
    low, high = np.percentile(values, [5, 95])
    return float(high / low)


@pytest.mark.parametrize("noise", [2.0, 4.0, 8.0])
def test_a_planted_field_of_30_percent_comes_back_to_a_few_percent_of_flat(noise: float) -> None:
    scan = decode(file_of(biased(NATIVE, noise=noise)))
    field = field_of(scan)
    inside = find_foreground(scan).mask
    correction, planted = field.correction[1:-1, 1:-1, 1:-1][inside], gain(NATIVE)[inside]
    assert spread(planted) > 1.4
    assert field.ratio == pytest.approx(spread(planted), rel=0.03)
    assert spread(planted * correction) < 1.04
    assert np.std(planted * correction) < 0.02
    assert np.exp(np.log(correction).mean()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "at",
    [
        NATIVE,
        grid(axes="RAS", shape=(70, 86, 62)),
        grid(axes="PSR", shape=(86, 62, 70), spacing_mm=(2.2, 2.6, 2.4), tilt_deg=(8, -5, 12)),
    ],
    ids=["from the right", "from the left", "oblique"],
)
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_pixels_show_the_even_head_whatever_the_way_to_them(at: Grid, interpolation: Interpolation) -> None:
    wanted = volume(at, even(at))

    def unevenness(found: Prepared) -> float:
        truth = resample(
            wanted.stored,
            source=at,
            target=found.working,
            source_ras_from_target_ras=np.eye(4),
            interpolation=interpolation,
            outside=0,
        )
        truth = to_pixels(truth[:, :, found.slices])
        pixels = found.pixels[:, 0]
        kept = (pixels > 0) & (pixels < 255) & (truth > 900)
        return spread(from_uint8(pixels, found.facts[0].window)[kept] / truth[kept])

    shown = prepared(biased(at), at=at, how=recipe(bias_field="n4", interpolation=interpolation))
    assert unevenness(prepared(biased(at), at=at, how=recipe(interpolation=interpolation))) > 1.35
    assert unevenness(shown) < 1.04
    (facts,) = shown.facts
    assert facts.bias_field_ratio == pytest.approx(spread(gain(NATIVE)[INSIDE]), rel=0.03)
    assert facts.warnings == ()


def test_a_scan_that_follows_another_is_corrected_on_its_own_grid() -> None:
    off = motion(turn_deg=(3, -2, 5), shift_mm=(2, 11, -4))
    other = grid(axes="AIR", shape=(90, 66, 76), spacing_mm=(2.2, 2.6, 2.4), tilt_deg=(4, -3, 6))
    files = {"T1w": file_of(biased(NATIVE)), "FLAIR": file_of(biased(other, contrast="FLAIR", moved=off), other)}
    scans = {name: decode(file) for name, file in files.items()}
    (found,) = prepare_session(scans, recipe=recipe(bias_field="n4", register="rigid")).prepared
    white = (tissue(found.working, contrast="FLAIR", moved=None)[:, :, found.slices].T[:, ::-1]) == 150
    quarters = [
        (part, half) for part in (slice(None, 56), slice(56, None)) for half in (slice(None, 56), slice(56, None))
    ]
    means = [float(np.median(found.pixels[:, 2, rows, columns][white[:, rows, columns]])) for rows, columns in quarters]
    assert max(means) / min(means) < 1.06


def test_without_n4_pixels_are_the_stored_values_in_their_window_to_the_byte(monkeypatch) -> None:
    monkeypatch.setattr(placing, "estimate_bias_field", None)  # is not called
    scan = decode(file_of(biased(NATIVE)))
    found = prepared(biased(NATIVE), how=recipe())
    window = intensity_window(find_foreground(scan).values, lower_percentile=0.5, upper_percentile=99.5)
    values = resample(
        scan.stored,
        source=scan.grid,
        target=found.working,
        source_ras_from_target_ras=np.eye(4),
        interpolation="linear",
        outside=window.low,
    )
    np.testing.assert_array_equal(found.pixels[:, 0], to_pixels(to_uint8(values[:, :, found.slices], window)))
    assert found.facts[0].window == window
    assert found.facts[0].bias_field_ratio is None


def test_two_runs_are_equal_to_the_byte_however_many_threads_there_are() -> None:
    first = prepared(biased(NATIVE))
    before = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(4)
    try:
        second = prepared(biased(NATIVE))
    finally:
        SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert first.facts[0].bias_field_ratio == second.facts[0].bias_field_ratio


@pytest.mark.parametrize("kind", ["standardised", "CT"])
def test_values_of_both_signs_stay_as_they_are_and_say_so(kind: str) -> None:
    values = biased(NATIVE).astype(np.float32)
    inside = values > 0
    if kind == "CT":
        values = np.where(inside, values / 100 - 8, -1000).astype(np.float32)
    else:
        values[inside] = (values[inside] - values[inside].mean()) / values[inside].std()
    shown, plain = prepared(values), prepared(values, how=recipe())
    np.testing.assert_array_equal(shown.pixels, plain.pixels)
    assert shown.facts[0].bias_field_ratio is None
    (told,) = shown.facts[0].warnings
    assert told.startswith("the bias field was not corrected: its values go down to -")
    assert "is it CT, or standardised already?" in told


def test_each_volume_of_a_series_is_corrected_by_the_field_of_the_first() -> None:
    values = biased(NATIVE)
    random = np.random.default_rng(0)
    weighted = np.where(values > 0, 40 + values // 9 + random.integers(0, 30, values.shape), 0).astype(np.int16)
    how = recipe(form="neighbours", modalities=("dwi",), volumes="each", bias_field="n4")
    series = decode_each(file_of(np.stack([values, weighted], axis=3)))
    first, second = (each.prepared[0] for each in prepare_series("dwi", series, recipe=how))
    (alone,) = prepare_session({"dwi": decode(file_of(values))}, recipe=how).prepared
    np.testing.assert_array_equal(first.pixels, alone.pixels)
    assert first.facts[0].bias_field_ratio == second.facts[0].bias_field_ratio == alone.facts[0].bias_field_ratio
    scan = series.volume(1)
    field, found = field_of(series.volume(0)), find_foreground(scan)
    core = field.correction[1:-1, 1:-1, 1:-1][found.mask]
    window = intensity_window(found.values * core, lower_percentile=0.5, upper_percentile=99.5)
    assert second.facts[0].window == pytest.approx(window)


def test_what_is_wrong_with_a_field_is_told_once_of_a_series(monkeypatch) -> None:
    monkeypatch.setattr(bias_field_module, "_FEWEST_VOXELS", 1_000_000)
    how = recipe(form="neighbours", modalities=("dwi",), volumes="each", bias_field="n4")
    series = decode_each(file_of(np.stack([biased(NATIVE)] * 2, axis=3)))
    first, second = (each.prepared[0] for each in prepare_series("dwi", series, recipe=how))
    (told,) = first.facts[0].warnings
    assert "voxels of its foreground, one every 8 mm, are too few to tell a field" in told
    assert second.facts[0].warnings == ()
    np.testing.assert_array_equal(first.pixels, second.pixels)


def test_a_field_is_found_within_the_brain_mask() -> None:
    points = NATIVE.ras(np.moveaxis(np.indices(NATIVE.shape), 0, -1))
    brain = ((points / np.array([60.0, 77.0, 60.0])) ** 2).sum(axis=-1) < 1
    values = biased(NATIVE)
    glare = np.where(~brain & (values > 0), 3 * values, values)  # fat beside the coil
    mask = Segmentation(volume(NATIVE, brain.astype(np.uint8)), "T1w")
    how = recipe(bias_field="n4", brain="given")
    masked = [prepared(each, how=how, brain_mask=mask) for each in (values, glare)]
    assert masked[0].facts[0].bias_field_ratio == pytest.approx(masked[1].facts[0].bias_field_ratio)
    assert masked[0].facts[0].bias_field_ratio == pytest.approx(spread(gain(NATIVE)[brain]), rel=0.03)


def test_a_field_that_does_not_settle_is_flagged_and_the_stacks_are_there(monkeypatch) -> None:
    monkeypatch.setattr(bias_field_module, "_LEVELS", 1)
    monkeypatch.setattr(bias_field_module, "_ITERATIONS", 1)
    monkeypatch.setattr(bias_field_module, "_THRESHOLD", 0.0)
    monkeypatch.setattr(bias_field_module, "_UNSETTLED", 0.0001)
    found = prepared(biased(NATIVE))
    assert found.pixels.any()
    assert found.facts[0].bias_field_ratio is not None
    (told,) = found.facts[0].warnings
    assert "in the last of 1 iterations: it was corrected as far as it was known" in told


def test_a_filter_that_fails_leaves_the_scan_as_it_is(monkeypatch) -> None:
    def fails(*_, **__):
        raise RuntimeError("Exception thrown in SimpleITK:\nITK ERROR: no inverse")

    monkeypatch.setattr(bias_field_module, "_fitted", fails)
    found = prepared(biased(NATIVE))
    assert found.facts[0].warnings == ("the bias field was not corrected: ITK ERROR: no inverse",)
    np.testing.assert_array_equal(found.pixels, prepared(biased(NATIVE), how=recipe()).pixels)


def test_beyond_the_scan_pixels_stay_black() -> None:
    close = grid(axes="LPS", shape=(50, 62, 40))  # the head is cut on every side
    for intensity in ("percentiles", "zscore"):
        how = recipe(bias_field="n4", intensity=intensity, zscore_limit=20.0 if intensity == "zscore" else 3.0)
        found = prepared(biased(close), at=close, how=how)
        x = found.working.ras(np.array([[column, 56, 0] for column in range(112)]))[:, 0]
        beyond = np.abs(x) > np.abs(close.corners_ras()[:, 0]).max() + 0.01
        assert beyond.sum() > 10
        assert not found.pixels[:, 0][:, :, beyond].any()


def test_the_spline_is_the_same_function_on_a_finer_grid() -> None:
    values = biased(NATIVE).astype(np.float32)
    few = (slice(None, None, 3),) * 3
    coarse, region = values[few], values[few] > 0
    at = NATIVE.every((3, 3, 3))
    once, finely = (
        bias_field_module._fitted(coarse, region, at, finer=finer).log_gain for finer in ((1, 1, 1), (3, 3, 2))
    )
    np.testing.assert_allclose(finely[::3, ::3, ::2], once, atol=1e-4)

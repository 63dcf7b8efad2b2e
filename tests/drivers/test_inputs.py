"""What a spec says of scans reaches the layers below."""

from __future__ import annotations

from pathlib import Path

from bfp.drivers.inputs import _source, recipe_of, sessions_of
from bfp.specs.cohorts import Cohort
from bfp.specs.preprocessing import Preprocessing
from tests.cohorts.makers import touch


def test_every_field_of_the_preprocessing_is_in_the_recipe() -> None:
    fields = {
        "stacks": {"form": "neighbours", "gap_mm": 2.0, "modalities": ["T1w"]},
        "volumes": "first",
        "spacing_mm": 2.0,
        "slice_spacing_mm": 4.0,
        "size": 112,
        "slice_axis": "sagittal",
        "slice_range_mm": [-40.0, 50.0],
        "register": "header",
        "interpolation": "cubic",
        "brain": "image",
        "bias_field": "n4",
        "window": [1.0, 99.0],
        "intensity": "zscore",
        "zscore_limit": 2.5,
        "min_foreground": 0.1,
    }
    assert {*fields, "preset"} == {field.alias or name for name, field in Preprocessing.model_fields.items()}
    recipe = recipe_of(Preprocessing.model_validate(fields))
    assert (recipe.form, recipe.gap_mm, recipe.modalities) == ("neighbours", 2.0, ("T1w",))
    assert (recipe.spacing_mm, recipe.slice_spacing_mm, recipe.size_px) == (2.0, 4.0, 112)
    assert (recipe.slice_axis, recipe.slice_range_mm) == ("sagittal", (-40.0, 50.0))
    assert (recipe.register, recipe.brain, recipe.min_foreground) == ("header", "image", 0.1)
    assert (recipe.volumes, recipe.interpolation, recipe.bias_field) == ("first", "cubic", "n4")
    assert (recipe.window_percentiles, recipe.intensity, recipe.zscore_limit) == ((1.0, 99.0), "zscore", 2.5)


def test_of_a_brain_mask_what_is_in_any_class_is_brain() -> None:
    masks = [
        {"name": name, "suffix": "dseg", "drawn_on": "T1w", "classes": {"grey": [3, 1], "white": [2]}}
        for name in ("brain", "tissue")
    ]
    source = _source(Cohort.model_validate({"name": "a", "bids": "/x", "segmentations": masks}))
    assert [each.inside for each in source.segmentations] == [(1, 2, 3), ()]


def test_a_cohort_prefers_what_its_spec_prefers(tmp_path: Path) -> None:
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_acq-mprage_T1w.nii.gz")
    taken = [
        sessions_of([Cohort(name="a", bids=str(tmp_path), prefer=prefer)], Preprocessing())[0].scans[0].file.place.name
        for prefer in ({}, {"acq": "mprage"})
    ]
    assert taken == ["sub-01_T1w.nii.gz", "sub-01_acq-mprage_T1w.nii.gz"]

"""Presets, and what of a preprocessing stands in a store."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bfp.specs.preprocessing import Preprocessing
from bfp.specs.preprocessing_presets import PREPROCESSING_PRESETS

FIRST_STORES: dict[str, Any] = {
    "stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]},
    "spacing_mm": 1.0,
    "slice_spacing_mm": None,
    "size": 224,
    "register": "rigid",
    "brain": "none",
    "window": [0.5, 99.5],
    "min_foreground": 0.05,
}
"""What store.json held before there were further fields."""


def made(**fields: Any) -> Preprocessing:
    return Preprocessing.model_validate(fields)


def test_a_store_made_before_a_field_was_there_has_its_default() -> None:
    assert made().stored() == FIRST_STORES
    assert Preprocessing.model_validate(FIRST_STORES) == made()
    assert made(slice_axis="coronal").stored() == {**FIRST_STORES, "slice_axis": "coronal"}


def test_what_stands_in_a_store_says_all_that_is_done() -> None:
    other = made(
        stacks={"form": "neighbours", "gap_mm": 2.0, "modalities": ["T1w"]},
        spacing_mm=2.0,
        slice_spacing_mm=4.0,
        size=112,
        slice_axis="sagittal",
        slice_range_mm=[-40, 50],
        register="header",
        brain="image",
        bias_field="n4",
        window=[1, 99],
        intensity="zscore",
        zscore_limit=2.5,
        min_foreground=0.1,
        volumes="first",
        interpolation="cubic",
    )
    assert set(other.stored()) == {field.alias or name for name, field in Preprocessing.model_fields.items()} - {
        "preset"
    }
    assert Preprocessing.model_validate(other.stored()) == other


@pytest.mark.parametrize("preset", PREPROCESSING_PRESETS)
def test_a_preset_is_its_fields_and_what_stands_beside_it_goes_first(preset: str) -> None:
    by_name, by_fields = made(preset=preset), made(**PREPROCESSING_PRESETS[preset])
    assert by_name.model_dump(exclude={"preset"}) == by_fields.model_dump(exclude={"preset"})
    assert by_name.stored() == by_fields.stored() != made().stored()
    beside = made(preset=preset, size=112, brain="given")
    assert (beside.size, beside.brain) == (112, "given")


def test_what_of_stacks_stands_beside_a_preset_overrides_that_alone_unless_the_form_is_another() -> None:
    for stacks in ({"form": "neighbours", "modalities": ["T1w"]}, {"modalities": ["T1w"]}):
        beside = made(preset="braindino", stacks=stacks).stacks
        assert beside.model_dump() == {"form": "neighbours", "gap_mm": 0.0, "modalities": ["T1w"]}
    assert made(preset="braindino", stacks={"form": "neighbours", "gap_mm": 2.0}).stacks.model_dump()["gap_mm"] == 2.0
    other = made(preset="braindino", stacks={"form": "modalities"}).stacks
    assert other.model_dump() == {"form": "modalities", "channels": ("T1w", "T2w", "FLAIR")}


@pytest.mark.parametrize("preset", ["brain", ["brainfound"], {}, 3])
def test_a_preset_that_is_none_is_refused(preset: Any) -> None:
    with pytest.raises(ValidationError, match="preset"):
        made(preset=preset)

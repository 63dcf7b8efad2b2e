"""The presets of multi-crop: DINOv2's numbers as they were published, and ours."""

from __future__ import annotations

import json

import pytest

from bfp.pretraining import natural
from bfp.pretraining.crops import CropSettings
from bfp.specs import Pretrain, loads
from bfp.specs.pretrain import MriCrops, NaturalCrops
from tests.models.golden import GOLDEN, needs_golden


def crops_of(text: str) -> MriCrops | NaturalCrops:
    spec = loads(f"kind: pretrain\nname: a\nstore: s\ncrops: {text}\n", file="a.yaml")
    assert isinstance(spec, Pretrain)
    return spec.crops


def test_crops_are_for_mri_unless_another_preset_is_named_and_a_number_beside_it_counts() -> None:
    assert isinstance(crops_of("{}"), MriCrops)
    assert crops_of("{noise: 0}") == MriCrops(noise=0.0)
    named = crops_of("{preset: natural, hue: 0, local_count: 2}")
    assert named == NaturalCrops(preset="natural", hue=0.0, local_count=2)


@needs_golden
@pytest.mark.parametrize("blur", ["published", "declared"])
def test_the_natural_preset_has_every_number_of_the_published_augmentation(blur: str) -> None:
    told = json.loads((GOLDEN / "augment.json").read_text())
    crops = crops_of(f"{{preset: natural, blur_probability: {blur}}}")
    assert isinstance(crops, NaturalCrops)
    first, second, local = (told["defaults"][name] for name in ("global_1", "global_2", "local"))
    for view in (first, second, local):
        assert view["horizontal_flip_probability"] == crops.flip
        assert view["grayscale_probability"] == crops.greyscale
        jitter = view["colour_jitter"]
        assert jitter["probability"] == crops.jitter
        assert [jitter[name] for name in ("brightness", "contrast", "saturation", "hue")] == [
            crops.brightness,
            crops.contrast,
            crops.saturation,
            crops.hue,
        ]
        assert view["gaussian_blur"]["kernel_px"] == natural.BLUR_PX
        assert tuple(view["gaussian_blur"]["sigma_px"]) == natural.BLUR_SIGMA_PX
        assert view["solarize"]["threshold_uint8"] == natural.SOLARISE_FROM * 255
        assert view["attempts_before_centre_fallback"] == natural.ATTEMPTS
        assert tuple(view["aspect_ratio_w_over_h"]) == CropSettings.__dataclass_fields__["aspect"].default
        assert (view["interpolation"], view["antialias"]) == ("bicubic", True)
    assert tuple(first["area_scale"]) == tuple(second["area_scale"]) == crops.global_scale
    assert tuple(local["area_scale"]) == crops.local_scale
    assert (local["count"], [*local["size_px_other_configs"].values()]) == (crops.local_count, [crops.local_size_px])
    assert [view["solarize"]["probability"] for view in (first, second, local)] == [0, crops.solarise, 0]
    executed = tuple(view["gaussian_blur"]["effective_probability"] for view in (first, second, local))
    assert crops.blur == (
        executed if blur == "published" else tuple(told["blur_as_intended_by_the_paper_lineage"].values())
    )

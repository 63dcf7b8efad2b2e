"""The table of backbones is that of the installed timm."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bfp.specs.backbones import backbones
from tests.specs.timm_table import FILE, rows_of_timm, sizes_of_timm, text_of


def test_the_table_is_that_of_the_installed_timm():
    text, told = FILE.read_text(), rows_of_timm()
    rows = json.loads(text)
    assert text == text_of(rows)
    assert rows == {name: {**rows.get(name, {}), **row} for name, row in told.items()}, "run `make schemas`"


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_large_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_a_model_bears_out_its_row(name):
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(name)
    facts = backbones()[name]
    assert model.patch_embed.patch_size == (facts.patch_px, facts.patch_px)
    assert model.patch_embed.img_size == (facts.size_px, facts.size_px)
    assert sizes_of_timm(name).items() <= dataclasses.asdict(facts).items()

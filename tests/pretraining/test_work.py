"""What a step has to compute, against what torch counts while it is done."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from torch.utils.flop_counter import FlopCounterMode

from bfp.pretraining.crops import multi_crop
from bfp.pretraining.draws import Draws
from bfp.pretraining.loop import one_step, prepare
from bfp.pretraining.work import matrix_peak, memory_peaks, step_flops
from tests.pretraining.makers import make_recipe, make_stacks, make_vit

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("ssl", "shape"),
    [
        ({}, {}),
        ({"drop_path": 0.3}, {"depth": 4}),
        ({"shared_head": True, "head_layers": 2, "batch_norm_head": True}, {"reg_tokens": 4}),
    ],
    ids=["as published", "stochastic depth", "shared head"],
)
def test_the_formula_counts_what_is_executed_to_a_hundredth(ssl, shape) -> None:
    recipe = make_recipe(**ssl)
    state = prepare(make_vit(embed_dim=48, **shape), recipe=recipe, device=CPU, workers=1)
    for module in [*state.student.modules(), *state.teacher.modules()]:
        if isinstance(module, Attention):
            module.fused_attn = False  # torch does not count the CPU's fused attention
    draws = Draws(recipe.seed, 0, first=0, count=8, total=8)
    now, stacks = recipe.schedules.at(3), make_stacks(8)
    with FlopCounterMode(display=False) as cropping:
        multi_crop(stacks, draws, settings=recipe.crops, normalisation=recipe.normalisation)
    with FlopCounterMode(display=False) as counted:
        result = one_step(state, stacks, draws=draws, now=now, recipe=recipe, group=None)
    expected = step_flops(
        state.student, crops=recipe.crops, ssl=recipe.ssl, stacks=8, predicted=len(result.targets.patches)
    )
    assert expected == pytest.approx(counted.get_total_flops() - cropping.get_total_flops(), rel=0.01)


def test_peaks_are_in_the_units_that_they_say() -> None:
    held = torch.ones(300, 1000, 1000, dtype=torch.uint8)
    assert held.nbytes / 1e6 < memory_peaks(CPU)["host_memory_peak_mb"] < 100_000
    drawn = torch.get_rng_state()
    assert 1e8 < matrix_peak(CPU, torch.float32) < 1e14
    assert torch.equal(torch.get_rng_state(), drawn)

"""Pretraining on a GPU: the published steps, what stays in float32, waiting, and NCCL."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bfp.pretraining import checkpoint
from bfp.pretraining.device import send_ahead
from bfp.pretraining.draws import Draws
from bfp.pretraining.loop import Recipe, one_step, prepare, shard
from bfp.pretraining.step import StepResult, TrainState, start
from bfp.storage import place
from tests.models.golden import needs_golden
from tests.pretraining.makers import make_recipe, make_stacks, make_vit
from tests.pretraining.test_step import check_two_whole_steps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
GPU = torch.device("cuda")


def make_state(recipe: Recipe) -> TrainState:
    return prepare(make_vit(), recipe=recipe, device=GPU, workers=1)


def take_step(state: TrainState, recipe: Recipe, stacks: torch.Tensor) -> StepResult:
    draws = Draws(recipe.seed, state.step, first=0, count=recipe.batch_size, total=recipe.batch_size)
    now = recipe.schedules.at(state.step + 3)
    return one_step(state, stacks, draws=draws, now=now, recipe=recipe, group=None)


@needs_golden
@pytest.mark.parametrize("centring", ["softmax", "sinkhorn"])
@pytest.mark.parametrize("shared_head", [True, False])
def test_two_whole_steps_are_those_of_the_published_code(shared_head, centring):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    check_two_whole_steps(shared_head, centring, GPU)


@pytest.mark.parametrize("centring", ["softmax", "sinkhorn"])
def test_under_bf16_targets_losses_norms_and_weights_stay_float32(centring):
    recipe = make_recipe(centring=centring, precision="bf16")
    state = make_state(recipe)
    result = take_step(state, recipe, make_stacks(recipe.batch_size).to(GPU))
    kept = [*result.targets, *result.figures.values(), state.cls_centre, state.patch_centre]
    kept += [*state.student.parameters(), *state.teacher.parameters()]
    kept += [moment for moments in state.optimiser.state.values() for moment in moments.values()]
    assert {value.dtype for value in kept} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in kept)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("teacher_views", ["same", "own"])
@pytest.mark.parametrize("changed", [{}, {"drop_path": 0.3}, {"centring": "softmax", "shared_head": True}])
def test_after_twenty_steps_nothing_is_waited_for_nor_compiled(changed, teacher_views, compiled):
    recipe = make_recipe(steps=100, precision="bf16", constant_masks=True, **changed)
    crops = dataclasses.replace(recipe.crops, teacher_views=teacher_views)
    recipe = dataclasses.replace(recipe, crops=crops, compiled=compiled)
    state = make_state(recipe)
    stacks = make_stacks(recipe.batch_size).to(GPU)
    for _ in range(20):
        take_step(state, recipe, stacks)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(5):
                take_step(state, recipe, stacks)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_next_batch_is_copied_while_the_gpu_computes():
    batches = send_ahead(iter([torch.full((64, 3, 224, 224), n, dtype=torch.uint8) for n in range(4)]), GPU)
    found = [next(batches).clone()]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        for _ in range(3):
            torch.cuda._sleep(200_000_000)  # cycles, about a tenth of a second
            found.append(next(batches).clone())
        torch.cuda.synchronize()
    assert [int(batch.unique()) for batch in found] == [0, 1, 2, 3]
    copied, slept = (
        [event.time_range for event in profiled.events() if name in event.name] for name in ("Memcpy HtoD", "spin")
    )
    assert len(slept) == 3
    assert any(nap.start < copy.start and copy.end < nap.end for copy in copied for nap in slept)


def test_compiled_blocks_learn_what_the_others_learn():
    recipe = make_recipe(steps=100, constant_masks=True, drop_path=0.3)
    stacks = make_stacks(recipe.batch_size).to(GPU)
    losses = []
    for compiled in (False, True):
        own = dataclasses.replace(recipe, compiled=compiled)
        state = make_state(own)
        losses.append(torch.stack([take_step(state, own, stacks).figures["loss"] for _ in range(5)]))
    assert torch.allclose(*losses, rtol=1e-3)


def test_sharded_over_nccl_a_run_saves_and_resumes(tmp_path: Path):
    recipe = dataclasses.replace(make_recipe(steps=20), recompute=True)
    stacks = make_stacks(recipe.batch_size).to(GPU)
    dist.init_process_group("nccl", rank=0, world_size=1, store=dist.HashStore())
    try:
        mesh = dist.init_device_mesh("cuda", (1,))
        states = []
        for _ in range(2):
            state = make_state(recipe)
            shard(state.student, mesh)
            shard(state.teacher, mesh)
            states.append(start(state.student, state.teacher, recipe.ssl))
        first, second = states
        take_step(first, recipe, stacks)
        with checkpoint.Writer(
            place(str(tmp_path)), schedules=recipe.schedules, keep=1, keep_every=None, before_marker=lambda step: None
        ) as writer:
            writer.save(first)
        checkpoint.load(second, place(str(tmp_path)), step=1)
        losses = [take_step(state, recipe, stacks).figures["loss"] for state in states]
        assert torch.allclose(*losses, rtol=1e-5)
    finally:
        dist.destroy_process_group()

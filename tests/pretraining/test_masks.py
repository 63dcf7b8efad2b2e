from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bfp.pretraining.draws import Draws
from bfp.pretraining.masks import VISIBLE_SHARE, block_masks, evened, head_patches, largest_block, masked
from tests.models.golden import GOLDEN, needs_golden


def draw(images=6, *, step=0, first=0, count=None, grid=(8, 6), ratio=(0.1, 0.5), probability=0.5, constant=False):
    draws = Draws(7, step, first=first, count=count or images, total=images)
    return block_masks(draws, grid=grid, ratio=ratio, probability=probability, constant=constant)


@settings(max_examples=30, deadline=None)
@given(images=st.integers(1, 9), probability=st.floats(0, 1), step=st.integers(0, 50), rows=st.integers(4, 9))
def test_no_more_than_the_share_of_crops_is_masked_and_none_beyond_its_target(images, probability, step, rows):
    masks = draw(images, step=step, probability=probability, grid=(rows, 5))
    assert masks.shape == (2 * images, rows * 5)
    assert (masks.any(1)).sum() <= int(2 * images * probability)
    assert masks.sum(1).max() <= int(rows * 5 * 0.5)


@settings(max_examples=20, deadline=None)
@given(step=st.integers(0, 50), cut=st.integers(1, 5), constant=st.booleans())
def test_two_workers_draw_the_masks_of_one(step, cut, constant):
    whole = draw(step=step, constant=constant).reshape(2, 6, -1)
    parts = [
        draw(step=step, first=0, count=cut, constant=constant),
        draw(step=step, first=cut, count=6 - cut, constant=constant),
    ]
    joined = np.concatenate([part.reshape(2, -1, whole.shape[-1]) for part in parts], axis=1)
    assert (joined == whole).all()


def test_constant_masks_hide_the_same_number_of_patches_in_every_batch():
    constant = [int(draw(step=step, constant=True).sum()) for step in range(20)]
    assert len(set(constant)) == 1
    varying = [int(draw(step=step).sum()) for step in range(20)]
    assert len(set(varying)) > 1
    assert constant[0] == pytest.approx(np.mean(varying), rel=0.1)


def test_indices_and_weights_belong_to_the_hidden_patches():
    masks = draw()
    found = masked(masks, device=torch.device("cpu"))
    assert (np.flatnonzero(masks) == found.indices.numpy()).all()
    per_crop = torch.zeros(len(masks)).index_add_(0, found.indices // masks.shape[1], found.weights)
    assert torch.allclose(per_crop, torch.from_numpy(masks.any(1)).float())


def of_the_head(masks, head, *, first=0, count=6, smallest_ratio=0.1):
    draws = Draws(7, 0, first=first, count=count, total=6)
    return head_patches(masks, head=head, draws=draws, smallest_ratio=smallest_ratio)


def test_patches_of_the_head_are_predicted_hidden_or_not_and_air_only_where_the_head_ends():
    masks = draw(constant=True)
    N = masks.shape[1]
    found = of_the_head(masks, torch.ones(12, N))
    assert len(found.indices.unique()) == len(found.indices)
    hidden = torch.from_numpy(masks).flatten()[found.indices]
    assert int(hidden.sum()) == int(0.1 * N) * int(masks.any(1).sum())
    assert int((~hidden).sum()) == int(VISIBLE_SHARE * N) * 12
    assert (found.weights == 1).all()
    half = (torch.arange(N) < N // 2).float().expand(12, N)
    shown = ~torch.from_numpy(masks).flatten()[of_the_head(masks, half).indices]
    columns = of_the_head(masks, half).indices[shown] % N
    enough = (~torch.from_numpy(masks)[:, : N // 2]).sum(1).min() >= int(VISIBLE_SHARE * N)
    assert enough
    assert (columns < N // 2).all()


def test_a_patch_that_stands_in_where_a_crop_hides_too_few_weighs_nothing():
    masks = np.zeros((12, 48), bool)
    masks[0, :2] = True
    found = of_the_head(masks, torch.ones(12, 48))
    stand_ins = ~torch.from_numpy(masks).flatten()[found.indices[:4]]
    assert stand_ins.tolist() == (found.weights[:4] == 0).tolist() == [False, False, True, True]
    (even,) = evened([found], group=None)
    assert even.weights.sum().item() == pytest.approx(12)


def test_a_patch_weighs_the_same_in_whatever_part_of_a_batch_it_is():
    masks, head = draw(constant=True), torch.from_numpy(np.random.default_rng(0).random((12, 48), np.float32))
    parts = []
    for first, count in ((0, 2), (2, 4)):
        crops = np.concatenate([np.arange(first, first + count), np.arange(first, first + count) + 6])
        parts.append(of_the_head(masks[crops], head[crops], first=first, count=count))
    (whole,), split = evened([of_the_head(masks, head)], group=None), evened(parts, group=None)
    assert len(parts[0].indices) * 2 != len(parts[1].indices)  # masked crops are shuffled over the batch
    assert torch.cat([part.weights for part in split]).unique().tolist() == whole.weights.unique().tolist()


def test_two_workers_predict_the_patches_of_one():
    masks, head = draw(constant=True), torch.from_numpy(np.random.default_rng(0).random((12, 48), np.float32))
    N = masks.shape[1]
    whole = {(int(index) // N, int(index) % N) for index in of_the_head(masks, head).indices}
    joined = set()
    for first, count in ((0, 2), (2, 4)):
        crops = np.concatenate([np.arange(first, first + count), np.arange(first, first + count) + 6])
        part = of_the_head(masks[crops], head[crops], first=first, count=count)
        joined |= {(int(crops[int(index) // N]), int(index) % N) for index in part.indices}
    assert joined == whole


def test_no_masks_make_empty_indices():
    found = masked(draw(probability=0.0), device=torch.device("cpu"))
    assert found.indices.shape == found.weights.shape == (0,)


@needs_golden
def test_masks_have_the_published_statistics():
    reference = json.loads((GOLDEN / "masks.json").read_text())
    batches = [draw(32, step=step, grid=(16, 16)) for step in range(reference["batches"])]
    masks = np.concatenate(batches)
    of_masked = np.concatenate([batch[batch.any(1)] for batch in batches]).mean(1)
    assert {int(batch.any(1).sum()) for batch in batches} == {reference["masked_crops_per_batch_always"]}
    assert masks.mean() == pytest.approx(reference["mean_masked_share_all_crops"], abs=0.002)
    assert of_masked.mean() == pytest.approx(reference["mean_masked_share_masked_crops"], abs=0.002)
    assert of_masked.std() == pytest.approx(reference["std_masked_share_masked_crops"], abs=0.002)
    by_place = masks.reshape(-1, 16, 16).mean(0)
    where = reference["mean_masked_share_by_grid_position"]
    assert by_place.mean(1) == pytest.approx(where["row_profile"], abs=0.012)
    assert by_place.mean(0) == pytest.approx(where["column_profile"], abs=0.012)
    assert by_place[[0, 0, -1, -1], [0, -1, 0, -1]].mean() == pytest.approx(where["corner"], abs=0.006)
    per_batch = [int(batch.sum()) for batch in batches]
    assert np.mean(per_batch) == pytest.approx(reference["masked_patches_per_batch"]["mean"], abs=3)
    assert np.std(per_batch) == pytest.approx(reference["masked_patches_per_batch"]["std"], rel=0.3)


@needs_golden
@pytest.mark.parametrize("target", ["26", "64", "102", "128"])
def test_masks_of_one_target_fall_short_as_rarely_as_the_published_ones(target):
    reference = json.loads((GOLDEN / "masks.json").read_text())["by_target_patches"][target]
    share = (int(target) + 0.5) / 256
    achieved = np.concatenate(
        [draw(250, step=step, grid=(16, 16), ratio=(share, share), probability=1.0).sum(1) for step in range(6)]
    )
    assert (achieved == int(target)).mean() == pytest.approx(reference["share_on_target"], abs=0.03)
    assert achieved.mean() == pytest.approx(reference["achieved_mean"], abs=0.03)
    assert achieved.min() >= reference["achieved_min"] - 3


@needs_golden
def test_the_largest_block_is_capped_as_published():
    for row in json.loads((GOLDEN / "masks.json").read_text())["max_block_patches_by_global_crop_and_patch"]:
        side = row["crop_px"] // row["patch"]
        assert largest_block((side, side)) == row["value"]

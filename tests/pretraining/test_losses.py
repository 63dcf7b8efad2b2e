"""DINO, iBOT, KoLeo and the targets, against the published code and against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bfp.pretraining.cross_entropy import softmax
from bfp.pretraining.dino import dino_loss
from bfp.pretraining.ibot import ibot_loss
from bfp.pretraining.koleo import koleo_loss
from bfp.pretraining.targets import sinkhorn, updated_centre
from tests.models.golden import assert_near, below, needs_golden, tensors

MODES = ("centering", "sinkhorn")


def naive_dino(student, targets, temperature):
    """The mean cross-entropy over all pairs but a crop with itself, as the definition has it."""
    pairs = [(t, s) for t in range(2) for s in range(len(student)) if t != s]
    each = [-(targets[t] * torch.log_softmax(student[s] / temperature, -1)).sum(-1).mean() for t, s in pairs]
    return torch.stack(each).mean()


@settings(max_examples=20, deadline=None)
@given(local=st.integers(0, 3), seed=st.integers(0, 99))
def test_dino_is_the_mean_over_all_pairs_but_a_crop_with_itself(local, seed):
    torch.manual_seed(seed)
    student = torch.randn(2 + local, 5, 7, dtype=torch.float64).float()
    targets = torch.softmax(torch.randn(2, 5, 7) * 3, -1)
    loss = dino_loss(student_global=student[:2], student_local=student[2:], targets=targets, temperature=0.1)
    assert torch.allclose(sum(loss), naive_dino(student, targets, 0.1), rtol=1e-5)


def test_a_crop_that_is_not_masked_lowers_ibot_but_not_its_weight():
    logits, targets = torch.randn(3, 7), torch.softmax(torch.randn(3, 7), -1)
    weights = torch.tensor([0.5, 0.5, 1.0])  # two patches of one crop, one of another
    at = {"student": logits, "targets": targets, "weights": weights, "temperature": 0.1}
    assert torch.allclose(ibot_loss(crops=8, **at), ibot_loss(crops=2, **at) / 4)


def test_koleo_is_low_for_tokens_far_apart_and_pulls_on_both_ends_of_a_pair():
    spread = torch.eye(4)
    close = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [-1.0, 0.0]], requires_grad=True)
    assert koleo_loss(spread) == pytest.approx(-math.log(math.sqrt(2)), abs=1e-5)
    assert koleo_loss(close) > koleo_loss(spread)
    koleo_loss(close).backward()
    assert close.grad[0, 1] > 0 > close.grad[1, 1]  # descent moves the two apart


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 40), seed=st.integers(0, 99), scale=st.floats(0.1, 60))
def test_sinkhorn_rows_sum_to_one_and_prototypes_get_nearly_the_same(rows, seed, scale):
    torch.manual_seed(seed)
    targets = sinkhorn(torch.randn(rows, 8) * scale, temperature=scale)
    assert torch.allclose(targets.sum(1), torch.ones(rows), atol=1e-5)
    many = sinkhorn(torch.randn(rows, 8), temperature=1.0, iterations=200)
    assert torch.allclose(many.sum(0), torch.full((8,), rows / 8), rtol=1e-2)


def test_sinkhorn_stands_logits_whose_exponential_overflows():
    assert torch.isfinite(sinkhorn(torch.tensor([[9.0, 8.0], [8.0, 9.0]]), temperature=0.04)).all()


def test_sinkhorn_gives_a_prototype_far_below_all_others_its_share():
    logits = torch.tensor([[0.0, -9.0], [0.5, -8.5], [0.2, -9.4]])
    targets = sinkhorn(logits, temperature=0.04, iterations=50)
    assert targets.sum(0).tolist() == pytest.approx([1.5, 1.5], abs=0.2)


def test_a_batch_without_masked_patches_leaves_targets_and_centre_alone():
    none = torch.zeros(0, 5)
    centre = torch.randn(1, 5)
    assert sinkhorn(none, temperature=0.1).shape == (0, 5)
    assert torch.equal(updated_centre(centre, none), centre)


@needs_golden
@pytest.mark.parametrize("mode", MODES)
def test_dino_targets_loss_and_gradients_are_the_published_ones(mode):
    reference = below(tensors("losses"), "dino/")
    centre = torch.zeros(1, 96)
    for step in range(3):
        expected = below(reference, f"step{step}/{mode}/")
        teacher = reference[f"step{step}/teacher_logits"]
        temperature = float(reference["teacher_temp"][step])
        if mode == "sinkhorn":
            targets = sinkhorn(teacher, temperature=temperature)
        else:
            assert_near(centre, expected["center_used"], 2e-6)
            targets = softmax(teacher, centre=centre, temperature=temperature)
            centre = updated_centre(centre, teacher)
        targets = targets.unflatten(0, (2, -1))
        assert_near(targets.flip(0).flatten(0, 1), expected["teacher_probs_swapped"], 2e-6)
        large = reference["student_global_logits"].clone().requires_grad_()
        small = reference["student_local_logits"].clone().requires_grad_()
        loss = dino_loss(
            student_global=large.unflatten(0, (2, -1)),
            student_local=small.unflatten(0, (4, -1)),
            targets=targets,
            temperature=0.1,
        )
        assert_near(loss.local_crops, expected["local_loss"], 2e-6)
        assert_near(loss.global_crops, expected["global_loss"], 2e-6)
        sum(loss).backward()
        assert_near(small.grad, expected["grad_student_local"], 2e-6)
        assert_near(large.grad, expected["grad_student_global"], 2e-6)
    if mode == "centering":
        assert_near(centre, reference["center_after_step2"], 2e-6)


@needs_golden
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_sinkhorn_is_the_published_one(iterations):
    reference = below(tensors("losses"), "dino/")
    targets = sinkhorn(reference["step0/teacher_logits"], temperature=0.04, iterations=iterations)
    assert_near(targets, reference[f"sinkhorn_iters{iterations}"], 2e-6)


@needs_golden
@pytest.mark.parametrize("mode", MODES)
def test_ibot_targets_loss_and_gradients_are_the_published_ones(mode):
    everything = tensors("losses")
    reference, temperatures = below(everything, "ibot/"), everything["dino/teacher_temp"]
    centre = torch.zeros(1, 96)
    for step in range(3):
        given_, expected = below(reference, f"step{step}/"), below(reference, f"step{step}/{mode}/")
        hidden = int(given_["n_masked"])
        teacher, temperature = given_["teacher_logits_padded"][:hidden], float(temperatures[step])
        if mode == "sinkhorn":
            targets = sinkhorn(teacher, temperature=temperature)
        else:
            assert_near(centre, expected["center_used"], 2e-6)
            targets = softmax(teacher, centre=centre, temperature=temperature)
            centre = updated_centre(centre, teacher)
        assert_near(targets, expected["teacher_probs"], 2e-6)
        student = given_["student_logits_padded"][:hidden].clone().requires_grad_()
        loss = ibot_loss(student=student, targets=targets, weights=given_["masks_weight"], crops=12, temperature=0.1)
        assert_near(loss, expected["loss"], 2e-6)
        loss.backward()
        assert_near(student.grad, expected["grad_student"], 2e-6)
    if mode == "centering":
        assert_near(centre, reference["center_after_step2"], 2e-6)


@needs_golden
def test_koleo_loss_and_gradient_are_the_published_ones():
    reference = below(tensors("losses"), "koleo/")
    tokens = reference["cls_tokens"].requires_grad_()
    each = torch.stack([koleo_loss(chunk) for chunk in tokens.chunk(2)])
    assert_near(each, reference["loss_per_chunk"], 2e-6)
    weighted = 0.1 * each.sum()
    weighted.backward()
    assert_near(weighted, reference["weighted_sum"], 2e-6)
    assert_near(tokens.grad, reference["grad_of_weighted_sum"], 2e-5)
    assert_near(koleo_loss(reference["duplicate_tokens"]), reference["duplicate_loss"], 1e-4)

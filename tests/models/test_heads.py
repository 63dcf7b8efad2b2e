from __future__ import annotations

import copy

import pytest
import torch

from bfp.models.heads import Head
from tests.models.golden import assert_near, below, needs_golden, tensors


def make_head(**changed):
    torch.manual_seed(2)
    shape = {"width": 20, "hidden": 32, "bottleneck": 12, "prototypes": 40}
    return Head(**{**shape, **changed})


def test_logits_lie_within_the_prototypes_lengths():
    head = make_head()
    torch.nn.init.uniform_(head.last_layer.weight_g, 0.5, 2)
    logits = head(torch.randn(7, 20) * 100)
    assert logits.shape == (7, 40)
    assert (logits.abs() <= head.last_layer.weight_g.T + 1e-6).all()


def test_groups_of_rows_come_back_in_order():
    head = make_head()
    first, second = torch.randn(5, 20), torch.randn(3, 20)
    together = head(first, second)
    assert torch.allclose(together, torch.cat([head(first), head(second)]), atol=1e-6)


def test_batch_normalisation_keeps_groups_apart():
    head = make_head(batch_norm=True)
    cls, patches = torch.randn(6, 20), torch.randn(9, 20) * 3 + 1
    alone = head(cls)
    assert torch.allclose(head(cls, patches)[:6], alone, atol=1e-6)
    assert not torch.allclose(head(torch.cat([cls, patches]))[:6], alone, atol=1e-3)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_normalisation_of_hardly_any_rows_stays_finite(rows):
    head = make_head(batch_norm=True)
    head(torch.randn(6, 20), torch.randn(rows, 20)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())


def test_a_head_can_be_copied_for_the_teacher():
    head = make_head(batch_norm=True)
    rows = torch.randn(4, 20)
    assert torch.equal(copy.deepcopy(head)(rows), head(rows))


@needs_golden
def test_output_and_gradients_are_those_of_the_published_head():
    reference = tensors("heads")
    head = Head(width=48, hidden=64, bottleneck=16, prototypes=128)
    head.load_state_dict(below(reference, "weights/"))
    rows = reference["input"].requires_grad_()
    output = head(rows)
    assert_near(output, reference["output"], 1e-5)
    (output * reference["output_cotangent"]).sum().backward()
    assert_near(rows.grad, reference["grad_input"], 1e-5)
    for name, parameter in head.named_parameters():
        assert_near(parameter.grad, reference[f"grad_weights/{name}"], 1e-5)
    assert_near(head(torch.zeros(2, 48)), reference["output_of_zero_rows"], 1e-5)

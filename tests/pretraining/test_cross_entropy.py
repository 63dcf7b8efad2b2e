from __future__ import annotations

import pytest
import torch

from bfp.pretraining import cross_entropy as chunked
from bfp.pretraining.cross_entropy import cross_entropy, softmax


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
@pytest.mark.parametrize("views", [1, 3])
def test_value_and_gradient_are_those_of_the_definition_however_rows_are_taken(monkeypatch, rows_at_a_time, views):
    torch.manual_seed(1)
    monkeypatch.setattr(chunked, "CPU_CHUNK", rows_at_a_time * 11)
    logits = (torch.randn(5 * views, 11, dtype=torch.float64) * 3).float().requires_grad_()
    targets, weights = 2 * torch.softmax(torch.randn(5, 11) * 2, -1), torch.rand(5 * views)
    defined = -(targets.repeat(views, 1) * torch.log_softmax(logits / 0.1, -1)).sum(-1)
    (expected,) = torch.autograd.grad((defined * weights).sum(), logits)
    found = cross_entropy(logits, targets, temperature=0.1, mass=2.0)
    (gradient,) = torch.autograd.grad((found * weights).sum(), logits)
    assert torch.allclose(found, defined, rtol=1e-5)
    assert torch.allclose(gradient, expected, atol=1e-5 * expected.abs().max())


def test_halves_are_computed_in_float32():
    """A temperature of 0.1 makes bfloat16 logits of 40 out of 4: summed in bfloat16 they would be off by 0.1."""
    torch.manual_seed(1)
    logits = torch.randn(6, 5000).bfloat16().requires_grad_()
    targets = torch.softmax(torch.randn(6, 5000), -1)
    found = cross_entropy(logits, targets, temperature=0.1)
    found.sum().backward()
    exact = -(targets.double() * torch.log_softmax(logits.detach().double() / 0.1, -1)).sum(-1)
    assert (found.dtype, logits.grad.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(found.double(), exact, rtol=1e-5)


def test_no_rows_have_no_loss_and_no_targets():
    none = torch.zeros(0, 5, requires_grad=True)
    cross_entropy(none, torch.zeros(0, 5), temperature=0.1).sum().backward()
    assert none.grad.shape == (0, 5)
    assert softmax(torch.zeros(0, 5), centre=torch.zeros(1, 5), temperature=0.1).shape == (0, 5)
    cross_entropy(none, torch.rand(3, 5), temperature=0.1).sum().backward()  # a step without local crops


def test_targets_are_the_softmax_of_centred_logits_however_rows_are_taken(monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(chunked, "CPU_CHUNK", 22)
    logits, centre = torch.randn(5, 11), torch.randn(1, 11)
    assert torch.allclose(
        softmax(logits, centre=centre, temperature=0.04), torch.softmax((logits - centre) / 0.04, -1), atol=1e-6
    )

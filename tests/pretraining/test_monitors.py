from __future__ import annotations

import pytest
import torch

from bfp.pretraining.monitors import effective_rank, entropy, figures, patch_similarity, prototypes_used, verdict
from bfp.pretraining.step import StepResult, Targets


def result(cls, patches, targets):
    return StepResult({}, cls, patches, Targets(cls=targets, patches=targets[:0]))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_the_directions_of_equal_spread(rank):
    axes = torch.linalg.qr(torch.randn(8, 8)).Q[:rank]
    assert effective_rank(torch.cat([axes, -axes]) + 5).item() == pytest.approx(rank, rel=1e-2)


def test_entropy_is_a_share_of_the_largest():
    assert entropy(torch.full((4,), 0.25)).item() == pytest.approx(1)
    assert entropy(torch.tensor([1.0, 0, 0, 0])).item() == 0


def test_prototypes_used_counts_first_choices():
    assert prototypes_used(torch.eye(6)[[0, 0, 2, 3]]).item() == 3 / 4


def test_patch_similarity_is_one_for_equal_patches_and_zero_for_orthogonal_ones():
    assert patch_similarity(torch.ones(2, 5, 3)).item() == pytest.approx(1)
    assert patch_similarity(torch.eye(4)[None]).item() == pytest.approx(0, abs=1e-6)


def test_a_collapse_is_named_and_a_healthy_step_is_not():
    torch.manual_seed(0)
    healthy = torch.softmax(torch.randn(16, 20) * 4, -1)
    spread = torch.randn(16, 12)
    patches = torch.randn(16, 9, 12)
    assert verdict(figures(result(spread, patches, healthy))) is None
    one = torch.randn(1, 12) + torch.randn(16, 1) * torch.randn(1, 12)
    assert "class tokens" in verdict(figures(result(one, patches, healthy)))
    shared = torch.zeros(16, 20).index_fill_(1, torch.tensor(3), 1.0)
    assert "share a few prototypes" in verdict(figures(result(spread, patches, shared)))
    assert "uniform" in verdict(figures(result(spread, patches, torch.full((16, 20), 0.05))))
    few_rows = torch.zeros(2, 65536).scatter_(1, torch.tensor([[3], [9]]), 1.0)
    assert verdict(figures(result(spread, patches, few_rows))) is None

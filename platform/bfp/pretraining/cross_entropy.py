"""Cross-entropy over the prototypes, and the softmax of targets, a few rows at a time.

With 65,536 prototypes the logits of a step are its largest tensors: on a CPU what takes time is going through them, and
finding memory for one more of their size. Rows are taken so few at a time that they stay in the cache, and no tensor of
log-probabilities is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits taken at a time. On a CPU 4 MB, which its second-level caches hold; a GPU wants few large kernels.
CPU_CHUNK, GPU_CHUNK = 2**20, 2**28


def cross_entropy(logits: Tensor, targets: Tensor, *, temperature: float, mass: float = 1.0) -> Tensor:
    """-Σ_k targets · log softmax(logits / temperature): float32 (rows,).

    logits: (rows, K). targets: float32 (T, K) without a gradient, each row sums to mass; rows is a multiple of T, and
    row r has the target r mod T.
    """
    result: Tensor = _CrossEntropy.apply(logits, targets, temperature, mass)
    return result


def softmax(logits: Tensor, *, centre: Tensor, temperature: float) -> Tensor:
    """softmax((logits - centre) / temperature): float32 (rows, K). logits (rows, K), centre (1, K)."""
    found = torch.empty_like(logits, dtype=torch.float32)
    for rows in _chunks(logits, len(logits)):
        torch.softmax((logits[rows].float() - centre).div_(temperature), dim=-1, out=found[rows])
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float, mass: float) -> Tensor:
        found = logits.new_empty(len(logits), dtype=torch.float32)
        normaliser = torch.empty_like(found)
        for rows, own in _with_targets(logits, targets):
            scaled = logits[rows].float() / temperature
            normaliser[rows] = torch.logsumexp(scaled, dim=-1)
            found[rows] = mass * normaliser[rows] - torch.linalg.vecdot(scaled, own)
        ctx.save_for_backward(logits, targets, normaliser)
        ctx.temperature, ctx.mass = temperature, mass
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, targets, normaliser = ctx.saved_tensors
        found = torch.empty_like(logits)
        for rows, own in _with_targets(logits, targets):
            probabilities = (logits[rows].float() / ctx.temperature).sub_(normaliser[rows, None]).exp_()
            found[rows] = probabilities.mul_(ctx.mass).sub_(own).mul_((gradient[rows] / ctx.temperature)[:, None])
        return found, None, None, None


def _with_targets(logits: Tensor, targets: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the logits and their targets, a few at a time."""
    for first in range(0, len(logits), max(len(targets), 1)):
        for own in _chunks(logits, len(targets)):
            yield slice(first + own.start, first + own.stop), targets[own]


def _chunks(like: Tensor, rows: int) -> Iterator[slice]:
    """So many rows, a few at a time."""
    size = max((CPU_CHUNK if like.device.type == "cpu" else GPU_CHUNK) // like.shape[1], 1)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))

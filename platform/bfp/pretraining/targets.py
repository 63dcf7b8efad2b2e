"""What the student is to predict: the teacher's logits made into probabilities over K prototypes.

Two ways keep the targets from collapsing onto one prototype: subtracting a running mean of the logits, the centre
(Caron et al. 2021, arXiv 2104.14294), or balancing the batch over the prototypes by Sinkhorn-Knopp (Caron et al. 2020,
arXiv 2006.09882). Both work on rows (rows, K) of one kind of token; what spans workers takes a process group.

Everything is float32, whatever the network computes in. Departure from the released code: Sinkhorn subtracts each
prototype's largest logit before it exponentiates. It cancels in the first normalisation, nothing overflows, and no
prototype's total vanishes, however far below the others it lies.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

SINKHORN_ITERATIONS = 3


def updated_centre(
    centre: Tensor,
    logits: Tensor,
    *,
    momentum: float = 0.9,
    scope: Literal["global", "local"] = "global",
    group: ProcessGroup | None = None,
) -> Tensor:
    """The centre (1, K) for the next batch: momentum · centre + (1 - momentum) · mean of this batch's logits (rows, K).

    scope: over several workers, "global" takes the mean of all rows, "local" the mean of the workers' means, as
    DINOv2 publishes it (they differ for patches, whose number varies). A worker without rows counts for nothing.
    """
    rows = len(logits)
    total = logits.float().sum(0, keepdim=True)
    weight = float(rows) if scope == "global" else float(rows > 0)
    sums = torch.cat([total * (weight / max(rows, 1)), total.new_full((1, 1), weight)], dim=1)
    if group is not None:
        dist.all_reduce(sums, group=group)
    summed, weights = sums[:, :-1], sums[:, -1:]
    moved = centre * momentum + summed / weights.clamp(min=1) * (1 - momentum)
    return torch.where(weights > 0, moved, centre)


def sinkhorn(
    logits: Tensor, *, temperature: float, iterations: int = SINKHORN_ITERATIONS, group: ProcessGroup | None = None
) -> Tensor:
    """Targets (rows, K) whose rows sum to one and whose columns, over all rows of the group, are nearly even.

    exp(logits / temperature), then by turns: every prototype to the same total, every row to the same total.
    """
    logits = logits.float()
    peaks = logits.amax(0) if len(logits) else logits.new_full(logits.shape[1:], -torch.inf)
    if group is not None:
        dist.all_reduce(peaks, dist.ReduceOp.MAX, group=group)
    mass = torch.exp((logits - peaks) / temperature)  # (rows, K)
    for _ in range(iterations):
        columns = mass.sum(0)
        if group is not None:
            dist.all_reduce(columns, group=group)
        mass /= columns
        mass /= mass.sum(1, keepdim=True)
    return mass

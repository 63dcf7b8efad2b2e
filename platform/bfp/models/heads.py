"""The projection heads of pretraining: tokens -> logits over K prototypes (Caron et al. 2021, arXiv 2104.14294).

A few linear layers with GELU, a bottleneck, L2 normalisation, then a linear map without bias whose rows are prototypes:
direction `weight_v` and length `weight_g`, both trained, as in DINOv2. The parameters carry the names of the released
files (`mlp.0.weight`, `last_layer.weight_g`); torch's own weight norm is not used, because one of its forms renames
them and the other cannot be copied.

`batch_norm` puts batch normalisation before each GELU, as the DINO paper does for some of its models: pretraining at
the scale of a demo learned only with it. Class tokens and patch tokens have different statistics, so the head takes
groups of rows and normalises each by itself; it always uses the statistics of the rows at hand, in the teacher too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_reduce


class Head(nn.Module):
    """width -> hidden -> … -> bottleneck -> prototypes.

    layers counts the linear maps before the prototypes, the one into the bottleneck included.
    across_workers: whether batch normalisation takes its statistics over all workers' rows or over those at hand.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden: int,
        bottleneck: int,
        prototypes: int,
        layers: int = 3,
        batch_norm: bool = False,
        across_workers: bool = False,
    ) -> None:
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), bottleneck]
        modules: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(pairwise(widths)):
            linear = nn.Linear(inputs, outputs)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            modules.append(linear)
            if number < layers - 1:
                modules += (
                    [GroupNorm1d(outputs, across_workers=across_workers), nn.GELU()] if batch_norm else [nn.GELU()]
                )
        self.mlp = nn.Sequential(*modules)
        self.last_layer = Prototypes(bottleneck, prototypes)

    def forward(self, *groups: Tensor) -> Tensor:
        """The logits (rows, K) of groups of tokens (rows, D), one group after the other."""
        sizes = [len(group) for group in groups]
        rows = torch.cat(groups)
        for module in self.mlp:
            rows = module(rows, sizes) if isinstance(module, GroupNorm1d) else module(rows)
        return F.linear(F.normalize(rows.float(), dim=-1), self.last_layer())


class Prototypes(nn.Module):
    """The weights (K, bottleneck) of the last layer: row k is weight_g[k] · weight_v[k] / ‖weight_v[k]‖."""

    def __init__(self, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(prototypes, bottleneck).uniform_(-1, 1) / bottleneck**0.5)

    def forward(self) -> Tensor:
        return torch._weight_norm(self.weight_v, self.weight_g, 0)  # one pass where the formula takes three


class GroupNorm1d(nn.Module):
    """Batch normalisation of rows (rows, width), each group of rows by its own mean and variance."""

    def __init__(self, width: int, *, across_workers: bool, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.across_workers, self.eps = across_workers, eps

    def forward(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        return torch.cat([self._normalise(part) for part in rows.split(list(sizes))])

    def _normalise(self, rows: Tensor) -> Tensor:
        if not self.across_workers and len(rows) > 1:
            return F.batch_norm(rows, None, None, self.weight, self.bias, training=True, eps=self.eps)
        rows32 = rows.float()
        sums = torch.cat([rows32.sum(0), rows32.square().sum(0), rows32.new_tensor([len(rows)])])
        if self.across_workers:
            sums = all_reduce(sums, "sum", cast(ProcessGroup, dist.group.WORLD))
        mean, square = (sums[:-1] / sums[-1].clamp(min=1)).chunk(2)
        scale = self.weight * torch.rsqrt((square - mean.square()).clamp(min=0) + self.eps)
        return ((rows32 - mean) * scale + self.bias).to(rows.dtype)

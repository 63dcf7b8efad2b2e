"""The KoLeo regulariser: class tokens of a batch are pushed away from their nearest neighbour.

Sablayrolles et al. 2018, arXiv 1806.03198. It takes the backbone's class tokens, before any head, of one global crop
at a time: two crops of one stack should be alike. The gradient flows through both ends of a pair.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_gather_single

EPS = 1e-8


def koleo_loss(tokens: Tensor, *, group: ProcessGroup | None = None) -> Tensor:
    """-mean log of the distance from each class token to its nearest other one, on the unit sphere; a scalar.

    tokens: (B, D). With a group, neighbours are sought among all its workers' tokens and the mean is over this
    worker's own: the mean over workers is the loss of the global batch. Without, among these tokens alone, as
    published.
    """
    own = F.normalize(tokens.float(), dim=-1, eps=EPS)  # (B, D)
    others, first = own, 0
    if group is not None:
        others = all_gather_single(own, 0, group)  # (B · workers, D)
        first = dist.get_rank(group) * len(own)
    with torch.no_grad():
        likeness = own @ others.T
        likeness.diagonal(first).fill_(-1.0)  # not its own neighbour
        nearest = likeness.argmax(dim=1)
    distance = F.pairwise_distance(own, others[nearest], eps=EPS)
    return -torch.log(distance + EPS).mean()

"""The network that is trained end to end: stacks -> vectors -> one vector a session -> what is said of it.

It begins as the frozen model: its head is the one that was fitted on the vectors of the encoder at rest, and attention
begins as plain means. A new head on a good encoder would ruin it with its first gradients (linear probing,
then fine-tuning: Kumar et al. 2022, arXiv 2202.10054); and where tuning does not help, no epoch of it is taken.

The session's vector is standardised as the frozen head has it and divided by √F, so that one rate suits heads of any
length: a step of AdamW changes each weight by about the rate, and what is said by the rate times F.

What is trained here is used without this module: the encoder is a timm ViT, the head a `LinearHead` on a `Pooling` or
an `AttentionPooling`.

Letters: b stacks of S sessions, D length of a stack's vector, F of a session's, L hidden, K outputs, P of a place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bfp.features.tokens import images
from bfp.models.attention import AttentionMap, AttentionPooling, places
from bfp.models.encoder import LoadedEncoder
from bfp.models.linear import LinearHead
from bfp.models.pooling import Pooling

HIDDEN = 64
"""L of the attention's hidden layer (the paper has 128 for bags of up to hundreds)."""

Pooled = Pooling | AttentionPooling


def within_of(pooling: Pooled) -> Pooling:
    """The bands and parts whose means, weighted or not, a session's vector is made of."""
    return pooling if isinstance(pooling, Pooling) else pooling.within


class Begin(NamedTuple):
    """The frozen model that a network begins as. head: on the session's vector, of that strength; centre, scale (D,):
    of stacks, for attention alone.

    What is said is logits · deviation + mean: (0, 1) of classes, else mean and deviation of the numbers that are told.
    """

    head: LinearHead
    strength: float
    centre: np.ndarray
    scale: np.ndarray
    mean: float
    deviation: float


class Place(NamedTuple):
    """Of b stacks. session: int64 (b,), which of the S sessions of the batch; heights float (b,); parts int64 (b,)."""

    session: Tensor
    heights: Tensor
    parts: Tensor


class _Attention(nn.Module):
    """`AttentionMap` in training. All stacks score alike at the start."""

    centre: Tensor
    scale: Tensor

    def __init__(self, begin: Begin, *, part_count: int) -> None:
        super().__init__()
        self.part_count = part_count
        self.register_buffer("centre", torch.tensor(begin.centre, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(begin.scale, dtype=torch.float32))
        known = len(begin.centre) + places(np.zeros(1), [0], part_count=part_count).shape[1]
        self.tanh, self.sigmoid = nn.Linear(known, HIDDEN), nn.Linear(known, HIDDEN)
        self.score = nn.Parameter(torch.zeros(HIDDEN))

    def forward(self, vectors: Tensor, place: Place) -> Tensor:
        """Scores (b,)."""
        where = places(place.heights.cpu().numpy(), place.parts.cpu().numpy(), part_count=self.part_count)
        known = torch.cat([(vectors - self.centre) / self.scale, torch.from_numpy(where).to(vectors)], dim=1)
        return (torch.tanh(self.tanh(known)) * torch.sigmoid(self.sigmoid(known))) @ self.score

    def learned(self) -> AttentionMap:
        def plain(tensor: Tensor) -> np.ndarray:
            return tensor.detach().cpu().double().numpy()

        return AttentionMap(
            *map(plain, (self.centre, self.scale, self.tanh.weight, self.tanh.bias)),
            *map(plain, (self.sigmoid.weight, self.sigmoid.bias, self.score)),
        )


class _Pool(nn.Module):
    """`Pooling` for a batch, its means weighted where there is attention, then standardised as the head has it; a
    component that a session lacks is 0, the training mean."""

    centre: Tensor
    scale: Tensor

    def __init__(self, pooling: Pooling, head: LinearHead, attention: _Attention | None) -> None:
        super().__init__()
        self.bands, self.part_count, self.attention = pooling.bands, len(pooling.parts), attention
        self.register_buffer("centre", torch.tensor(head.centre, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(head.scale, dtype=torch.float32))

    def forward(self, vectors: Tensor, place: Place, sessions: int) -> Tensor:
        band = (place.heights * self.bands).long().clamp(max=self.bands - 1)
        cell = (place.session * self.part_count + place.parts) * self.bands + band
        cells = sessions * self.part_count * self.bands
        powers = torch.ones_like(place.heights)
        if self.attention is not None:
            scores = self.attention(vectors, place)
            largest = scores.new_zeros(cells).scatter_reduce(0, cell, scores.detach(), "amax", include_self=False)
            powers = torch.exp(scores - largest[cell])
        totals = vectors.new_zeros(cells).index_add(0, cell, powers)
        weighed = vectors * (powers / totals[cell])[:, None]
        mean = vectors.new_zeros(cells, vectors.shape[1]).index_add(0, cell, weighed).reshape(sessions, -1)  # (S, F)
        there = (totals > 0)[:, None].expand(-1, vectors.shape[1]).reshape(sessions, -1)
        return torch.where(there, (mean - self.centre) / self.scale, 0.0)


class SessionNetwork(nn.Module):
    """encoder: tuned, used and not copied; None where vectors of stacks are given. pooling: how a session's vector is
    made; of an AttentionPooling, within what: a map is learned.
    """

    def __init__(self, encoder: LoadedEncoder | None, pooling: Pooled, begin: Begin) -> None:
        super().__init__()
        self._encoder, self._pooling, self._begin = encoder, pooling, begin
        self.encoder = None if encoder is None else encoder.model
        head, within = begin.head, within_of(pooling)
        attention = None if isinstance(pooling, Pooling) else _Attention(begin, part_count=len(pooling.parts))
        self.pool = _Pool(within, head, attention)
        weights, bias = head.weights, head.bias
        self._root = float(np.sqrt(weights.shape[1]))
        self.head = nn.Linear(weights.shape[1], len(weights))
        with torch.no_grad():
            self.head.weight.copy_(torch.from_numpy(weights * self._root / begin.deviation))
            self.head.bias.copy_(torch.from_numpy((bias - begin.mean) / begin.deviation))

    def vectors(self, stacks: Tensor) -> Tensor:
        """float32 (b, D): as `EncoderVectors` makes them of pixels uint8 (b, C, H, W), with a gradient; vectors as they
        are."""
        if self._encoder is None:
            return stacks.to(self.head.weight.device)
        model = self._encoder.model
        tokens = model.forward_features(images(self._encoder, stacks)).float()
        patches = tokens[:, model.num_prefix_tokens :]  # (b, N, D)
        return (patches.var(dim=1, correction=0) + 1e-12).sqrt()  # at 0 the root has no slope

    def forward(self, stacks: Tensor, place: Place, sessions: int) -> Tensor:
        """Logits (S, K)."""
        found: Tensor = self.head(self.pool(self.vectors(stacks), place, sessions) / self._root)
        return found

    def learned(self) -> tuple[Pooled, LinearHead]:
        """What is used of it beside the encoder."""
        weights = self.head.weight.detach().cpu().double().numpy() * self._begin.deviation / self._root
        bias = self.head.bias.detach().cpu().double().numpy() * self._begin.deviation + self._begin.mean
        centre, scale = (tensor.cpu().double().numpy() for tensor in (self.pool.centre, self.pool.scale))
        head = LinearHead(centre, scale, weights, bias)
        if isinstance(self._pooling, AttentionPooling):
            assert self.pool.attention is not None
            return AttentionPooling((self.pool.attention.learned(),), self._pooling.within), head
        return self._pooling, head

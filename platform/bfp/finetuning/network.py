"""The network that is trained end to end: stacks -> vectors -> one vector a session -> what is said of it.

It begins as the frozen model: its head is the one that was fitted on the vectors of the encoder at rest, and attention
begins as the mean of the stacks. A new head on a good encoder would ruin it with its first gradients (linear probing,
then fine-tuning: Kumar et al. 2022, arXiv 2202.10054); and where tuning does not help, no epoch of it is taken.

The session's vector is standardised as the frozen head has it and divided by √F, so that one rate suits heads of any
length: a step of AdamW changes each weight by about the rate, and what is said by the rate times F.

What is trained here is used without this module: the encoder is a timm ViT, the head a `LinearHead` on a `Pooling` or
an `AttentionPooling`.

Letters: b stacks of S sessions, D length of a stack's vector, F of a session's, L hidden, K outputs, P of a place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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


class _ByPosition(nn.Module):
    """`Pooling` for a batch, standardised; a component that a session lacks is 0, the training mean."""

    centre: Tensor
    scale: Tensor

    def __init__(self, pooling: Pooling, head: LinearHead) -> None:
        super().__init__()
        self.bands, self.part_count = pooling.bands, len(pooling.parts)
        self.register_buffer("centre", torch.tensor(head.centre, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(head.scale, dtype=torch.float32))

    def forward(self, vectors: Tensor, place: Place, sessions: int) -> Tensor:
        band = (place.heights * self.bands).long().clamp(max=self.bands - 1)
        cell = (place.session * self.part_count + place.parts) * self.bands + band
        cells = sessions * self.part_count * self.bands
        sums = vectors.new_zeros(cells, vectors.shape[1]).index_add(0, cell, vectors)
        counts = vectors.new_zeros(cells).index_add(0, cell, torch.ones_like(place.heights))[:, None]
        mean = (sums / counts.clamp(min=1)).reshape(sessions, -1)  # (S, F)
        there = (counts > 0).expand(-1, vectors.shape[1]).reshape(sessions, -1)
        return torch.where(there, (mean - self.centre) / self.scale, 0.0)


class _ByAttention(nn.Module):
    """`AttentionMap` for a batch."""

    centre: Tensor
    scale: Tensor

    def __init__(self, begin: Begin, *, part_count: int) -> None:
        super().__init__()
        self.part_count = part_count
        self.register_buffer("centre", torch.tensor(begin.centre, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(begin.scale, dtype=torch.float32))
        known = len(begin.centre) + places(np.zeros(1), [0], part_count=part_count).shape[1]
        self.tanh, self.sigmoid = nn.Linear(known, HIDDEN), nn.Linear(known, HIDDEN)
        self.score = nn.Parameter(torch.zeros(HIDDEN))  # all stacks weigh alike at the start

    def forward(self, vectors: Tensor, place: Place, sessions: int) -> Tensor:
        standardised = (vectors - self.centre) / self.scale
        where = places(place.heights.cpu().numpy(), place.parts.cpu().numpy(), part_count=self.part_count)
        known = torch.cat([standardised, torch.from_numpy(where).to(vectors)], dim=1)
        scores = (torch.tanh(self.tanh(known)) * torch.sigmoid(self.sigmoid(known))) @ self.score  # (b,)
        largest = scores.new_full((sessions,), -torch.inf).scatter_reduce(0, place.session, scores.detach(), "amax")
        powers = torch.exp(scores - largest[place.session])
        total = powers.new_zeros(sessions).index_add(0, place.session, powers)
        weighed = standardised * (powers / total[place.session])[:, None]
        return weighed.new_zeros(sessions, vectors.shape[1]).index_add(0, place.session, weighed)  # (S, D)

    def learned(self) -> AttentionMap:
        def plain(tensor: Tensor) -> np.ndarray:
            return tensor.detach().cpu().double().numpy()

        return AttentionMap(
            *map(plain, (self.centre, self.scale, self.tanh.weight, self.tanh.bias)),
            *map(plain, (self.sigmoid.weight, self.sigmoid.bias, self.score)),
        )


class SessionNetwork(nn.Module):
    """encoder: tuned, used and not copied; None where vectors of stacks are given. pooling: how a session's vector is
    made; of an AttentionPooling its parts alone are taken, and a map is learned.
    """

    def __init__(self, encoder: LoadedEncoder | None, pooling: Pooled, begin: Begin) -> None:
        super().__init__()
        self._encoder, self._pooling, self._begin = encoder, pooling, begin
        self.encoder = None if encoder is None else encoder.model
        head = begin.head
        weights, bias = head.weights, head.bias
        self.pool: Any
        if isinstance(pooling, Pooling):
            self.pool = _ByPosition(pooling, head)
        else:
            self.pool = _ByAttention(begin, part_count=len(pooling.parts))
            # the frozen head standardised the mean stack; the network takes it as it is
            weights, bias = weights / head.scale, bias - weights @ (head.centre / head.scale)
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
        if isinstance(self._pooling, AttentionPooling):
            length = weights.shape[1]
            pooling = AttentionPooling((self.pool.learned(),), self._pooling.parts)
            return pooling, LinearHead(np.zeros(length), np.ones(length), weights, bias)
        centre, scale = (tensor.cpu().double().numpy() for tensor in (self.pool.centre, self.pool.scale))
        return self._pooling, LinearHead(centre, scale, weights, bias)

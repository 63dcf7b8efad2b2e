"""The stacks of sessions, as training draws them: some of each session for a step, all of them to judge it.

Where they come from is one of two: their vectors, when the encoder rests (`KeptVectors`), or their pixels in the store,
when it is tuned (`StoredPixels`). Neighbouring slices are near-duplicates, so those of a step are spread over the
session: it is cut into as many runs of slices as are wanted, in the order of parts and heights, and one is drawn from
each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bfp.batches.absent import fill_absent
from bfp.cohorts.sessions import Key
from bfp.features.extraction import vectors_of
from bfp.store.reader import SliceStore


class Places(NamedTuple):
    """Of the stacks of one session, in the order of parts and heights. rows: in the table that they come from;
    heights: float32, 0 lowest to 1 highest; parts: int64, numbers of the parts."""

    rows: np.ndarray
    heights: np.ndarray
    parts: np.ndarray

    def take(self, which: np.ndarray) -> Places:
        return Places(*(column[which] for column in self))


class Stacks(Protocol):
    """places: of each session."""

    @property
    def places(self) -> list[Places]: ...

    def read(self, rows: np.ndarray) -> Tensor:
        """What the network takes of these stacks: vectors float32 (b, D), or pixels uint8 (b, C, H, W)."""
        ...


def drawn(places: Places, *, count: int, random: np.random.Generator) -> Places:
    """So many stacks of a session, spread over it; all where it has no more."""
    there = len(places.rows)
    if there <= count:
        return places
    return places.take(((np.arange(count) + random.random(count)) * there / count).astype(np.int64))


def _places(table: pa.Table, parts_of: np.ndarray, sessions: Sequence[Key], parts: Sequence[str]) -> list[Places]:
    rows_of: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(*(table[name].to_pylist() for name in Key._fields), strict=True)):
        rows_of[key].append(row)
    heights = table["height"].to_numpy()
    numbers = np.array([parts.index(part) for part in parts_of], dtype=np.int64)
    found = []
    for key in sessions:
        rows = np.array(rows_of[key], dtype=np.int64)
        rows = rows[np.lexsort((heights[rows], numbers[rows]))]
        found.append(Places(rows, heights[rows], numbers[rows]))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class KeptVectors:
    """`Stacks`: vectors of an encoder that rests. vectors: float32 (n, D)."""

    places: list[Places]
    vectors: np.ndarray

    @classmethod
    def of(cls, features: pa.Table, sessions: Sequence[Key], *, parts: Sequence[str]) -> KeptVectors:
        """features: rows of `features.extraction.schema`. parts: in the order of their numbers."""
        return cls(_places(features, np.array(features["part"].to_pylist()), sessions, parts), vectors_of(features))

    def read(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.vectors[rows])


class StoredPixels:
    """`Stacks`: pixels of a store, channels that are absent or not shown filled with zeros (`batches.absent`)."""

    def __init__(
        self, store: SliceStore, index: pa.Table, sessions: Sequence[Key], *, shown: Sequence[str], parts: Sequence[str]
    ) -> None:
        """index: rows of `store.stack_index()`. shown: the modalities that the encoder may see."""
        modalities = np.array(index["modalities"].to_pylist())  # (n, C)
        self._store, self._files = store, store.stack_files()
        self._visible = np.array(index["present"].to_pylist()) & np.isin(modalities, list(shown))
        self._at = np.stack([index[name].to_numpy() for name in ("file", "row_group", "row")], axis=1)
        part_of = modalities[:, 0] if store.form == "neighbours" else np.full(len(modalities), "")
        self.places = _places(index, part_of, sessions, parts)

    def read(self, rows: np.ndarray) -> Tensor:
        size_px, at = self._store.size_px, self._at[rows]
        pixels = np.empty((len(rows), 3, size_px, size_px), dtype=np.uint8)
        for file, group in np.unique(at[:, :2], axis=0):
            found = self._store.read_packed(self._files[file], int(group))
            for place in np.flatnonzero((at[:, 0] == file) & (at[:, 1] == group)):
                pixels[place] = found[int(at[place, 2])]
        return fill_absent(torch.from_numpy(pixels), torch.from_numpy(self._visible[rows]))

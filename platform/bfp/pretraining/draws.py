"""Randomness by seed, step and place in the global batch.

Whoever computes place p of step s gets the same numbers: one worker with batch 16 and two with 8 make the same crops
and masks, and a resumed run goes on as if it had not stopped. The generator is Philox, which is a function of a key
and a counter (Salmon et al. 2011): the key is the seed, the step and a name for what is drawn; the counter is the
place.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

PHILOX_WIDTH = 4  # 64-bit numbers that one value of the counter gives


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of one step for the places first … first + count - 1 of a global batch of `total` stacks."""

    seed: int
    step: int
    first: int
    count: int
    total: int

    def uniform(self, name: str, *shape: int) -> np.ndarray:
        """float32 (count, *shape), uniform in [0, 1): a row for each place, the same whoever computes it."""
        width = int(np.prod(shape))
        counters = -(-width // PHILOX_WIDTH)
        bits = np.random.Philox(key=self._key(name))
        bits.advance(self.first * counters)
        rows = np.random.Generator(bits).random((self.count, counters * PHILOX_WIDTH))
        # float32 rounds what is nearest to 1 up to 1; such a draw would fall outside of half-open ranges.
        return np.minimum(rows[:, :width].astype(np.float32), np.float32(1 - 2**-24)).reshape(self.count, *shape)

    def shuffled(self, name: str, length: int) -> np.ndarray:
        """int64 (length,): a permutation of range(length), the same for all workers."""
        return np.random.Generator(np.random.Philox(key=self._key(name))).permutation(length)

    def torch_seed(self, name: str) -> int:
        """A seed for a torch generator, the same for all workers."""
        return self._key(name) & 0x7FFF_FFFF_FFFF_FFFF

    def _key(self, name: str) -> int:
        text = f"{self.seed}/{self.step}/{name}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")

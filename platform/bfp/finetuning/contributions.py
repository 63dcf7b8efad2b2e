"""What of a session made a linear head say what it said.

That is the log odds of a class (its logit less the mean of the others'), a number, or a log hazard: each a sum over the
components of a session's vector, and each component is a mean over the stacks of a bag (`models.pooling`), plain or
weighted by attention. So every stack has a share, in the unit of the sum, and the shares add up to it less that of the
training mean; what a session lacks has none. That is exact. With attention the weights are taken as they are, although
they follow from the stacks too.

Within a stack nothing adds up: its vector is the standard deviation over its patch tokens (`features.describe`). The
effect of a patch is what its token changes: the sum with it less that without it, from the tokens of one forward pass.
That is exact too, and says only so much: the other tokens have seen the patch and stay as they are.

Letters: n stacks of a session, N patches, D length of a stack's vector, F of a session's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bfp.models.linear import LinearHead


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """One thing that a head says: bias + slope · (vector - centre). slope, centre: float64 (F,)."""

    slope: np.ndarray
    centre: np.ndarray
    bias: float

    @classmethod
    def of(cls, head: LinearHead, k: int) -> Sum:
        """Of the only output that a head has, itself; of the logits of two classes, the log of the odds; of more, of a
        class against the geometric mean of the others."""
        slope, bias = head.weights[k], head.bias[k]
        if len(head.bias) > 1:
            slope = slope - np.delete(head.weights, k, axis=0).mean(axis=0)
            bias = bias - np.delete(head.bias, k).mean()
        return cls(slope / head.scale, head.centre, float(bias))


def weights_of(bags: np.ndarray, scores: np.ndarray | None = None) -> np.ndarray:
    """How much each stack counts in its mean, float64 (n,): the softmax of its score within its bag, alike without.

    bags: int64 (n,), as of `Pooling.bags`; a stack of none weighs nothing.
    """
    powers = np.ones(len(bags)) if scores is None else np.exp(scores - scores.max())
    found = np.zeros(len(bags))
    for bag in np.unique(bags[bags >= 0]):
        own = bags == bag
        found[own] = powers[own] / powers[own].sum()
    return found


def stack_shares(said: Sum, features: np.ndarray, *, bags: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 (n,), which add up to what is said of the session less `bias`. features: float (n, D)."""
    slope, centre = (of.reshape(-1, features.shape[1])[bags] for of in (said.slope, said.centre))
    shares: np.ndarray = weights * ((features - centre) * slope).sum(axis=1)
    return shares


def patch_effects(said: Sum, tokens: np.ndarray, *, bag: int, weight: float) -> np.ndarray:
    """float64 (N,): by how much each patch raises what is said of the session. tokens: (N, D) of one of its stacks."""
    slope = said.slope.reshape(-1, tokens.shape[1])[bag]
    spread = tokens.astype(np.float64).std(axis=0)
    effects: np.ndarray = weight * ((spread - spread_without_each(tokens)) @ slope)
    return effects


def spread_without_each(tokens: np.ndarray) -> np.ndarray:
    """float64 (N, D): the standard deviation over the patch tokens, each of the N left out in turn."""
    others = len(tokens) - 1
    away = tokens - tokens.mean(axis=0, dtype=np.float64)  # sums of squares of these lose no digits
    squares = away**2
    mean = -away / others  # of the others: all of them sum to 0
    variance = (squares.sum(axis=0) - squares) / others - mean**2
    return np.sqrt(np.maximum(variance, 0))

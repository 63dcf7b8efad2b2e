"""Covariates as vectors: what can be told without an image.

A column of numbers is one component; any other column is one-hot. A value that is missing is NaN, which a head fills
with its training mean, and a component of its own says that it is missing. Nothing is fitted here, so nothing leaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def covariate_vectors(columns: Mapping[str, Sequence[str]]) -> np.ndarray:
    """float64 (n, F) from columns of text ("" where missing), n values each."""
    return np.column_stack([component for values in columns.values() for component in _components(values)])


def _components(values: Sequence[str]) -> list[np.ndarray]:
    missing = np.array([value == "" for value in values])
    numbers = [_number(value) for value in values]
    if all(number is not None for number, absent in zip(numbers, missing, strict=True) if not absent):
        components = [np.array([np.nan if number is None else number for number in numbers])]
    else:
        levels = sorted(set(values) - {""})
        components = [np.where(missing, np.nan, [float(value == level) for value in values]) for level in levels]
    return [*components, missing.astype(np.float64)] if missing.any() else components


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None

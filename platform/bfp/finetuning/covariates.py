"""Covariates as vectors: what can be told without an image.

A column of numbers is one component; any other column is one-hot. A value that is missing is NaN, which a head fills
with its training mean, and a component of its own says that it is missing. Nothing is fitted here, so nothing leaks.

One odd cell must not turn a column of numbers into as many categories as there are sessions: `check_column` refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bfp.errors import InputError
from bfp.words import counted


def covariate_vectors(columns: Mapping[str, Sequence[str]]) -> np.ndarray:
    """float64 (n, F) from columns of text ("" where missing), n values each."""
    return np.column_stack([component for values in columns.values() for component in _components(values)])


def check_column(name: str, values: Sequence[str], *, subjects: Sequence[str], source: str) -> None:
    """Raise InputError where most values of a column are numbers, be it with a decimal comma, and some are not.

    subjects: whose value each is; source: where the column stands, for the message.
    """
    known = [(value, subject) for value, subject in zip(values, subjects, strict=True) if value]
    odd = [(value, subject) for value, subject in known if as_number(value) is None]
    meant = sum(as_number(value.replace(",", ".")) is not None for value, _ in known)
    if odd and 2 * meant > len(known):
        value, subject = odd[0]
        raise InputError(
            f"{source}: column {name}: `{value}` of subject {subject} is not a number, and most of the column are "
            f"({counted(len(odd), 'such cell')} of {len(known)}); write a number with a decimal point, leave the cell "
            "empty where nothing is known, or write text in every cell where categories are meant"
        )


def in_words(values: Sequence[str]) -> str:
    """What a column is taken for."""
    if _is_number(values):
        return "number"
    return counted(len(set(values) - {""}), "category", "categories")


def _components(values: Sequence[str]) -> list[np.ndarray]:
    missing = np.array([value == "" for value in values])
    if _is_number(values):
        numbers = [as_number(value) for value in values]
        components = [np.array([np.nan if number is None else number for number in numbers])]
    else:
        levels = sorted(set(values) - {""})
        components = [np.where(missing, np.nan, [float(value == level) for value in values]) for level in levels]
    return [*components, missing.astype(np.float64)] if missing.any() else components


def _is_number(values: Sequence[str]) -> bool:
    return all(as_number(value) is not None for value in values if value)


def as_number(value: str) -> float | None:
    """The number that a cell holds; None for text, for nothing, and for what is not finite."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None

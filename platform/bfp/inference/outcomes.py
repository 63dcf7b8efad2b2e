"""What comes of a session: plain values, which the driver reads without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from bfp.cohorts.sessions import LeftOut
from bfp.errors import BfpError


class Preview(NamedTuple):
    """A few slices for the report: uint8 (few, 3, H, W), and which channels the model saw."""

    pixels: np.ndarray
    visible: tuple[bool, ...]


class MaskPreview(NamedTuple):
    """A slice of a segmented scan for the report: grey uint8 (H, W), and labels uint8 (H, W)."""

    grey: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What came of a session: its row (columns of a schema of `kept`; None where it gave no stack), the scans that were
    left out, and, where there are stacks, a preview. passing: as of `Ready`."""

    inputs: str
    row: dict[str, Any] | None
    left_out: list[LeftOut]
    preview: Preview | MaskPreview | None
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """A session that could not be done for a reason that is not its scans' own: it is tried again the next time."""

    inputs: str
    cause: str

    @classmethod
    def of(cls, inputs: str, error: Exception) -> Self:
        return cls(inputs, str(error) if isinstance(error, BfpError) else f"{type(error).__name__}: {error}")

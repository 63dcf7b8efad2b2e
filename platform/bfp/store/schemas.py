"""The columns of the slice store: one Arrow schema per table, shared by writer, reader and the published contract.

Pixels are uint8 (3, H, W), row by row, as `imaging.stacks` lays them out; label maps are little-endian uint16 (H, W) of
the same layout. Both are fixed-size binary, which reads many times as fast as a list. Matrices are float64 (4, 4), row
by row; `ras` is the scanner's space in mm, RAS+; the working grid is the one the stacks were cut from.
"""

from __future__ import annotations

import pyarrow as pa

from bfp.cohorts.sessions import LeftOut

CHANNELS = 3
IDENTITY = [pa.field("cohort", pa.string()), pa.field("subject", pa.string()), pa.field("session", pa.string())]
_MATRIX = pa.list_(pa.float64(), 16)


def stacks(size_px: int) -> pa.Schema:
    """One row per stack; `slice` is its index in the working grid, `height` 0 at the first one kept, 1 at the last.

    `volume` counts those of a 4-D scan that have stacks each, from 0. It is null, and not 0, where a scan is one
    volume: files from before there was the column read so too, and 0 tells that the scan has others.
    """
    return pa.schema(
        [
            *IDENTITY,
            pa.field("modalities", pa.list_(pa.string(), CHANNELS)),
            pa.field("present", pa.list_(pa.bool_(), CHANNELS)),
            pa.field("volume", pa.int32()),
            pa.field("slice", pa.int32()),
            pa.field("position_mm", pa.float32()),
            pa.field("height", pa.float32()),
            pa.field("foreground", pa.float32()),
            pa.field("pixels", pa.binary(CHANNELS * size_px * size_px)),
        ]
    )


def masks(size_px: int) -> pa.Schema:
    """One row per stack and segmentation; `modality` is the scan whose working grid it lies on.

    The volumes of a 4-D scan share its grid, and its one set of labels.
    """
    return pa.schema(
        [
            *IDENTITY,
            pa.field("segmentation", pa.string()),
            pa.field("slice", pa.int32()),
            pa.field("modality", pa.string()),
            pa.field("labels", pa.binary(2 * size_px * size_px)),
        ]
    )


SCANS = pa.schema(
    [
        *IDENTITY,
        pa.field("modality", pa.string()),
        pa.field("volume", pa.int32()),
        pa.field("uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("chosen", pa.string()),
        pa.field("shape", pa.list_(pa.int32(), 3)),
        pa.field("spacing_mm", pa.list_(pa.float64(), 3)),
        pa.field("axes", pa.string()),
        pa.field("ras_from_native", _MATRIX),
        pa.field("working_shape", pa.list_(pa.int32(), 3)),
        pa.field("ras_from_working", _MATRIX),
        pa.field("window_low", pa.float32()),
        pa.field("window_high", pa.float32()),
        pa.field("register", pa.string()),
        pa.field("reference_ras_from_scan_ras", _MATRIX),
        pa.field("shift_mm", pa.float32()),
        pa.field("similarity_before", pa.float32()),
        pa.field("similarity_after", pa.float32()),
        pa.field("foreground", pa.float32()),
        pa.field("brain", pa.string()),
        pa.field("brain_ml", pa.float32()),
        pa.field("bias_field_ratio", pa.float32()),
        pa.field("qform_sform_mm", pa.float32()),
        pa.field("stacks", pa.int32()),
        pa.field("warnings", pa.list_(pa.string())),
    ]
)
"""One row per scan that is in the store, or per volume of it where `volume` is not null: each has a window and figures
of its own. shift_mm: how far registration moved it, or by header alone would have."""

SESSIONS = pa.schema(
    [
        *IDENTITY,
        pa.field("modalities", pa.list_(pa.string())),
        pa.field("labels", pa.map_(pa.string(), pa.string())),
    ]
)
"""One row per session: the modalities that were found of it, and labels as text, as the cohort carried them."""

REJECTED = pa.schema(
    [
        *IDENTITY,
        pa.field("modality", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)
"""One row per scan left out; `reason` is one of bfp.errors.Reason."""

LABEL_MAPS = pa.schema(
    [
        *IDENTITY,
        pa.field("segmentation", pa.string()),
        pa.field("drawn_on", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("chosen", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("warnings", pa.list_(pa.string())),
    ]
)
"""One row per label map or brain mask that a session has; reason and detail as of REJECTED, null where it is used."""


def of_table(table: str, size_px: int) -> pa.Schema:
    """The columns of a table of a store whose stacks have so many pixels a side."""
    made = {"stacks": stacks, "masks": masks}
    fixed = {"scans": SCANS, "sessions": SESSIONS, "rejected": REJECTED, "label_maps": LABEL_MAPS}
    return made[table](size_px) if table in made else fixed[table]


def rejected_row(left_out: LeftOut) -> dict[str, str]:
    """A row of REJECTED."""
    return {
        **left_out.key._asdict(),
        "modality": left_out.modality,
        "uri": left_out.uri,
        "reason": str(left_out.reason),
        "detail": left_out.detail,
    }

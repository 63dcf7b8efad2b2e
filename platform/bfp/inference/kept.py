"""Predictions on disk: parts that are written whole while sessions are done, and one table of them at the end.

    <run>/rejected/part-<hash>.parquet          scans left out of the sessions of a part
    <run>/predictions/part-<hash>.parquet       their rows; written after the former: it is the part's commit
    <run>/predictions/predictions.parquet       all sessions of the cohorts as they were last listed
    <run>/rejected/rejected.parquet             all scans left out of them

A part is named by the inputs of its sessions. A session is done when a part holds its inputs (`ready.inputs_of`), so a
rerun does what is new or changed, and a kill costs the sessions since the last part. A part that is damaged counts for
nothing: its sessions are done again. A session that lacks what may be there the next time (`Outcome.passing`) is in the
tables and in no part.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bfp.cohorts.sessions import Key, LeftOut
from bfp.errors import DamagedFile
from bfp.storage import Place, intact, plainly
from bfp.store import schemas

if TYPE_CHECKING:
    from bfp.inference.outcomes import Outcome

_INPUTS = pa.field("inputs", pa.string())
_TEXTS = pa.list_(pa.string())
_SEEN = [
    pa.field("modalities", _TEXTS),
    pa.field("missing", _TEXTS),
    pa.field("stacks", pa.int32()),
    pa.field("shift_mm", pa.float32()),
    pa.field("foreground", pa.float32()),
    pa.field("warnings", _TEXTS),
    pa.field("scans", _TEXTS),
]
"""What the model saw of a session."""
_MADE_BY = [pa.field("model", pa.string()), pa.field("bfp", pa.string()), _INPUTS]

REJECTED = schemas.REJECTED.append(_INPUTS)
"""As in a store. A session without any row of predictions has its inputs here."""


def told_columns(kind: str, classes: Sequence[str] = ()) -> list[pa.Field]:
    """What a model tells of a session (`bfp.models.outputs`). kind: of its task; classes: of a classification.

    classification   predicted: the likeliest class; prob_<class>: its probability; recalibrated_<class>: the same,
                     recalibrated on held-out training sessions; positive_at_90_specificity: of the second of two
                     classes, null with more
    regression       predicted: in the target's own unit; low, high: the ends of the interval around it, null where
                     there were too few subjects for one
    survival         log_hazard: the higher, the sooner; percentile: where that is among held-out training sessions

    spread: standard deviation over the fold heads of the predicted class's probability, of the number, or of the
    percentile; null where there are none.
    """
    number = pa.float64()
    own = {
        "classification": [
            pa.field("predicted", pa.string()),
            *(pa.field(f"prob_{name}", number) for name in classes),
            *(pa.field(f"recalibrated_{name}", number) for name in classes),
            pa.field("positive_at_90_specificity", pa.bool_()),
        ],
        "regression": [pa.field(name, number) for name in ("predicted", "low", "high")],
        "survival": [pa.field(name, number) for name in ("log_hazard", "percentile")],
    }[kind]
    return [*own, pa.field("spread", number)]


def predictions_schema(told: Sequence[pa.Field], *, embedding: bool) -> pa.Schema:
    """One row per session. told: as of `told_columns`.

    distance, atypical: from the training sessions (`bfp.models.typical`), null where encoder or pooling were trained on
    them. modalities: that the model saw; missing: that it was trained with and did not see. shift_mm: the largest
    header offset within the session; foreground: the smallest share of a scan that is head.
    embedding: the mean over stacks of the spread of their patch tokens.
    """
    columns = [
        *schemas.IDENTITY,
        *told,
        pa.field("distance", pa.float64()),
        pa.field("atypical", pa.float64()),
        *_SEEN,
        *([pa.field("embedding", pa.list_(pa.float32()))] if embedding else []),
        *_MADE_BY,
    ]
    return pa.schema(columns)


EMBEDDINGS = ("class_token", "patch_mean", "embedding")
"""Of an encoder without a head, each a mean over the stacks of a session: of their class tokens, of the means of their
patch tokens, and of these tokens' spread, as beside a prediction."""


def embeddings_schema() -> pa.Schema:
    """One row per session, of an encoder without a head. The other columns as of `predictions_schema`."""
    columns = [pa.field(name, pa.list_(pa.float32())) for name in EMBEDDINGS]
    return pa.schema([*schemas.IDENTITY, *columns, *_SEEN, *_MADE_BY])


def segmentations_schema(classes: Sequence[str]) -> pa.Schema:
    """One row per session.

    mask: its path below <run>/derivatives; space: the scan on whose voxels it lies; ml_<class>: the volume of the
    class in it. The other columns as of `predictions_schema`.
    """
    return pa.schema(
        [
            *schemas.IDENTITY,
            pa.field("mask", pa.string()),
            pa.field("space", pa.string()),
            *(pa.field(f"ml_{name}", pa.float64()) for name in classes),
            *_SEEN,
            *_MADE_BY,
        ]
    )


class Kept(NamedTuple):
    """What was predicted of the listed sessions, and which scans were left out of them."""

    predictions: pa.Table
    rejected: pa.Table


class Predictions:
    """The parts of one run. schema: of its rows."""

    def __init__(self, run: Place, *, schema: pa.Schema, model: str, version: str) -> None:
        self._predictions, self._rejected = run / "predictions", run / "rejected"
        self._schema = schema
        self._provenance = {"model": model, "bfp": version}

    def done(self) -> set[str]:
        """The inputs of all sessions that are done."""
        return {inputs for part in self._parts() for inputs in self._inputs(part) or ()}

    def damaged(self) -> list[str]:
        """The parts that do not hold what `add` wrote."""
        return [part for part in self._parts() if self._inputs(part) is None]

    def discard(self, parts: Iterable[str]) -> None:
        """Remove parts, the commit of each first."""
        for part in parts:
            for folder in (self._predictions, self._rejected):
                (folder / part).delete()

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Write the part of these sessions."""
        digest = hashlib.sha256("\n".join(sorted(each.inputs for each in outcomes)).encode()).hexdigest()
        name = f"part-{digest[:24]}.parquet"
        predictions, rejected = self._tables(outcomes)
        if rejected.num_rows:
            (self._rejected / name).write(_parquet(rejected))
        (self._predictions / name).write(_parquet(predictions))

    def unite(self, inputs: Collection[str], *, passing: Sequence[Outcome], left_out: Iterable[LeftOut]) -> Kept:
        """Write the two tables of the sessions with these inputs, of those that stand in no part, and of the scans that
        discovery left out already."""
        wanted = pa.array(sorted(inputs), pa.string())
        early = pa.Table.from_pylist([_rejected_row(row, inputs=None) for row in left_out], REJECTED)
        predicted, rejected = self._tables(passing)
        order = [(name, "ascending") for name in Key._fields]
        kept = Kept(
            pa.concat_tables([self._united(self._predictions, self._schema, wanted), predicted]).sort_by(order),
            pa.concat_tables([self._united(self._rejected, REJECTED, wanted), rejected, early]).sort_by(
                [*order, ("uri", "ascending")]
            ),
        )
        (self._predictions / "predictions.parquet").write(_parquet(kept.predictions))
        (self._rejected / "rejected.parquet").write(_parquet(kept.rejected))
        return kept

    def _tables(self, outcomes: Sequence[Outcome]) -> Kept:
        rows = [{**each.row, **self._provenance} for each in outcomes if each.row is not None]
        rejected = [_rejected_row(row, inputs=each.inputs) for each in outcomes for row in each.left_out]
        return Kept(pa.Table.from_pylist(rows, self._schema), pa.Table.from_pylist(rejected, REJECTED))

    def _united(self, folder: Place, schema: pa.Schema, wanted: pa.Array) -> pa.Table:
        parts = [_read(folder / name) for name in self._parts() if (folder / name).exists()]
        table = pa.concat_tables([schema.empty_table(), *parts])
        return table.filter(pc.is_in(table["inputs"], value_set=wanted))

    def _inputs(self, part: str) -> list[str] | None:
        """Of the sessions of a part; None where it is damaged."""
        files = [folder / part for folder in (self._predictions, self._rejected)]
        try:
            return [
                inputs
                for file in files
                if file.exists()
                for inputs in _read(file, columns=["inputs"])["inputs"].to_pylist()
            ]
        except (DamagedFile, KeyError):
            return None

    def _parts(self) -> list[str]:
        return [name for name in self._predictions.names() if name.startswith("part-")]


def _rejected_row(row: LeftOut, *, inputs: str | None) -> dict[str, str | None]:
    return {**schemas.rejected_row(row), "inputs": inputs}


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _read(file: Place, *, columns: list[str] | None = None) -> pa.Table:
    with plainly(file, "read"), intact(file, "a Parquet file"), file.open_parquet() as parquet:
        return parquet.read(columns=columns)

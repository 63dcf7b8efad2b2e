"""One shard into the store: prepared sessions become rows, rows become parts, and the commit is written last.

Sessions come one by one, and 4-D scans volume by volume; only their compressed rows are kept, of each table until they
make a part of LONGEST_PART_BYTES, which is then written. So a shard needs the memory of one session, or of one volume,
and of a part of each table, however much it holds. A process that dies before the commit leaves parts that nobody
refers to; the next one writes the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from bfp.cohorts.prepare import MapRecord, ScanRecord, SessionStacks
from bfp.cohorts.sessions import Key, Session, as_text
from bfp.imaging.session import Prepared
from bfp.storage import Place
from bfp.store import schemas
from bfp.store.layout import Commit, Part, Table, commit
from bfp.store.writer import PartWriter, mask_table, stack_table

LONGEST_PART_BYTES = 1 << 28  # twice as much as the stacks of 16 heads take, at 1 mm and three modalities to a stack


def commit_shard(
    store: Place, sessions: Iterable[SessionStacks], *, name: str, cohort: str, size_px: int, version: int
) -> Commit:
    """Write the sessions as the shard of this name, and commit it; `version` is that of `imaging`.

    The pieces of a session follow one another.
    With a session that lacks what may be there the next time, the commit has a name of its own: that of the shard is
    not taken, and the shard is made again.
    """
    tables: tuple[Table, ...] = ("stacks", "masks", "scans", "rejected", "label_maps")
    writers = {table: _Parts(store, table, schemas.of_table(table, size_px)) for table in tables}
    passing = False
    for each in sessions:
        passing |= each.passing
        key = each.session.key
        for prepared in each.prepared:
            writers["stacks"].add(_stacks(key, prepared))
            for masks in _masks(key, prepared):
                writers["masks"].add(masks)
        writers["scans"].add(pa.Table.from_pylist([_scan_row(key, record) for record in each.scans], schemas.SCANS))
        left_out = [schemas.rejected_row(row) for row in each.left_out]
        writers["rejected"].add(pa.Table.from_pylist(left_out, schemas.REJECTED))
        maps = [_map_row(key, record) for record in each.label_maps]
        writers["label_maps"].add(pa.Table.from_pylist(maps, schemas.LABEL_MAPS))
    parts = [part for writer in writers.values() for part in writer.end()]
    record = Commit(name=name, kind="shard", cohort=cohort, parts=parts, imaging=version)
    if passing:
        content = hashlib.sha256(record.encoded()).hexdigest()
        record = record.model_copy(update={"name": f"{name}-{content[:8]}"})
    return commit(store, record)


class _Parts:
    """The parts of one table of a shard, in the order of its rows."""

    def __init__(self, store: Place, table: Table, schema: pa.Schema) -> None:
        self._store, self._table, self._schema = store, table, schema
        self._written: list[Part] = []
        self._writer = PartWriter(table, schema)

    def add(self, rows: pa.Table) -> None:
        self._writer.add(rows)
        if self._writer.size_bytes >= LONGEST_PART_BYTES:
            self.end()
            self._writer = PartWriter(self._table, self._schema)

    def end(self) -> list[Part]:
        """Write what is left; all parts, none of them empty."""
        if part := self._writer.write(self._store):
            self._written.append(part)
        return self._written


def session_row(session: Session) -> dict[str, Any]:
    """A row of schemas.SESSIONS."""
    return {
        **session.key._asdict(),
        "modalities": [scan.modality for scan in session.scans],
        "labels": dict(session.labels),
    }


def _stacks(key: Key, prepared: Prepared) -> pa.Table:
    return stack_table(
        key,
        modalities=prepared.modalities,
        present=prepared.present,
        volume=prepared.volume,
        slices=prepared.slices,
        position_mm=prepared.position_mm,
        height=prepared.height,
        foreground=prepared.foreground,
        pixels=prepared.pixels,
    )


def _masks(key: Key, prepared: Prepared) -> Iterator[pa.Table]:
    reference = next(name for name, there in zip(prepared.modalities, prepared.present, strict=True) if there)
    for name, labels in sorted(prepared.labels.items()):
        yield mask_table(key, segmentation=name, modality=reference, slices=prepared.slices, labels=labels)


def _map_row(key: Key, record: MapRecord) -> dict[str, Any]:
    """A row of schemas.LABEL_MAPS."""
    label_map, unusable = record.label_map, record.unusable
    return {
        **key._asdict(),
        "segmentation": label_map.name,
        "drawn_on": label_map.drawn_on,
        "uri": as_text(label_map.file.place.uri),
        "size_bytes": sum(file.size for file in label_map.files if file.size >= 0),
        "etag": " ".join(file.etag for file in label_map.files),
        "chosen": label_map.chosen,
        "reason": str(unusable.reason) if unusable else None,
        "detail": unusable.detail if unusable else None,
        "warnings": list(record.warnings),
    }


def _scan_row(key: Key, record: ScanRecord) -> dict[str, Any]:
    """A row of schemas.SCANS."""
    facts, files = record.facts, record.scan.files
    return {
        **key._asdict(),
        "modality": facts.modality,
        "volume": facts.volume,
        "uri": record.scan.file.place.uri,
        "size_bytes": sum(file.size for file in files),
        "etag": " ".join(file.etag for file in files),
        "chosen": record.scan.chosen,
        "shape": facts.native.shape,
        "spacing_mm": facts.native.spacing_mm,
        "axes": facts.native.axis_codes,
        "ras_from_native": facts.native.ras_from_voxel.ravel().tolist(),
        "working_shape": facts.working.shape,
        "ras_from_working": facts.working.ras_from_voxel.ravel().tolist(),
        "window_low": facts.window.low,
        "window_high": facts.window.high,
        "register": facts.register,
        "reference_ras_from_scan_ras": facts.reference_ras_from_scan_ras.ravel().tolist(),
        "shift_mm": facts.shift_mm,
        "similarity_before": facts.similarity_before,
        "similarity_after": facts.similarity_after,
        "foreground": facts.foreground_share,
        "brain": facts.brain,
        "brain_ml": facts.brain_ml,
        "bias_field_ratio": facts.bias_field_ratio,
        "qform_sform_mm": facts.form_distance_mm,
        "stacks": record.stacks,
        "warnings": list(record.warnings),
    }

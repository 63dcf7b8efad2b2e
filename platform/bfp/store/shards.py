"""One shard into the store: prepared sessions become rows, rows become parts, and the commit is written last.

Sessions come one by one and only their compressed rows are kept, so that a shard needs the memory of one session and of
its own files. A process that dies before the commit leaves parts that nobody refers to; the next one writes the same.
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
from bfp.store.layout import Commit, commit
from bfp.store.writer import PartWriter, mask_table, stack_table


def commit_shard(
    store: Place, sessions: Iterable[SessionStacks], *, name: str, cohort: str, size_px: int, version: int
) -> Commit:
    """Write the sessions as the shard of this name, and commit it; `version` is that of `imaging`.

    With a session that lacks what may be there the next time, the commit has a name of its own: that of the shard is
    not taken, and the shard is made again.
    """
    writers = {
        "stacks": PartWriter("stacks", schemas.stacks(size_px)),
        "masks": PartWriter("masks", schemas.masks(size_px)),
        "scans": PartWriter("scans", schemas.SCANS),
        "rejected": PartWriter("rejected", schemas.REJECTED),
        "label_maps": PartWriter("label_maps", schemas.LABEL_MAPS),
    }
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
    parts = [part for writer in writers.values() if (part := writer.write(store))]
    record = Commit(name=name, kind="shard", cohort=cohort, parts=parts, imaging=version)
    if passing:
        content = hashlib.sha256(record.encoded()).hexdigest()
        record = record.model_copy(update={"name": f"{name}-{content[:8]}"})
    return commit(store, record)


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
        "qform_sform_mm": facts.form_distance_mm,
        "stacks": record.stacks,
        "warnings": list(record.warnings),
    }

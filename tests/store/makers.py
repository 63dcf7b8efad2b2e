"""Small slice stores with arbitrary pixels, written by the same writer as real ones."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bfp.cohorts.sessions import Key
from bfp.storage import Place, place
from bfp.store import layout, schemas
from bfp.store.layout import Commit, Part, SegmentationInfo, Table
from bfp.store.writer import PartWriter, commit_sessions, mask_table, stack_table

Paint = Callable[[str, np.ndarray], np.ndarray]  # subject, random pixels uint8 (n, 3, H, W) -> what they become


class MadeSession(NamedTuple):
    """A session of `stacks` random stacks; channels that are not present are zeros."""

    cohort: str
    subject: str
    session: str = ""
    stacks: int = 20
    present: tuple[bool, bool, bool] = (True, True, True)


def make_store(
    folder: Path,
    *,
    sessions: int | Sequence[MadeSession] = 6,
    size_px: int = 28,
    seed: int = 0,
    segmentation: str | None = None,
    classes: Mapping[str, list[int]] | None = None,
    labels: Mapping[str, Mapping[str, str]] | None = None,
    channels: tuple[str, str, str] = ("T1w", "T2w", "FLAIR"),
    sessions_per_shard: int = 2,
    sessions_per_part: int | None = None,
    paint: Paint | None = None,
) -> Place:
    """A store of form `modalities` with random pixels, and its place.

    sessions: a number of subjects "s00", "s01", … of cohort "made", or each one. segmentation: give every stack label
    maps of this name, of the values 0 to 3; classes: what they mean. labels: subject -> labels. sessions_per_part: None
    for one file of stacks a shard. Same arguments, same bytes.
    """
    store = place(str(folder))
    preprocessing = {
        "stacks": {"form": "modalities", "channels": list(channels)},
        "spacing_mm": 2.0,
        "slice_spacing_mm": 4.0,
        "size": size_px,
        "register": "rigid",
        "brain": "none",
        "window": [0.5, 99.5],
        "min_foreground": 0.05,
    }
    made = (
        [MadeSession("made", f"s{number:02d}", stacks=12 + number % 5) for number in range(sessions)]
        if isinstance(sessions, int)
        else list(sessions)
    )
    layout.make(store, preprocessing)
    meaning = {}
    if segmentation:
        meaning = {
            segmentation: SegmentationInfo(drawn_on=channels[0], classes=dict(classes or {"one": [1], "rest": [2, 3]}))
        }
    commits = []
    for cohort in sorted({each.cohort for each in made}):
        own = [each for each in made if each.cohort == cohort]
        rows = [
            {
                "cohort": cohort,
                "subject": each.subject,
                "session": each.session,
                "modalities": [name for name, there in zip(channels, each.present, strict=True) if there],
                "labels": dict((labels or {}).get(each.subject, {})),
            }
            for each in own
        ]
        commits.append(commit_sessions(store, rows, cohort=cohort, segmentations=meaning))
        for start in range(0, len(own), sessions_per_shard):
            group = own[start : start + sessions_per_shard]
            commits.append(
                _shard(
                    store,
                    group,
                    size_px=size_px,
                    seed=seed,
                    channels=channels,
                    segmentation=segmentation,
                    sessions_per_part=sessions_per_part or len(group),
                    paint=paint,
                )
            )
    layout.take_snapshot(store, commits, cohorts={each.cohort for each in made})
    return store


def _shard(
    store: Place,
    group: Iterable[MadeSession],
    *,
    size_px: int,
    seed: int,
    channels: tuple[str, str, str],
    segmentation: str | None,
    sessions_per_part: int,
    paint: Paint | None,
) -> Commit:
    stacks, masks, scans = list[pa.Table](), list[pa.Table](), list[dict[str, Any]]()
    maps = list[dict[str, Any]]()
    group = list(group)
    for made in group:
        key = Key(made.cohort, made.subject, made.session)
        random = np.random.default_rng([seed, zlib.crc32("/".join(key).encode())])
        pixels = random.integers(1, 256, (made.stacks, 3, size_px, size_px), dtype=np.uint8)
        pixels = paint(made.subject, pixels) if paint else pixels
        pixels[:, ~np.array(made.present)] = 0
        slices = np.arange(3, 3 + made.stacks)
        height = np.linspace(0, 1, made.stacks)
        stacks.append(
            stack_table(
                key,
                modalities=channels,
                present=made.present,
                volume=None,
                slices=slices,
                position_mm=4.0 * slices - 50,
                height=height,
                foreground=0.3 + 0.2 * np.sin(np.pi * height),
                pixels=pixels,
            )
        )
        reference = next(name for name, there in zip(channels, made.present, strict=True) if there)
        if segmentation:
            values = random.integers(0, 4, (made.stacks, size_px, size_px), dtype=np.uint16)
            masks.append(mask_table(key, segmentation=segmentation, modality=reference, slices=slices, labels=values))
            made_map = {
                "segmentation": segmentation,
                "drawn_on": channels[0],
                "uri": f"/made/{made.subject}_map.nii.gz",
            }
            maps.append({**key._asdict(), **made_map, "size_bytes": 100, "etag": "made", "chosen": "", "warnings": []})
        scans += [
            {
                **key._asdict(),
                "modality": name,
                "uri": f"/made/{made.subject}_{name}.nii.gz",
                "size_bytes": 1000,
                "etag": "made",
                "register": "rigid",
                "shift_mm": 0.5,
                "stacks": made.stacks,
                "warnings": [],
            }
            for name, there in zip(channels, made.present, strict=True)
            if there
        ]
    parts = [
        *(
            part_of(store, "stacks", schemas.stacks(size_px), stacks[start : start + sessions_per_part])
            for start in range(0, len(stacks), sessions_per_part)
        ),
        part_of(store, "masks", schemas.masks(size_px), masks),
        part_of(store, "scans", schemas.SCANS, [pa.Table.from_pylist(scans, schemas.SCANS)]),
        part_of(store, "label_maps", schemas.LABEL_MAPS, [pa.Table.from_pylist(maps, schemas.LABEL_MAPS)]),
    ]
    inputs = repr((group, size_px, seed, channels, segmentation))
    name = hashlib.sha256(inputs.encode()).hexdigest()[:24]
    return layout.commit(
        store, Commit(name=name, kind="shard", cohort=group[0].cohort, parts=[part for part in parts if part])
    )


def part_of(store: Place, table: Table, schema: pa.Schema, pieces: Iterable[pa.Table]) -> Part | None:
    writer = PartWriter(table, schema)
    for piece in pieces:
        writer.add(piece)
    return writer.write(store)

"""The picture of a pretraining's views: one stack of those that it trains on, each change alone, and views whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.drivers.pretrain_material import Material, crops_of
from bfp.reports.blocks import Picture
from bfp.reports.pictures import View, orientation, views
from bfp.runs import Run
from bfp.specs.pretrain import NaturalCrops, Pretrain
from bfp.store.reader import SliceStore

VIEWS = "pictures/views.png"
HEIGHT = 0.6  # of the slice that is shown: 0 is a scan's lowest, 1 its highest


def picture_of_views(spec: Pretrain, run: Run, material: Material) -> None:
    """Write it into the run's folder: the same for the same spec and stores."""
    import torch

    from bfp.pretraining import shown

    store, index = _shown_store(material)
    row = _shown_row(index)
    settings = crops_of(spec, material, large_px=spec.crops.global_size_px or store.size_px)
    pixels = store.read_packed(store.stack_files()[row["file"]], row["row_group"])[row["row"]]
    stack = torch.from_numpy(pixels.copy())  # (3, size, size)
    lines = [
        shown.changes(stack, settings=settings, seed=spec.seed),
        shown.views(stack, settings=settings, seed=spec.seed),
    ]
    # Colours mix what is there into channels where nothing is.
    kept = [channel for channel in range(3) if row["present"][channel] or isinstance(spec.crops, NaturalCrops)]
    picture = views(
        [[View(title, view[kept]) for title, view in line] for line in lines],
        channels=[store.channels[channel] for channel in kept],
    )
    (run.folder / VIEWS).write(picture)


def views_block(spec: Pretrain, material: Material) -> Picture:
    teacher = "its teacher's own contrast beside them, " if spec.crops.teacher_views == "own" else ""
    mirrored = " Some views are mirrored." if spec.crops.flip else ""
    return Picture(
        "What the network sees",
        VIEWS,
        "One of the stacks, a row for each channel: as it is stored, each change alone at its strongest, then views "
        f"of it as a step draws them: global crops, {teacher}local crops, all at one size. "
        f"{orientation(_shown_store(material)[0].slice_axis)}{mirrored}",
    )


def _shown_store(material: Material) -> tuple[SliceStore, pa.Table]:
    """The first that something is learned from, and the stacks of it."""
    return next(pair for pair in zip(material.stores, material.training, strict=True) if len(pair[1]))


def _shown_row(index: pa.Table) -> dict[str, Any]:
    """A stack with as many modalities as any has, and of those one in the upper half of the head."""
    present = np.asarray(pc.list_flatten(index["present"].combine_chunks())).reshape(-1, 3).sum(1)
    away = np.abs(index["height"].to_numpy() - HEIGHT)
    row: dict[str, Any] = index.slice(int(np.lexsort((away, -present))[0]), 1).to_pylist()[0]
    return row

"""The picture of a pretraining's views: one stack of those that it trains on, each change alone, and views whole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from bfp.drivers.pretrain_material import Material, crops_of
from bfp.reports.blocks import Picture
from bfp.reports.pictures import View, orientation, views
from bfp.runs import Run
from bfp.specs.pretrain import NaturalCrops, Pretrain
from bfp.store.reader import SliceStore

VIEWS = "pictures/views.png"
HEIGHT = 0.6  # of the slice that is shown: 0 is a scan's lowest, 1 its highest


class _Stack(NamedTuple):
    """One stack: the store that it is from, uint8 (3, size, size), and which channels a scan stands in."""

    store: SliceStore
    pixels: np.ndarray
    present: list[bool]


def picture_of_views(spec: Pretrain, run: Run, material: Material) -> None:
    """Write it into the run's folder: the same for the same spec and stores."""
    import torch

    from bfp.pretraining import shown

    stack = _shown_stack(material)
    settings = crops_of(spec, material, large_px=spec.crops.global_size_px or stack.store.size_px)
    pixels = torch.from_numpy(stack.pixels.copy())
    rows = [
        shown.changes(pixels, settings=settings, seed=spec.seed),
        shown.views(pixels, settings=settings, seed=spec.seed),
    ]
    # Colours mix what is there into channels where nothing is.
    kept = [channel for channel in range(3) if stack.present[channel] or isinstance(spec.crops, NaturalCrops)]
    picture = views(
        [[View(title, pixels[kept]) for title, pixels in row] for row in rows],
        channels=[stack.store.channels[channel] for channel in kept],
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
        f"{orientation(_shown_stack(material).store.slice_axis)}{mirrored}",
    )


def _shown_stack(material: Material) -> _Stack:
    """One with as many modalities as any has, and of those one in the upper half of the head."""
    store, index = next(pair for pair in zip(material.stores, material.training, strict=True) if len(pair[1]))
    present = np.asarray(pc.list_flatten(index["present"].combine_chunks())).reshape(-1, 3).sum(1)
    away = np.abs(index["height"].to_numpy() - HEIGHT)
    row = index.slice(int(np.lexsort((away, -present))[0]), 1).to_pylist()[0]
    pixels = store.read_packed(store.stack_files()[row["file"]], row["row_group"])[row["row"]]
    return _Stack(store, pixels, row["present"])

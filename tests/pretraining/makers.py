"""Small networks, recipes and stacks to train on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import timm
import torch

from bfp.models.vit import Backbone
from bfp.pretraining.contrast import Contrast
from bfp.pretraining.crops import CropSettings, Normalisation
from bfp.pretraining.loop import Recipe
from bfp.pretraining.schedules import Schedules
from bfp.pretraining.step import SslSettings, TrainState, make_network, start, twin

FP32 = nullcontext()


def make_vit(*, size_px=56, seed=3, **shape):
    torch.manual_seed(seed)
    shape = {"embed_dim": 24, "depth": 2, "num_heads": 3, **shape}
    return timm.create_model("vit_small_patch14_dinov2", img_size=size_px, num_classes=0, init_values=1.0, **shape)


def make_ssl(**changed) -> SslSettings:
    usual = SslSettings(
        prototypes=96,
        ibot_prototypes=64,
        bottleneck=16,
        ibot_bottleneck=16,
        hidden=48,
        shared_head=False,
        batch_norm_head=False,
        centring="sinkhorn",
        scope="global",
        student_temperature=0.1,
        layer_decay=0.9,
        patch_embed_rate=0.2,
        clip_norm=0.5,
        drop_path=0.0,
        dino_weight=1.0,
        ibot_weight=1.0,
        koleo_weight=0.1,
        mask_ratio=(0.1, 0.5),
        mask_probability=0.5,
        constant_masks=False,
    )
    return dataclasses.replace(usual, **changed)


def make_recipe(*, steps=6, batch_size=8, precision="fp32", modality_views=0.5, **ssl) -> Recipe:
    return Recipe(
        ssl=make_ssl(**ssl),
        schedules=Schedules(
            steps=steps,
            learning_rate=1e-3,
            min_learning_rate=1e-6,
            warmup_steps=2,
            freeze_last_layer_steps=1,
            weight_decay=(0.04, 0.2),
            momentum=(0.99, 1.0),
            teacher_temperature=(0.04, 0.07),
            teacher_temperature_warmup_steps=3,
        ),
        crops=CropSettings(
            large_px=56,
            small_px=28,
            small_count=2,
            large_scale=(0.5, 1.0),
            small_scale=(0.1, 0.4),
            contrast=Contrast(brightness=0.1, contrast=0.2, gamma=0.2, bias_field=0.2, noise=0.05, blur=0.3),
            modality_views=modality_views,
        ),
        normalisation=Normalisation((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        batch_size=batch_size,
        seed=11,
        precision=precision,
    )


def make_state(ssl: SslSettings) -> TrainState:
    torch.manual_seed(5)
    student = make_network(Backbone(make_vit()), ssl)
    return start(student, twin(student), ssl)


def make_stacks(count: int, *, shape=(60, 72), seed=0) -> torch.Tensor:
    """uint8 (count, 3, H, W): a smooth ellipse off the middle, brighter in one channel than in another, on zeros."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[: shape[0], : shape[1]]
    stacks = np.zeros((count, 3, *shape), dtype=np.uint8)
    for stack in stacks:
        y, x = rng.uniform(0.35, 0.65, 2) * shape
        inside = ((row - y) / (0.30 * shape[0])) ** 2 + ((column - x) / (0.22 * shape[1])) ** 2 < 1
        for channel in range(3):
            texture = 40 * np.sin(row / rng.uniform(2, 6) + channel) + rng.uniform(90, 200)
            stack[channel] = np.where(inside, np.clip(texture, 1, 255), 0)
    return torch.from_numpy(stacks)


def open_batches(step: int, rank: int, workers: int, *, batch_size=8) -> Iterator[torch.Tensor]:
    """A worker's share of endless batches, each a function of its step."""
    share = batch_size // workers
    while True:
        yield make_stacks(batch_size, seed=step)[rank * share : (rank + 1) * share]
        step += 1

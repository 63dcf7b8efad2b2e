"""The presets of self-supervision: the published ones have the published numbers."""

from __future__ import annotations

import json

import pytest

from bfp.specs.presets import LENGTHS, SSL_PRESETS
from tests.models.golden import GOLDEN, needs_golden

SAME_NAME = ("warmup_epochs", "freeze_last_layer_epochs", "weight_decay", "teacher_temperature", "drop_path")
OTHER_NAME = {
    "teacher_temperature_warmup_epochs": "warmup_teacher_temp_epochs",
    "learning_rate": "base_lr",
    "min_learning_rate": "min_lr",
    "momentum": "teacher_momentum",
    "layer_decay": "layerwise_decay",
    "patch_embed_rate": "patch_embed_lr_mult",
    "clip_norm": "clip_grad",
    "prototypes": "head_prototypes",
    "bottleneck": "head_bottleneck",
    "hidden": "head_hidden",
}
OF_A_HEAD_OF_ITS_OWN = {"ibot_prototypes": "ibot_head_prototypes", "ibot_bottleneck": "ibot_head_bottleneck"}
CENTRING = {"softmax": "centering", "sinkhorn": "sinkhorn_knopp"}


@needs_golden
@pytest.mark.parametrize(("preset", "published"), [("dinov2-fast", "ssl_default"), ("dinov2-long", "vitl14")])
def test_a_published_preset_has_the_numbers_of_its_source(preset, published):
    ours = SSL_PRESETS[preset]
    theirs = json.loads((GOLDEN / "schedules.json").read_text())["defaults_sampled"][published]["config"]
    names = {name: name for name in SAME_NAME} | OTHER_NAME | ({} if ours["shared_head"] else OF_A_HEAD_OF_ITS_OWN)
    pairs = {name: list(ours[name]) if isinstance(ours[name], tuple) else ours[name] for name in names}
    assert pairs == {name: theirs[other] for name, other in names.items()}
    assert ours["shared_head"] is not theirs["separate_ibot_head"]
    assert CENTRING[ours["centring"]] == theirs["centering"]
    assert LENGTHS[preset] == {"epochs": theirs["epochs"], "steps_per_epoch": theirs["iterations_per_epoch"]}

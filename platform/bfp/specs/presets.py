"""The numbers of each preset, of pretraining and of fine-tuning, from their sources.

Pretraining:
dinov2-fast   the released code's default configuration (ViT-L, ImageNet-22k, 100 epochs)
dinov2-long   the released training configuration of ViT-L/14 (LVD-142M recipe, 500 epochs of 1,250 steps)
brain         ours, for cohorts of 1,000 to 100,000 scans on one GPU or a few; it departs from dinov2-fast so:
              prototypes 4,096 with Sinkhorn-Knopp, since slices of brains are far less diverse than photographs
              and rarely-used prototypes stand still; a momentum that the shorter runs can follow; layer decay 1,
              since nothing was pretrained below, and with it half of the rate, which the lower blocks now take whole;
              a teacher temperature without warm-up, since Sinkhorn keeps the targets balanced from the first step;
              a head for each of class and patch tokens and weight decay to 0.2, as in dinov2-long; drop path 0.1,
              for ViT-S, where the others' 0.3 and 0.4 are ViT-L's; scope global, so that what is learned does not
              hang on the number of workers; as many hidden patches in every batch, since on a CPU memory grew from
              step to step with varying ones.

Training of `kind: finetune`:
retfound      RETFound's recipe for full tuning (Zhou et al. 2023, doi 10.1038/s41586-023-06555-x, and the released
              commands): 50 epochs of which 10 warm up, base rate 5e-3, layer decay 0.65, weight decay 0.05, drop path
              0.2, label smoothing 0.1, batches of 16
lora          ours: adapters of rank 8 (Hu et al. 2021, arXiv 2106.09685), a peak rate of 1e-3 in steps of 16 sessions
attention     ours: attention and head alone, on an encoder that rests, which bear a larger rate
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

_DINOV2_FAST: dict[str, Any] = {
    "prototypes": 65536,
    "ibot_prototypes": 65536,
    "bottleneck": 256,
    "ibot_bottleneck": 256,
    "hidden": 2048,
    "shared_head": True,
    "batch_norm_head": False,
    "centring": "softmax",
    "scope": "local",
    "student_temperature": 0.1,
    "teacher_temperature": (0.04, 0.07),
    "teacher_temperature_warmup_epochs": 30.0,
    "momentum": (0.992, 1.0),
    "learning_rate": 4e-3,
    "min_learning_rate": 1e-6,
    "warmup_epochs": 10.0,
    "weight_decay": (0.04, 0.4),
    "layer_decay": 0.9,
    "patch_embed_rate": 0.2,
    "clip_norm": 3.0,
    "freeze_last_layer_epochs": 1.0,
    "freeze_backbone_epochs": 0.0,
    "backbone_rate": 1.0,
    "drop_path": 0.3,
    "dino_weight": 1.0,
    "ibot_weight": 1.0,
    "koleo_weight": 0.1,
    "mask_ratio": (0.1, 0.5),
    "mask_probability": 0.5,
    "constant_masks": False,
}

_DINOV2_LONG: dict[str, Any] = {
    **_DINOV2_FAST,
    "prototypes": 131072,
    "ibot_prototypes": 131072,
    "bottleneck": 384,
    "shared_head": False,
    "centring": "sinkhorn",
    "momentum": (0.994, 1.0),
    "learning_rate": 2e-4,
    "warmup_epochs": 80.0,
    "weight_decay": (0.04, 0.2),
    "layer_decay": 1.0,
    "drop_path": 0.4,
}

_BRAIN: dict[str, Any] = {
    **_DINOV2_FAST,
    "prototypes": 4096,
    "ibot_prototypes": 4096,
    "shared_head": False,
    "centring": "sinkhorn",
    "scope": "global",
    "teacher_temperature": (0.05, 0.05),
    "teacher_temperature_warmup_epochs": 0.0,
    "momentum": (0.994, 1.0),
    "learning_rate": 2e-3,
    "weight_decay": (0.04, 0.2),
    "layer_decay": 1.0,
    "drop_path": 0.1,
    "constant_masks": True,
}

LENGTHS = MappingProxyType(
    {
        "dinov2-fast": {"epochs": 100, "steps_per_epoch": 1250},
        "dinov2-long": {"epochs": 500, "steps_per_epoch": 1250},
    }
)
"""How long the sources train: their warm-ups are shares of it."""

SSL_PRESETS = MappingProxyType({"dinov2-fast": _DINOV2_FAST, "dinov2-long": _DINOV2_LONG, "brain": _BRAIN})

_RETFOUND: dict[str, Any] = {
    "epochs": 50,
    "warmup_epochs": 10.0,
    "learning_rate": 5e-3,
    "min_learning_rate": 1e-6,
    "weight_decay": 0.05,
    "sessions_per_step": 16,
    "slices_per_session": 32,
    "label_smoothing": 0.1,
    "class_balanced": False,
    "layer_decay": 0.65,
    "drop_path": 0.2,
}

_ATTENTION: dict[str, Any] = {**_RETFOUND, "learning_rate": 0.1, "layer_decay": None, "drop_path": None}

_LORA: dict[str, Any] = {**_ATTENTION, "learning_rate": 1.6e-2, "rank": 8, "alpha": 16}

TRAINING_PRESETS = MappingProxyType({"retfound": _RETFOUND, "lora": _LORA, "attention": _ATTENTION})

PRESET_OF = MappingProxyType({"full": "retfound", "lora": "lora", "frozen": "attention"})
"""Of each `tune`: where the numbers of its training come from."""

NATURAL_BLUR = MappingProxyType({"published": (0.0, 0.9, 0.5), "declared": (1.0, 0.1, 0.5)})
"""DINOv2's probabilities of a blur: of the first global crop, the second, and local ones.

The released configuration declares the second; its blur takes the probability of leaving an image as it is, and so the
published encoders were trained with the first.
"""

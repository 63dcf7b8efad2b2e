"""What changes with the step: rate, weight decay, the teacher's momentum and temperature (DINOv2, all in steps).

Steps count from 0. Warm-ups are linear and include both their ends: step 0 has rate 0, and the peak comes twice, at
the end of the warm-up and at the start of the cosine, which never quite reaches its end; past the last step it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Now(NamedTuple):
    """The schedules' values at one step. learning_rate is the heads', last_layer_rate that of their prototypes."""

    learning_rate: float
    last_layer_rate: float
    backbone_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float


@dataclass(frozen=True, slots=True)
class Schedules:
    """steps: length of the run. Pairs are (first, last). learning_rate is the peak, already scaled to the batch.

    freeze_last_layer_steps: steps in which the prototypes' rate is 0; the curve is cut there, not shifted.
    freeze_backbone_steps: likewise the backbone's, for new heads on a backbone that was trained before: their first
    gradients would ruin it. backbone_factor: of its rate afterwards.
    """

    steps: int
    learning_rate: float
    min_learning_rate: float
    warmup_steps: int
    freeze_last_layer_steps: int
    weight_decay: tuple[float, float]
    momentum: tuple[float, float]
    teacher_temperature: tuple[float, float]
    teacher_temperature_warmup_steps: int
    freeze_backbone_steps: int = 0
    backbone_factor: float = 1.0

    def at(self, step: int) -> Now:
        """The values for the step-th update, from 0."""
        rate = cosine(
            step,
            first=self.learning_rate,
            last=self.min_learning_rate,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
        )
        return Now(
            learning_rate=rate,
            last_layer_rate=0.0 if step < self.freeze_last_layer_steps else rate,
            backbone_rate=0.0 if step < self.freeze_backbone_steps else rate * self.backbone_factor,
            weight_decay=cosine(step, first=self.weight_decay[0], last=self.weight_decay[1], steps=self.steps),
            momentum=cosine(step, first=self.momentum[0], last=self.momentum[1], steps=self.steps),
            teacher_temperature=linear(
                step,
                first=self.teacher_temperature[0],
                last=self.teacher_temperature[1],
                steps=self.teacher_temperature_warmup_steps,
            ),
        )


def scaled_rate(rate: float, *, batch_size: int) -> float:
    """The rate for a global batch of batch_size stacks, from that for 1,024, by the square root rule."""
    return rate * math.sqrt(batch_size / 1024)


def cosine(step: int, *, first: float, last: float, steps: int, warmup_steps: int = 0) -> float:
    """Linear from 0 to first in warmup_steps, then half a cosine to last, over `steps` in all."""
    if step >= steps:
        return last
    if step < warmup_steps:
        return linear(step, first=0.0, last=first, steps=warmup_steps)
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * (step - warmup_steps) / (steps - warmup_steps)))


def linear(step: int, *, first: float, last: float, steps: int) -> float:
    """From first at step 0 to last at step `steps` - 1, then constant."""
    if step >= steps:
        return last
    return first + (last - first) * step / max(steps - 1, 1)

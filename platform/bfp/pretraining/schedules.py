"""What changes with the step: rate, weight decay, the teacher's momentum and temperature (DINOv2, all in steps).

Steps count from 0. Warm-ups are linear and include both their ends: step 0 has rate 0, and the peak comes twice, at
the end of the warm-up and at the start of the cosine, which never quite reaches its end; past the last step it does.

A run that is given a new length has ended, or was about to: its rate is next to nothing and its teacher next to
still. Held there it would learn no more, and taken to the longer curve at once it would jump. So each value goes in
a straight line, over a tenth of the steps that are left, from where it stood to the curve that a run of the new length
has there, and follows that to its end. A decayed rate that was warmed up again and let decay, with earlier data among
the new, did as well as training from scratch (Ibrahim et al. 2024, arXiv 2403.08763); how long the re-warming took
mattered little (Gupta et al. 2023, arXiv 2308.04014). What came before stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple


class Now(NamedTuple):
    """The schedules' values at one step. learning_rate is the heads', last_layer_rate that of their prototypes."""

    learning_rate: float
    last_layer_rate: float
    backbone_rate: float
    weight_decay: float
    momentum: float
    teacher_temperature: float


class Length(NamedTuple):
    """How many steps a run was to have, until at the step `until` it was given another length."""

    steps: int
    until: int


REWARMING_SHARE = 0.1  # of the steps that are left when a run is given a new length


@dataclass(frozen=True, slots=True)
class Schedules:
    """steps: length of the run. Pairs are (first, last). learning_rate is the peak, already scaled to the batch.

    freeze_last_layer_steps: steps in which the prototypes' rate is 0; the curve is cut there, not shifted.
    freeze_backbone_steps: steps in which the backbone's rate is 0, for new heads on a backbone that was trained before:
    their first gradients would ruin it. Meanwhile the heads warm up (`heads_warmup_steps`); afterwards the backbone's
    rate rises from 0 in warmup_steps of its own. backbone_factor: of its rate then.
    earlier: the lengths that the run had before, oldest first.
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
    earlier: tuple[Length, ...] = ()

    def at(self, step: int) -> Now:
        """The values for the step-th update, from 0."""
        if not self.earlier:
            return self._curves(step)
        *others, before = self.earlier
        if step <= before.until:
            return replace(self, steps=before.steps, earlier=tuple(others)).at(step)
        return Now(
            *(
                linear(step - before.until, first=stood, last=goes, steps=self.rewarmed_at - before.until + 1)
                for stood, goes in zip(self.at(before.until), self._curves(step), strict=True)
            )
        )

    @property
    def rewarmed_at(self) -> int:
        """The step from which on the values are those of the curves again; 0 where the length was always this one."""
        if not self.earlier:
            return 0
        until = self.earlier[-1].until
        return until + max(1, round(REWARMING_SHARE * (self.steps - until)))

    @property
    def heads_warmup_steps(self) -> int:
        """Steps in which the heads warm up: in at most half of the time in which the backbone rests, where it does."""
        resting = self.freeze_backbone_steps
        return min(self.warmup_steps, resting // 2) if resting else self.warmup_steps

    def going_on(self, step: int, *, steps: int, earlier: Sequence[Length]) -> Schedules:
        """These schedules for a run that has come to `step` by those of a length, and of others earlier."""
        changed = [Length(steps, until=step)] if steps != self.steps else []
        return replace(self, earlier=(*earlier, *changed))

    def _curves(self, step: int) -> Now:
        """Of a run that was to be this long from its start."""
        resting = self.freeze_backbone_steps
        rate = cosine(
            step,
            first=self.learning_rate,
            last=self.min_learning_rate,
            steps=self.steps,
            warmup_steps=self.heads_warmup_steps,
        )
        thawed = 1.0
        if resting:
            thawed = linear(max(step - resting, 0), first=0.0, last=1.0, steps=self.warmup_steps)
        return Now(
            learning_rate=rate,
            last_layer_rate=0.0 if step < self.freeze_last_layer_steps else rate,
            backbone_rate=0.0 if step < resting else rate * self.backbone_factor * thawed,
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

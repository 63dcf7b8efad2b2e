"""The probe while training: are the teacher's features better than at the start, or worse?

Released weights can be ruined within a few hundred steps while every loss falls. So every `Watch.every` steps, and at
step 0, a bounded part of the labelled stacks is read through the teacher: AUROC of a label of sessions
(`session_probe`), residual tissue R² of patches (`metrics.tissue`), or both, on subjects that pretraining never sees.
Every figure is compared with that of the weights that training started from, on the same subjects.

Worse is a figure whose difference from the start has its whole 95 % interval, over subjects, below 0, where the
start's own interval lies above chance: what tells nothing cannot tell less. The wire trips when a figure is worse in
two probes in a row: over a long run one of them alone would be so by chance. (A restart forgets the first of two.)

The first worker reads, the others wait. The start's figures are computed again after a restart, to the same values.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from bfp.errors import InputError, JobFailed, StorageError
from bfp.features.tokens import tokens
from bfp.metrics.bootstrap import Interval
from bfp.metrics.tissue import ResidualFit, r2, r2_difference
from bfp.models.encoder import LoadedEncoder, resized
from bfp.pretraining.labelled import LabelledSessions, Read, read_stacks
from bfp.pretraining.probe import Patches, brain_patches, residual_fit
from bfp.pretraining.session_probe import KNN, LINEAR, SessionProbe
from bfp.store.reader import SliceStore

MAX_PATCHES = 50_000  # a fifth of what the probe at the end reads
TISSUE = "residual tissue R²"
FIGURES = {KNN: "probe_auroc_knn", LINEAR: "probe_auroc_linear", TISSUE: "probe_tissue_r2"}
CHANCE = {KNN: 0.5, LINEAR: 0.5, TISSUE: 0.0}
TRIPPED = "probe_worse"


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """What is read, and how often. every: steps. stop: whether training ends when the wire trips. bf16: as training.

    sessions: for AUROC. tissue: stacks with their `labels` (`probe.stacks_with_labels`), of these classes, and held:
    bool, which of them are of subjects held out; None leaves either out.
    """

    store: SliceStore
    every: int
    stop: bool
    bf16: bool
    seed: int
    sessions: LabelledSessions | None
    tissue: pa.Table | None
    classes: Mapping[str, Sequence[int]]
    held: np.ndarray | None


class _Reading(NamedTuple):
    """What was read through an encoder: scores by way, and what tissue it leaves unexplained."""

    scores: dict[str, np.ndarray]
    fit: ResidualFit | None


class Tripwire:
    """The start's figures, and the probes since. encoder: as training starts, at the size that it is trained at."""

    def __init__(self, watch: Watch, encoder: LoadedEncoder, device: torch.device) -> None:
        self.every, self.stop = watch.every, watch.stop
        self._watch, self._encoder, self._device = watch, encoder, device
        self._sessions: SessionProbe | None = None
        self._tissue: list[Read] = []
        self._start: _Reading | None = None
        self._telling: set[str] = set()  # what is above chance at the start
        self._worse: set[str] = set()

    def judge(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """The figures of a teacher's weights (`loop.teacher_weights`) by the names of FIGURES, undefined ones left out.

        Beside each: `_gain` over the start, `_gain_low` and `_gain_high`; TRIPPED: 1 where the wire trips; `probe_s`.
        Raises JobFailed where the labelled stacks do not suffice after all.
        """
        began_s = time.perf_counter()
        try:
            if self._start is None:
                self._start = self._first()
                began = self._values(self._start)
                self._telling = {name for name, value in began.items() if (value.low or 0) > CHANCE[name]}
            encoder = replace(self._encoder, model=copy.deepcopy(self._encoder.model))
            encoder.model.load_state_dict(weights)
            now = self._read(encoder)
        except StorageError:
            raise
        except InputError as error:
            raise JobFailed(f"the encoder cannot be probed: {error}; leave probe.every out") from error
        values, gains = self._values(now), self._gains(now, self._start)
        worse = {name for name in self._telling if (high := gains[name].high) is not None and high < 0}
        found: dict[str, float | None] = {}
        for name, gain in gains.items():
            figure = FIGURES[name]
            found |= {figure: values[name].value, f"{figure}_gain": gain.value}
            found |= {f"{figure}_gain_low": gain.low, f"{figure}_gain_high": gain.high}
        found |= {TRIPPED: float(bool(worse & self._worse)), "probe_s": time.perf_counter() - began_s}
        self._worse = worse
        return {name: value for name, value in found.items() if value is not None}

    def _first(self) -> _Reading:
        watch = self._watch
        if watch.sessions is not None:
            self._sessions = SessionProbe.read(watch.store, watch.sessions)
        if watch.tissue is not None:
            self._tissue = list(read_stacks(watch.store, watch.tissue))
        return self._read(self._encoder)

    def _read(self, encoder: LoadedEncoder) -> _Reading:
        encoder = resized(encoder, self._watch.store.size_px)  # a copy: the device is the training's
        encoder.model.to(self._device)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._watch.bf16):
            scores = self._sessions.scores(encoder) if self._sessions else {}
            parts = [self._patches(encoder, stacks) for stacks in self._tissue]
        return _Reading(scores, residual_fit(parts, TISSUE) if parts else None)

    def _patches(self, encoder: LoadedEncoder, stacks: Read) -> Patches:
        assert self._watch.held is not None, "goes with `tissue`"
        found = {TISSUE: tokens(encoder, stacks.pixels).patches.cpu().numpy()}
        held = self._watch.held[stacks.at]
        return brain_patches(stacks, held, found, classes=self._watch.classes, patch_px=encoder.patch_px)

    def _values(self, now: _Reading) -> dict[str, Interval]:
        found = self._sessions.aurocs(now.scores, seed=self._watch.seed) if self._sessions else {}
        return found | ({TISSUE: r2(now.fit, seed=self._watch.seed)} if now.fit else {})

    def _gains(self, now: _Reading, start: _Reading) -> dict[str, Interval]:
        found = self._sessions.gains(now.scores, start.scores, seed=self._watch.seed) if self._sessions else {}
        tissue = now.fit and start.fit and r2_difference(now.fit, start.fit, seed=self._watch.seed)
        return found | ({TISSUE: tissue} if tissue else {})


def verdict(found: Mapping[str, float]) -> str | None:
    """A sentence that says what has become worse, or None. found: what `judge` returned, beside whatever else."""
    if not found.get(TRIPPED):
        return None
    worse = [
        f"{name} {found[figure]:.3f}, at the start {found[figure] - found[f'{figure}_gain']:.3f} (difference "
        f"{found[f'{figure}_gain_low']:.3f} to {found[f'{figure}_gain_high']:.3f})"
        for name, figure in FIGURES.items()
        if found.get(f"{figure}_gain_high", 0) < 0
    ]
    return (
        f"the features have become worse than those that training started from, in two probes in a row: "
        f"{'; '.join(worse)}; lower ssl.learning_rate, or lengthen ssl.warmup_epochs"
    )

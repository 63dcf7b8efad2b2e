"""What an encoder's class tokens tell of a label of whole sessions: AUROC on subjects that pretraining never saw.

A session's vector is the mean of its stacks' class tokens. `metrics.class_probe` learns from the other subjects'
sessions and judges the held-out ones, in two ways, which are called KNN and LINEAR here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from bfp.features.tokens import tokens
from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.bootstrap import Interval
from bfp.metrics.class_probe import logistic, nearest
from bfp.metrics.over_folds import difference, over_folds
from bfp.models.encoder import LoadedEncoder
from bfp.pretraining.labelled import LabelledSessions, read_stacks
from bfp.store.reader import SliceStore

KNN, LINEAR = "nearest neighbours", "logistic regression"
_BATCH = 64


class SessionResult(NamedTuple):
    """aurocs: of each reading by its name, by way; gains: how much the first reading is above the second, by way.

    names: the label's values; sessions: learned from and judged on.
    """

    aurocs: dict[str, dict[str, Interval]]
    gains: dict[str, Interval]
    names: list[str]
    sessions: tuple[int, int]


def probe_sessions(
    store: SliceStore,
    sessions: LabelledSessions,
    encoders: Mapping[str, LoadedEncoder],
    *,
    device: torch.device,
    seed: int,
) -> SessionResult:
    """Judge two encoders, made for the store's size: by name, the one in question first."""
    ready = SessionProbe.read(store, sessions)
    scores = {}
    for name, encoder in encoders.items():
        encoder.model.to(device)
        scores[name] = ready.scores(encoder)
    first, second = scores.values()
    judged = int(sessions.held_out.sum())
    return SessionResult(
        aurocs={name: ready.aurocs(said, seed=seed) for name, said in scores.items()},
        gains=ready.gains(first, second, seed=seed),
        names=sessions.names,
        sessions=(len(sessions.classes) - judged, judged),
    )


@dataclass(frozen=True, slots=True, eq=False)
class SessionProbe:
    """Labelled sessions and the pixels of their stacks, uint8 (n, 3, H, W): ready to be read through any encoder."""

    sessions: LabelledSessions
    pixels: np.ndarray

    @classmethod
    def read(cls, store: SliceStore, sessions: LabelledSessions) -> SessionProbe:
        pixels = np.empty((len(sessions.stacks), 3, store.size_px, store.size_px), np.uint8)
        for read in read_stacks(store, sessions.stacks):
            pixels[read.at] = read.pixels
        return cls(sessions, pixels)

    def scores(self, encoder: LoadedEncoder) -> dict[str, np.ndarray]:
        """Of each way the probabilities (h, K) of the h held-out sessions. encoder: made for the store's size."""
        batches = range(0, len(self.pixels), _BATCH)
        cls = np.concatenate([tokens(encoder, self.pixels[at : at + _BATCH]).cls.cpu().numpy() for at in batches])
        of, held = self.sessions, self.sessions.held_out
        counts = np.bincount(of.session_of)[:, None]
        vectors = np.stack([np.bincount(of.session_of, column) for column in cls.T], axis=1) / counts  # (S, D)
        known, classes, judged = vectors[~held], of.classes[~held], vectors[held]
        return {
            KNN: nearest(known, classes, judged, class_count=len(of.names)),
            LINEAR: logistic(known, classes, judged),
        }

    def aurocs(self, scores: Mapping[str, np.ndarray], *, seed: int) -> dict[str, Interval]:
        """The AUROC of each way, with its interval over held-out subjects."""
        classes, one_fold, subjects = self._judged()
        return {
            way: over_folds(weighted_auroc, classes, said, folds=one_fold, subjects=subjects, seed=seed).mean
            for way, said in scores.items()
        }

    def gains(
        self, scores: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], *, seed: int
    ) -> dict[str, Interval]:
        """How much higher the AUROC of each way is than with other scores of the same sessions."""
        classes, one_fold, subjects = self._judged()
        return {
            way: difference(
                weighted_auroc, classes, said, others[way], folds=one_fold, subjects=subjects, seed=seed
            ).mean
            for way, said in scores.items()
        }

    def _judged(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        of = self.sessions
        classes = of.classes[of.held_out]
        subjects = [subject for subject, held in zip(of.subjects, of.held_out, strict=True) if held]
        return classes, np.zeros(len(classes), dtype=np.int64), subjects

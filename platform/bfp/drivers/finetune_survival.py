"""What a survival's report has of its own: to how many the event came, from low risk to high.

A concordance says in how many pairs the order is right, and nothing of how far apart those are whom it parts. So the
sessions are taken in thirds of the risk that was said, each within the fold that tested it, since hazards of different
heads are on different scales.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from bfp.finetuning.crossvalidation import Judged, Study
from bfp.metrics.survival import event_free_interval
from bfp.reports.blocks import Block, Cell, Table
from bfp.reports.numbers import interval_text

LIMITS = (
    "What is predicted is the logarithm of a relative hazard: it orders sessions, and tells neither a time nor how "
    "likely the event is. The percentile beside it is a session's place among the sessions of this study, each judged "
    "by the head that did not see its subject: among people or scans that are others it says less."
)
THIRDS = ("low", "middle", "high")
MOMENTS = (0.25, 0.5, 0.75)
"""Of all times of events, the quantiles at which it is told who is without the event still."""


def blocks(study: Study, judged: Judged, *, target: str, model: str) -> list[Block]:
    """model: the approach, for people."""
    targets, persons, rows = judged.targets, np.array(study.persons, dtype=object), list[list[Cell]]()
    moments = np.unique(np.quantile(targets[targets[:, 1] == 1, 0], MOMENTS, method="lower")).tolist()
    thirds = _thirds(judged.said[:, 0], study.folds)
    for third in np.unique(thirds):
        own = thirds == third
        whose = persons[own].tolist()
        free = [event_free_interval(targets[own], subjects=whose, at=moment) for moment in moments]
        counts = int(own.sum()), len(set(whose)), int(targets[own, 1].sum())
        rows.append([THIRDS[third], *counts, *(interval_text(*each) for each in free)])
    return [
        Table(
            title="From low risk to high",
            columns=["risk", "sessions", "subjects", "events", *(f"event-free by {moment:g}" for moment in moments)],
            rows=rows,
            note=f"Thirds of the risk that the {model}'s heads said, each session within the fold that tested it. "
            f"Event-free: the share to which the event had not come by then ({target}; Kaplan and Meier), with its "
            "95 % interval over subjects, on the scale of log(-log); where nobody had the event by then, or everybody, "
            "its one end is exact (Clopper and Pearson). The times are quartiles of those at which it came. The lower "
            "the shares of high risk beside those of low risk, the more is told.",
        )
    ]


def _thirds(hazards: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """int64 (n,), 0 to 2: where each hazard stands among those of its fold."""
    places = np.empty(len(hazards))
    for fold in np.unique(folds):
        own = folds == fold
        places[own] = (rankdata(hazards[own]) - 0.5) / own.sum()
    return np.searchsorted([1 / 3, 2 / 3], places).astype(np.int64)

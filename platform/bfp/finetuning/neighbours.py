"""What the same vectors tell without anything learned: the nearest training sessions vote (k-NN).

Vectors are standardised by the training sessions, as for a head; the nearest vote as in DINO's evaluation
(`bfp.metrics.class_probe`), for their class or for their number. Nothing is chosen, so that there is no inner
cross-validation. Where a head is no better, it is the vectors that tell, or the neighbours are of the same scanner.
"""

from __future__ import annotations

import numpy as np

from bfp.finetuning.crossvalidation import Judged, Study
from bfp.metrics.class_probe import nearest_mean
from bfp.models.linear import standardised


def judge_by_neighbours(study: Study, vectors: np.ndarray, *, class_count: int) -> Judged:
    """vectors: float (n, F), NaN for what a session lacks; class_count: 0 where a number is learned."""
    values = np.eye(class_count)[study.targets] if class_count else study.targets[:, None]
    said = np.empty(values.shape)
    for fold in range(study.fold_count):
        tested, learned = study.folds == fold, study.learned_from(fold)
        own = standardised(vectors, learned)
        said[tested] = nearest_mean(own[learned], values[learned], own[tested])
    return Judged(study.targets, said, [])

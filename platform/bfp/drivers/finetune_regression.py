"""What a regression's report has of its own: what was said against what is so, and the error from low to high numbers.

A head that says everybody the mean has a bias that falls from the low numbers to the high: the table by parts of the
number shows it, and the slope beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bfp.finetuning.crossvalidation import Judged, Study
from bfp.finetuning.splits import bands_of
from bfp.metrics.over_folds import over_folds
from bfp.metrics.regression import absolute_error, bias
from bfp.reports.blocks import Block, Cell, Scatter, Table
from bfp.reports.numbers import interval_text

LIMITS = (
    "A number that is predicted lies nearer to the training mean than the true one (regression to the mean): the "
    "difference between them is no measure of a person before that is taken away."
)


def blocks(
    study: Study, judged: Mapping[str, Judged], *, target: str, model: str, names: Mapping[str, str]
) -> list[Block]:
    """names: of each approach, for people."""
    own = judged[model]
    return [
        Scatter(
            title=f"{target}: predicted and true",
            true=own.targets.tolist(),
            said=own.said[:, 0].tolist(),
            x_label=f"{target}, true",
            y_label=f"{target}, predicted by the {names[model]}",
            note="A point a session, predicted by the head that did not see its subject. On the dashed line both are "
            f"equal. {_slope(own)}",
        ),
        _by_part(study, own, target=target, model=names[model]),
    ]


def _slope(judged: Judged) -> str:
    said, true = judged.said[:, 0], judged.targets
    if np.ptp(true) == 0:
        return ""
    slope = float(np.polyfit(true, said, 1)[0])
    low, high = said.min(), said.max()
    return f"Predictions go from {low:.4g} to {high:.4g} and rise by {slope:.2f} for each 1 that is so."


def _by_part(study: Study, judged: Judged, *, target: str, model: str) -> Table:
    parts, rows = bands_of(judged.targets), list[list[Cell]]()
    persons = np.array(study.persons, dtype=object)
    for part in range(int(parts.max()) + 1):
        own = parts == part
        true, said, whose = judged.targets[own], judged.said[own], persons[own].tolist()
        once = {"folds": np.zeros(len(true), dtype=np.int64), "subjects": whose, "seed": study.seed}
        error, off = (over_folds(figure, true, said, **once).mean for figure in (absolute_error, bias))
        span = f"{true.min():g} to {true.max():g}"
        rows.append([span, len(true), len(set(whose)), interval_text(*error), interval_text(*off)])
    return Table(
        title="Low and high",
        columns=[target, "sessions", "subjects", "mean absolute error", "bias"],
        rows=rows,
        note=f"Of the {model}, with 95 % intervals over subjects. Bias: predicted less true.",
    )


def further_note(target: str) -> str:
    return (
        f"With 95 % intervals over subjects, of all sessions at once, each judged by the head that did not see its "
        f"subject. Bias: predicted less true {target}. R²: 0 is as good as the mean of these sessions."
    )

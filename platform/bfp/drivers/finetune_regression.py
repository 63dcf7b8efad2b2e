"""What a regression's report has of its own: what was said against what is so, and the error from low to high numbers.

A head that says everybody the mean has a bias that falls from the low numbers to the high: the table by parts of the
number shows it, and the slope beside it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from bfp.finetuning.crossvalidation import Judged, Study
from bfp.finetuning.splits import bands_of
from bfp.metrics.conformal import COVERAGE, half_width
from bfp.metrics.over_folds import over_folds
from bfp.metrics.regression import absolute_error, bias
from bfp.reports.blocks import Block, Cell, Scatter, Table
from bfp.reports.numbers import interval_text, number_text

LIMITS = (
    "A number that is predicted lies nearer to the training mean than the true one (regression to the mean): the "
    "difference between them is no measure of a person before that is taken away. The interval around a prediction is "
    "as wide for everybody, and was measured on held-out sessions of the same study: among people or scans that are "
    "others it holds fewer. What is predicted outside the numbers of the training is an extrapolation, with a "
    "warning."
)
DRAWN = 0.9  # of a slope: below it the page says that predictions are drawn to the mean


def numbers(study: Study, judged: Judged) -> dict[str, Cell]:
    """For machines: how much predictions rise for each 1 that is so, and half the width of an interval around one that
    holds 90 % of subjects; None where undefined."""
    errors = np.abs(judged.said[:, 0] - judged.targets)
    return {"slope": _slope(judged), "interval_half_width": half_width(errors, subjects=study.persons)}


def interval(figures: Mapping[str, Cell]) -> str:
    """For the card and the page. figures: with those of `numbers`."""
    width = figures["interval_half_width"]
    if not isinstance(width, float):
        return f"There is no interval around a prediction: {100 * COVERAGE:.0f} % needs 9 subjects or more."
    return (
        f"An interval of {number_text(width)} to both sides of a prediction held the true number of at "
        f"least {100 * COVERAGE:.0f} % of the held-out subjects, each weighing 1, and would of about as many new ones "
        "like them (conformal prediction)."
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
            f"equal. {_drawn(own)} {interval(numbers(study, own))}",
        ),
        _by_part(study, own, target=target, model=names[model]),
    ]


def _slope(judged: Judged) -> float | None:
    """Of what is said, by what is so."""
    return float(np.polyfit(judged.targets, judged.said[:, 0], 1)[0]) if np.ptp(judged.targets) else None


def _drawn(judged: Judged) -> str:
    """How far predictions are drawn to the mean."""
    slope, said = _slope(judged), judged.said[:, 0]
    if slope is None:
        return ""
    told = f"Predictions go from {said.min():.4g} to {said.max():.4g} and rise by {slope:.2f} for each 1 that is so"
    if slope >= DRAWN:
        return f"{told}."
    return f"{told}: they are drawn to the mean, so low numbers come out too high and high ones too low."


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

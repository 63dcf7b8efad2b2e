"""The rows of a benchmark: of each approach, task, share of labels, modalities and cohort, how good it is.

Several seeds deal the same subjects into other folds. A figure is the mean over the folds of all seeds, and its
interval that of this mean, a drawn subject being drawn in all of them; the corrected t test is over all folds. Outside
cohorts are judged by the head of every fold, and compared by intervals alone: heads that were made from mostly the same
subjects and judged on the same others are no repetitions.

What approaches are compared by is the first figure of their task; the further ones (`bfp.metrics.measures`) stand in
the table for machines, in rows of their own.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from bfp.drivers.finetune_figures import better_than
from bfp.metrics.bootstrap import Interval, standard_error
from bfp.metrics.measures import MEASURES, Measure, of_each_class
from bfp.metrics.over_folds import OverFolds, over_folds
from bfp.metrics.paired import corrected_t, holm, plain_t
from bfp.reports.numbers import interval_text

WITHIN = ""
"""The cohort of what is cross-validated."""


class Where(NamedTuple):
    """What a row is of. cohort: WITHIN, or an outside one; learned_with, tested_with: sets of modalities, by name."""

    task: str
    cohort: str
    learned_with: str
    tested_with: str
    fraction: float
    approach: str


class Said(NamedTuple):
    """What an approach said, over the folds of all seeds one after the other.

    targets: (t, …); said: (t, K); folds: int64 (t,), numbered on over the seeds; rounds: int64 (t,), all folds of a
    seed, which figures that are none of single folds are judged in; subjects: whose each of the t is.
    """

    targets: np.ndarray
    said: np.ndarray
    folds: np.ndarray
    rounds: np.ndarray
    subjects: list[str]


class Judged(NamedTuple):
    """figure: the first one of the approach; further: the others of its task, by name; rounds: how often each session
    was judged, by the heads of as many seeds, or folds. better: by how much ours is
    better than it, and p values of that, None for ours, for what it is not compared with, and (p) on outside
    cohorts."""

    figure: OverFolds
    further: dict[str, OverFolds]
    rounds: int
    better: OverFolds | None
    p_corrected_t: float | None
    p_plain_t: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """kind: of the task. sessions, subjects: that were tested; learned_from: subjects, the mean over folds.

    p_holm: the p of the corrected t, adjusted over all rows of the task.
    """

    where: Where
    kind: str
    sessions: int
    subjects: int
    learned_from: float
    judged: Judged
    p_holm: float | None = None


def judge(kind: str, classes: Sequence[str], own: Said, ours: Said | None, beside: float | None, seed: int) -> Judged:
    """kind: of the task; classes: of a segmentation, else none. ours: what ours said of the same; beside: as of
    `corrected_t`, None for no test."""
    measures = MEASURES[kind]

    def of(measure: Measure) -> OverFolds:
        parts = own.folds if measure.by_fold else own.rounds
        return over_folds(measure.figure, own.targets, own.said, folds=parts, subjects=own.subjects, seed=seed)

    figure = of(measures.first)
    further = {each.name: of(each) for each in (*measures.further, *of_each_class(classes))}
    rounds = len(np.unique(own.rounds))
    if ours is None:
        return Judged(figure, further, rounds, None, None, None)
    better = better_than(measures, own.targets, ours.said, own.said, folds=own.folds, subjects=own.subjects, seed=seed)
    if beside is None:
        return Judged(figure, further, rounds, better, None, None)
    corrected = corrected_t(better.folds, beside=beside, least_error=standard_error(better.mean))
    return Judged(figure, further, rounds, better, corrected.p, plain_t(better.folds).p)


def dump_judged(judged: Judged) -> bytes:
    return json.dumps(
        {
            "figure": _plain(judged.figure),
            "further": {name: _plain(each) for name, each in judged.further.items()},
            "rounds": judged.rounds,
            "better": judged.better and _plain(judged.better),
            "p": [judged.p_corrected_t, judged.p_plain_t],
        }
    ).encode()


def load_judged(data: bytes) -> Judged:
    told = json.loads(data)
    further = {name: _figure(each) for name, each in told["further"].items()}
    return Judged(
        _figure(told["figure"]), further, told["rounds"], told["better"] and _figure(told["better"]), *told["p"]
    )


def _plain(figure: OverFolds) -> list[Any]:
    return [list(figure.mean), figure.folds, figure.defined]


def _figure(plain: Sequence[Any]) -> OverFolds:
    mean, folds, defined = plain
    return OverFolds(Interval(*mean), folds, defined)


def adjusted(rows: Sequence[Row]) -> list[Row]:
    """With p values adjusted by Holm, over the rows of each task."""
    done = list(rows)
    for task in dict.fromkeys(row.where.task for row in rows):
        own = [number for number, row in enumerate(rows) if row.where.task == task]
        for number, p in zip(own, holm([rows[number].judged.p_corrected_t for number in own]), strict=True):
            done[number] = replace(rows[number], p_holm=p)
    return done


# as files -------------------------------------------------------------------------------------------------------------

COLUMNS = [
    "task",
    "cohort",
    "learned_with",
    "tested_with",
    "label_fraction",
    "approach",
    "measure",
    "value",
    "low",
    "high",
    "ours_better_by",
    "ours_better_low",
    "ours_better_high",
    "p_corrected_t",
    "p_holm",
    "p_plain_t",
    "tested_sessions",
    "tested_subjects",
    "defined_sessions",
    "learned_subjects",
    "folds",
]


def results_csv(rows: Sequence[Row]) -> bytes:
    """Every row, every digit, behind each the further figures of the same approach, which nothing is compared by.

    `folds`: values in each fold of each seed (of a figure that is none of single folds: of each seed), parted by
    semicolons, undefined ones empty. `defined_sessions`: in how many of the tested ones there is such a figure, the
    mean over seeds, of an outside cohort over heads.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        for name, figure in ((MEASURES[row.kind].first.name, row.judged.figure), *row.judged.further.items()):
            writer.writerow(["" if cell is None else cell for cell in _cells(row, name, figure)])
    return text.getvalue().encode()


def _cells(row: Row, name: str, figure: OverFolds) -> list[Any]:
    where, found, is_first = row.where, row.judged, figure is row.judged.figure
    better = found.better.mean if found.better is not None and is_first else Interval(None, None, None)
    folds = ";".join("" if value is None else repr(value) for value in figure.folds)
    return [
        where.task,
        where.cohort or "cross-validation",
        where.learned_with,
        where.tested_with,
        where.fraction,
        where.approach,
        name,
        *figure.mean,
        *better,
        *((found.p_corrected_t, row.p_holm, found.p_plain_t) if is_first else (None, None, None)),
        row.sessions,
        row.subjects,
        round(figure.defined / row.judged.rounds, 2),
        round(row.learned_from, 2),
        folds,
    ]


def results_markdown(rows: Sequence[Row], *, ours: str) -> bytes:
    """The same for people, a table for each task; p is that of the corrected t, adjusted by Holm."""
    parts = []
    for task in dict.fromkeys(row.where.task for row in rows):
        own = [row for row in rows if row.where.task == task]
        label = MEASURES[own[0].kind].first.label
        parts += [f"## {task}", "", f"| tested on | learned with | tested with | labels | approach | {label} | "]
        parts[-1] += f"defined in | {ours} is better by | p |"
        parts.append("| --- | --- | --- | ---: | --- | --- | ---: | --- | ---: |")
        parts += [f"| {' | '.join(_words(row))} |" for row in own]
        parts.append("")
    return "\n".join(parts).encode()


def _words(row: Row) -> list[str]:
    where, found = row.where, row.judged
    better = "" if found.better is None else interval_text(*found.better.mean)
    p = "" if row.p_holm is None else "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
    cohort = where.cohort or "cross-validation"
    shares = f"{where.fraction:.0%} ({row.learned_from:.0f})"
    figure = interval_text(*found.figure.mean)
    there = f"{found.figure.defined / found.rounds:.4g} of {row.sessions}"
    return [cohort, where.learned_with, where.tested_with, shares, where.approach, figure, there, better, p]

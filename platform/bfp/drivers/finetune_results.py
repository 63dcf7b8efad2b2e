"""What a fine-tuning came to: its figures (`finetune_figures`), as blocks of the report and as the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from bfp import __version__
from bfp.drivers import finetune_classification, finetune_regression, finetune_survival
from bfp.drivers.finetune_figures import Figures, figures_of, numbers_of
from bfp.finetuning.crossvalidation import Judged, Study
from bfp.finetuning.groups import groups_of
from bfp.finetuning.labels import Labelled
from bfp.metrics.bootstrap import REPLICATES
from bfp.metrics.measures import MEASURES, Measures
from bfp.metrics.over_folds import OverFolds, over_folds
from bfp.reports.blocks import Block, Cell, Facts, IntervalRow, Intervals, Results, Table, Text
from bfp.reports.numbers import interval_text
from bfp.words import counted

RESEARCH = "For research; not a medical device: nothing here was tested for use on patients."
METHODS = "Methods"
HEADS = {
    "classification": "logistic regression",
    "regression": "linear regression (ridge)",
    "survival": "proportional hazards model (Cox)",
}
"""By the type of the task: what is fitted."""


class Trained(NamedTuple):
    """What is said of training that followed the frozen model: a paragraph for the methods, and how the folds went."""

    methods: str
    epochs: Table


@dataclass(frozen=True, slots=True)
class Said:
    """What the report must know of the study, in words.

    kind: of the task. target: what is learned. classes: of a classification, else none.
    model: the approach that is the model; no_rivals: those that it is not to be better than (the oracle, permuted
    labels). names: of each approach, for people. counts: what there is of what (of each class). groups: text of each
    session by column, for figures by group. facts: of store, encoder and settings. methods: how sessions became vectors
    and heads. dealt: how subjects came into folds, as the end of a clause. trained: None where heads alone are fitted.
    """

    kind: str
    target: str
    classes: list[str]
    model: str
    no_rivals: tuple[str, ...]
    names: dict[str, str]
    counts: dict[str, str]
    groups: dict[str, list[str]]
    facts: list[tuple[str, Cell]]
    methods: str
    dealt: str
    trained: Trained | None = None


def results_of(
    study: Study, judged: dict[str, Judged], labelled: Labelled, said: Said, *, cases: Sequence[Block]
) -> Results:
    """cases: what is shown of single sessions."""
    measures = MEASURES[said.kind]
    figures = figures_of(
        study, judged, measures=measures, class_names=said.classes, model=said.model, no_rivals=said.no_rivals
    )
    left_out = sum(labelled.left_out.values())
    numbers: dict[str, Cell] = {
        "sessions": len(study.persons),
        "subjects": len(set(study.persons)),
        "left_out": left_out,
        "folds": study.fold_count,
    }
    numbers |= numbers_of(figures, measures=measures, model=said.model)
    if said.kind == "regression":
        numbers |= finetune_regression.numbers(study, judged[said.model])
    label = "class " if said.classes else ""
    blocks: list[Block] = [_first(figures, measures, said)]
    if figures.better:
        blocks += [_differences(figures, measures, said), _paired_tests(figures, said)]
    blocks += [
        *([_further(figures, measures, said)] if measures.further else []),
        *_own_blocks(study, judged, figures, said),
        *cases,
        *([_by_group(study, judged, measures, said)] if said.groups else []),
        _folds(study, judged, figures, measures, said),
        *([_further_in_folds(study, figures, measures, said)] if measures.further else []),
        *([said.trained.epochs] if said.trained else []),
        Facts(
            title="What was learned from what",
            rows=[
                ("target", said.target),
                *((f"{label}{name}", text) for name, text in said.counts.items()),
                ("left out", counted(left_out, "session")),
                *said.facts,
            ],
        ),
    ]
    if left_out:
        rows: list[list[Cell]] = [[reason, count] for reason, count in labelled.left_out.items()]
        blocks.append(Table(title="Sessions left out", columns=["reason", "sessions"], rows=rows))
    blocks += [_methods(study, measures, said), Text("Limits", [_limits(said)])]
    return Results(figures=numbers, blocks=blocks)


def model_card(name: str, results: Results, said: Said) -> str:
    """The card in Markdown: what it is, how good, made how."""
    first = MEASURES[said.kind].first
    value, low, high = (results.figures[key] for key in (first.name, f"{first.name}_low", f"{first.name}_high"))
    assert not isinstance(value, str)
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    methods = next(block for block in results.blocks if isinstance(block, Text) and block.title == METHODS)
    paragraphs = [
        f"# {name}: {said.target} from brain MRI",
        *([f"Classes: {', '.join(said.classes)}."] if said.classes else []),
        f"Cross-validated {first.label} {interval_text(value, low, high)} (mean of folds, 95 % interval by subjects).",
        *([finetune_regression.interval(results.figures)] if said.kind == "regression" else []),
        _limits(said),
        *methods.paragraphs,
        "Predict with `bfp submit` and a spec of `kind: infer` whose `model` is this folder.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _own_blocks(study: Study, judged: dict[str, Judged], figures: Figures, said: Said) -> list[Block]:
    """What only this kind of task has."""
    if said.kind == "classification":
        return finetune_classification.blocks(
            study, judged, figures, classes=said.classes, model=said.model, names=said.names
        )
    if said.kind == "regression":
        return finetune_regression.blocks(study, judged, target=said.target, model=said.model, names=said.names)
    return finetune_survival.blocks(study, judged[said.model], target=said.target, model=said.names[said.model])


def _limits(said: Said) -> str:
    own = {
        "classification": finetune_classification.LIMITS,
        "regression": finetune_regression.LIMITS,
        "survival": finetune_survival.LIMITS,
    }
    return f"{RESEARCH} {own[said.kind]}"


def _first(figures: Figures, measures: Measures, said: Said) -> Intervals:
    label = measures.first.label
    return Intervals(
        title=f"{_capital(label)} of each approach",
        rows=[IntervalRow(said.names[name], *each.mean, each.folds) for name, each in figures.first.items()],
        axis_label=f"{label}, mean of folds{_in_unit(said)}",
        reference=measures.chance,
        note="Intervals are 95 %, by bootstrap over subjects (BCa) of the mean of the folds. All "
        "approaches were judged on the same sessions and folds."
        + below_chance({said.names[name]: each for name, each in figures.first.items()}, measures),
    )


def below_chance(figures: Mapping[str, OverFolds], measures: Measures) -> str:
    """What to think of approaches, by name, that lie below chance with all of their interval; "" where none does."""
    below = [
        name
        for name, each in figures.items()
        if measures.chance is not None and each.mean.high is not None and each.mean.high < measures.chance
    ]
    if not below:
        return ""
    return (
        f" Below {measures.chance:g}: {', '.join(below)}. Where nothing is told and classes are dealt evenly over the "
        "folds, those whom a fold tests are rarer among those whom its head learns from, and it says the opposite of "
        "what is so. Read it as nothing told; differences from it are too large by as much."
    )


def _in_unit(said: Said) -> str:
    """Of an error of numbers; what other tasks are judged by has none."""
    return f", in the unit of {said.target}" if said.kind == "regression" else ""


def _differences(figures: Figures, measures: Measures, said: Said) -> Intervals:
    label, better = measures.first.label, "higher" if measures.sign > 0 else "lower"
    unit = _in_unit(said) or f" of {label}"
    return Intervals(
        title=f"How much {better} the {label} of the {said.names[said.model]} is",
        rows=[IntervalRow(f"than {said.names[name]}", *each.mean, each.folds) for name, each in figures.better.items()],
        axis_label=f"difference{unit}; above 0: better",
        reference=0.0,
        note="Paired: both approaches on the same draws of subjects.",
    )


def _paired_tests(figures: Figures, said: Said) -> Table:
    two = len(said.classes) == 2
    rows: list[list[Cell]] = []
    for name, each in figures.tests.items():
        adjusted = figures.adjusted[name]
        p = [adjusted.corrected_t, *([adjusted.delong] if two else []), each.plain_t.p]
        rows.append([said.names[name], *map(p_text, p)])
    of_heads = (
        "DeLong's test, which allows for several sessions of a subject, is of these heads alone: from other subjects "
        "others would have come, of which it knows nothing. "
    )
    return Table(
        title="Is the difference more than chance?",
        columns=["better than", "corrected t", *(["DeLong"] if two else []), "plain t"],
        rows=rows,
        note="Two-sided p values of the differences above. The corrected t test (Nadeau and Bengio) is over folds and "
        f"allows for what their training sets share. {of_heads if two else ''}"
        f"{'Both are' if two else 'It is'} adjusted (Holm) for the rows of this table. The plain t test is what papers "
        "print; it finds differences where there are none.",
    )


def p_text(p: float | None) -> Cell:
    """A p value for people."""
    return p if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _further(figures: Figures, measures: Measures, said: Said) -> Table:
    note = (
        finetune_classification.further_note(said.classes)
        if said.classes
        else finetune_regression.further_note(said.target)
    )
    return Table(
        title="Further figures",
        columns=["approach", *(measure.label for measure in measures.further)],
        rows=[
            [
                said.names[name],
                *(interval_text(*figures.further[measure.name][name].mean) for measure in measures.further),
            ]
            for name in figures.first
        ],
        note=note,
    )


def _by_group(study: Study, judged: dict[str, Judged], measures: Measures, said: Said) -> Table:
    own, persons, rows = judged[said.model].said, np.array(study.persons, dtype=object), list[list[Cell]]()
    first = measures.first
    for column, values in said.groups.items():
        for name, members in groups_of(values):
            targets, folds, whose = study.targets[members], study.folds[members], persons[members].tolist()
            found = over_folds(first.figure, targets, own[members], folds=folds, subjects=whose, seed=study.seed).mean
            counts = [int((targets == k).sum()) for k in range(len(said.classes))] or [len(targets)]
            counts += [int(targets[:, 1].sum())] if said.kind == "survival" else []
            rows.append([column, name, *counts, len(set(whose)), interval_text(*found)])
    columns = said.classes or ["sessions", *(["events"] if said.kind == "survival" else [])]
    what = "Sessions of each class, and " if said.classes else ""
    where = " in which it has sessions of each class" if said.classes else ""
    return Table(
        title="In whom it is right",
        columns=["by", "group", *columns, "subjects", first.label],
        rows=rows,
        note=_capital(
            f"{what}{first.label} of the {said.names[said.model]} within the group, by the same heads: the mean of the "
            f"folds{where}, with its 95 % interval. Groups are small and many: one that stands out may do so by chance."
        ),
    )


def _folds(study: Study, judged: dict[str, Judged], figures: Figures, measures: Measures, said: Said) -> Table:
    folds = [f"fold {number + 1}" for number in range(study.fold_count)]
    return Table(
        title="Folds",
        columns=["approach", *folds, "mean", "low", "high", "C of each fold"],
        rows=[
            [said.names[name], *each.folds, *each.mean, ", ".join(f"{fold.strength:g}" for fold in judged[name].folds)]
            for name, each in figures.first.items()
        ],
        note=f"{_capital(measures.first.label)}; low and high are the ends of the 95 % interval; C is the inverse "
        "strength of regularisation.",
    )


def _further_in_folds(study: Study, figures: Figures, measures: Measures, said: Said) -> Table:
    return Table(
        title=f"Further figures of the {said.names[said.model]} in each fold",
        columns=["figure", *(f"fold {number + 1}" for number in range(study.fold_count))],
        rows=[[measure.label, *figures.in_folds[measure.name]] for measure in measures.further],
    )


def _methods(study: Study, measures: Measures, said: Said) -> Text:
    counts = "; ".join(f"{name}: {text}" if name else text for name, text in said.counts.items())
    verb = "classified by" if said.classes else "judged for"
    label = measures.first.label
    strengths = ", ".join(f"{value:g}" for value in study.strengths)
    learned = (
        f"Sessions were {verb} {said.target} ({counts}). {said.methods} A standardised, L2-regularised "
        f"{HEADS[said.kind]} was fitted; its inverse strength (C of {strengths}) was chosen by {label} in a "
        "cross-validation inside each fold's training subjects."
    )
    tested = (
        f"differences of {label} were tested over folds by the corrected resampled t test (Nadeau and Bengio, 2003), "
        "its standard error being at least the bootstrap's"
    )
    if len(said.classes) == 2:
        tested += (
            ", and of the trained heads by DeLong's test for clustered data within folds (DeLong et al., 1988; "
            "Obuchowski, 1997)"
        )
    tested += "; p values were adjusted by Holm's procedure, and "
    several = " (one-vs-rest, macro-averaged)" if len(said.classes) > 2 else ""
    named = "area under the ROC curve" if said.classes else label
    judged = (
        f"Performance was estimated by {study.fold_count}-fold cross-validation, grouped by subject{said.dealt}. "
        f"The {named}{several} is the mean over folds; 95 % intervals are from "
        f"{REPLICATES:,} bootstrap replicates over subjects (bias-corrected and accelerated). Baselines were judged on "
        f"the same folds, by the same procedure; {tested}are two-sided. Software: bfp {__version__}."
    )
    return Text(title=METHODS, paragraphs=[learned, *([said.trained.methods] if said.trained else []), judged])


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

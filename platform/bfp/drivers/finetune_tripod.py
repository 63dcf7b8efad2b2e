"""What a report of a prediction model must say, item by item, as far as the run knows it; and who took part.

The items are those of TRIPOD+AI (Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378), by number and in their order,
in our words. A row says what this run has done or seen, and nothing that it cannot know: where that is so, it says that
the authors must write it. One table for every task of `finetune`; `known_of` gathers what labels are learned from, a
segmentation gathers its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bfp import __version__
from bfp.cohorts.sessions import Key
from bfp.drivers.finetune_material import COHORT, SITE, Material, classes_of, keys_of, target_of
from bfp.drivers.finetune_results import HEADS, METHODS, Said
from bfp.drivers.stores import imaging_of
from bfp.finetuning.covariates import as_number
from bfp.metrics.measures import MEASURES
from bfp.reports.blocks import Block, Cell, Results, Table
from bfp.reports.numbers import interval_text, number_text
from bfp.specs.finetune import Finetune, Regression, SegmentationTask, Survival
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.store.reader import SliceStore

AUTHORS = "for the authors"
DIFFERING = (
    "Folds",
    "In whom it is right",
    "Low and high",
    "From low risk to high",
    "Dice and HD95",
    "Sessions, worst first",
)
"""Tables that show in which folds, groups, classes and sessions a model is better or worse."""

AGE, SEX = "age", "sex"
UNKNOWN, NONE = "not known", "none"
FEW_GROUPS = 30  # of a column, in the table of participants


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What a run knows of its study.

    sessions: that were used; labels, kinds (the class of each, or whether the event was seen; none of numbers and
    masks) and folds (from 0) are of each; classes: those of `kinds`, in order; kind: what they are called; numbers:
    columns of labels whose means are given. left_out: why others were not used, and how many. index: their stacks.
    outcome: what is learned, and from where. model: what was fitted, and how it was chosen. dealt: how folds were made.
    evaluated: how the tested differ from those learned from. groups: columns by which figures are given. measures: by
    the results' names, for people. output: what the model says. recalibrated: what of it, by what.
    """

    spec: Finetune
    store: SliceStore
    index: pa.Table
    shown: tuple[str, ...]
    sessions: Sequence[Key]
    labels: Sequence[Mapping[str, str]]
    kinds: Sequence[str]
    classes: Sequence[str]
    folds: np.ndarray
    left_out: Mapping[str, int]
    outcome: str
    model: str
    dealt: str
    evaluated: str
    groups: Sequence[str]
    measures: Mapping[str, str]
    output: str
    recalibrated: str = NONE
    kind: str = "class"
    numbers: Sequence[str] = (AGE,)

    @property
    def persons(self) -> list[str]:
        return [f"{key.cohort}/{key.subject}" for key in self.sessions]


def known_of(spec: Finetune, material: Material, said: Said, *, met: str) -> Known:
    """Of a task whose heads are learned from labels. met: whom of them the encoder's pretraining had met."""
    measures, classes, task = MEASURES[said.kind], classes_of(material.task), material.task
    labelled, tuned = material.labelled, spec.tune != "frozen" or spec.pooling == "attention"
    kinds, of_each = classes, labelled.targets
    if isinstance(task, Survival):
        kinds, of_each = [task.event, "not seen"], np.where(labelled.targets[:, 1] == 1, 0, 1)
    strengths = ", ".join(f"{value:g}" for value in spec.regularisation)
    output = {
        "classification": "a probability for each class; recalibrated ones and, with two classes, a threshold of 90 % "
        "specificity stand in the model folder, fitted on the held-out sessions of this study",
        "regression": "a number, with an interval around it that is meant to hold 90 % of new subjects like these",
        "survival": "the logarithm of a relative hazard, no time; and its percentile among the held-out sessions",
    }
    return Known(
        spec=spec,
        store=material.store,
        index=material.index,
        shown=material.shown,
        sessions=labelled.sessions,
        labels=labelled.labels,
        kinds=[kinds[k] for k in of_each] if kinds else [],
        classes=kinds,
        folds=material.folds,
        left_out=labelled.left_out,
        outcome=target_of(material.task)
        + (f" ({', '.join(classes)})" if classes else "")
        + f", from {spec.labels or 'the labels that the cohorts carried into the store'}",
        model=f"L2-regularised {HEADS[said.kind]} on vectors of {spec.encoder}"
        f"{', then trained further (see Methods)' if tuned else ', taken as it is, frozen'}; inverse strength of "
        f"{strengths}, chosen inside each fold's training subjects",
        dealt=f"{spec.folds} folds, grouped by subject{said.dealt}",
        evaluated=evaluated(met),
        groups=list(material.groups),
        measures={measure.name: measure.label for measure in (measures.first, *measures.further)},
        output=output[said.kind],
        recalibrated="the model folder's probabilities, beside the head's own, on the held-out sessions"
        if classes
        else NONE,
        kind="event" if isinstance(task, Survival) else "class",
        numbers=list(dict.fromkeys([AGE, task.target])) if isinstance(task, Regression) else [AGE],
    )


def evaluated(met: str) -> str:
    """How those who were tested differ. met: whom of them the encoder's pretraining had met."""
    return f"the same cohorts, other subjects. Whom of them the encoder's pretraining had met, without labels: {met}"


def reported(results: Results, known: Known) -> Results:
    """The results with both tables, before the methods."""
    at = next(number for number, block in enumerate(results.blocks) if getattr(block, "title", None) == METHODS)
    tables: list[Block] = [participants(known), _items(known, results)]
    return Results(results.figures, [*results.blocks[:at], *tables, *results.blocks[at:]])


def participants(known: Known) -> Table:
    """How many there are of whom: all, by kind, by what cohorts carry, and in each fold."""
    columns = {
        known.kind: list(known.kinds),
        COHORT: [key.cohort for key in known.sessions],
        SITE: [labels.get(SITE, "") or UNKNOWN for labels in known.labels],
    }
    groups = [("", "all", np.ones(len(known.sessions), dtype=bool))]
    for name, values in columns.items():
        different = known.classes if name == known.kind else sorted(set(values))
        if 1 < len(different) <= FEW_GROUPS:
            groups += [(name, value, np.array([each == value for each in values])) for value in different]
    groups += [("tested in fold", f"{fold + 1}", known.folds == fold) for fold in range(int(known.folds.max()) + 1)]
    rows: list[list[Cell]] = []
    for name, value, own in groups:
        members = np.flatnonzero(own).tolist()
        of_kinds = Counter(known.kinds[n] for n in members) if known.kinds else Counter[str]()
        whose = {known.persons[n]: known.labels[n] for n in reversed(members)}
        means = [_mean([known.labels[n].get(number, "") for n in members]) for number in known.numbers]
        sexes = _sexes([labels.get(SEX, "") for labels in whose.values()])
        rows.append([name, value, len(members), len(whose), *(of_kinds[kind] for kind in known.classes), *means, sexes])
    means_of = (f"{number}, mean (sd)" for number in known.numbers)
    return Table(
        title="Participants",
        columns=["by", "group", "sessions", "subjects", *known.classes, *means_of, "sex"],
        rows=rows,
        note="Sex is of subjects, means and what was learned are of sessions. The others of the folds were learned "
        "from.",
    )


def _mean(values: Sequence[str]) -> str:
    numbers = [number for value in values if (number := as_number(value)) is not None]
    if not numbers:
        return UNKNOWN
    missing = len(values) - len(numbers)
    deviation = f" ({number_text(float(np.std(numbers, ddof=1)))})" if len(numbers) > 1 else ""
    return f"{number_text(float(np.mean(numbers)))}{deviation}" + (f", {missing} {UNKNOWN}" if missing else "")


def _sexes(values: Sequence[str]) -> str:
    counts = Counter(value or UNKNOWN for value in values)
    if set(counts) == {UNKNOWN}:
        return UNKNOWN
    return ", ".join(f"{count} {value}" for value, count in sorted(counts.items(), key=lambda one: one[0]))


def lacking(index: pa.Table, sessions: Sequence[Key], shown: Sequence[str]) -> dict[str, int]:
    """By modality that is shown, how many of the sessions have no stack of it."""
    having: dict[str, set[Key]] = {name: set() for name in shown}
    columns = (index[name].to_pylist() for name in ("modalities", "present"))
    for key, modalities, present in zip(keys_of(index), *columns, strict=True):
        for name, there in zip(modalities, present, strict=True):
            if there and name in having:
                having[name].add(key)
    return {name: len(set(sessions) - own) for name, own in having.items()}


# the items ------------------------------------------------------------------------------------------------------------


def _items(known: Known, results: Results) -> Table:
    titles = [block.title for block in results.blocks]
    differing = [title for title in DIFFERING if title in titles]
    rows: list[list[Cell]] = [
        ["1–4", "title, abstract, background, objectives", AUTHORS],
        ["5a", "sources of data", _sources(known)],
        ["5b", "dates of data", f"not in the store: {AUTHORS}"],
        ["6a, 6c", "setting and centres, treatments", AUTHORS],
        ["6b", "eligibility", f"{_eligible(known)}. What made a scan part of the cohorts: {AUTHORS}"],
        ["7", "preparation of data", _prepared(known)],
        ["8a", "outcome", f"{known.outcome}. How it was found, and when: {AUTHORS}"],
        ["8b, 8c", "who assessed the outcome, blinded to what", AUTHORS],
        ["9", "predictors", _predictors(known)],
        ["10", "sample size", f"{_size(known)}, all that were eligible. Whether a size was calculated: {AUTHORS}"],
        ["11", "missing data", _missing(known)],
        ["12a", "use of the data", known.dealt],
        ["12b, 12c", "building of the model", known.model],
        ["12d", "differences between centres", f"{_by(known.groups)}; heads know nothing of centres"],
        ["12e", "measures of performance", ", ".join(known.measures.values())],
        ["12f", "updating of the model", known.recalibrated],
        ["13", "imbalance of classes", _imbalance(known)],
        ["14", "fairness", f"{_by(known.groups)}; nothing was done to make groups alike"],
        ["15", "output of the model", known.output],
        ["16", "training versus evaluation", known.evaluated],
        ["17–18d, 19", "ethics, funding, conflicts, protocol, registration, involvement", AUTHORS],
        ["18e", "sharing of data", f"split and predictions stand in the run folder; the scans: {AUTHORS}"],
        ["18f", "sharing of code", f"bfp {__version__}, with spec.yaml of the run folder: it runs this again"],
        ["20a", "flow of participants", _flow(known)],
        ["20b, 20c, 21", "who took part, and where", "the table Participants"],
        [
            "22",
            "the model itself",
            "folder model/ of the run: weights, heads, preprocessing, card; `kind: infer` uses it",
        ],
        ["23a", "performance", _performance(known, results)],
        ["23b", "differences of performance", f"the tables {'; '.join(differing)}"],
        ["24", "results of updating", "not judged: what is recalibrated was fitted on these same sessions"]
        if known.recalibrated != NONE
        else ["24", "results of updating", NONE],
        ["25, 26", "interpretation, limitations", f"Limits, below; the rest: {AUTHORS}"],
        ["27a", "poor or missing input", _poor_input(known)],
        ["27b, 27c", "users, and what comes next", AUTHORS],
    ]
    own = sum(row[2] == AUTHORS for row in rows)
    return Table(
        title="What TRIPOD+AI asks for",
        columns=["item", "about", "this run"],
        rows=rows,
        note="Items of TRIPOD+AI (Collins et al., BMJ 2024, doi 10.1136/bmj-2023-078378), in our words: what the run "
        f"itself knows, made ready to check and to paste. {counted(own, 'row')} of {len(rows)} it cannot know at all. "
        "It was developed and evaluated inside (cross-validated), not on data from elsewhere.",
    )


def _sources(known: Known) -> str:
    counts = Counter(key.cohort for key in known.sessions)
    cohorts = ", ".join(f"{name} ({counted(count, 'session')})" for name, count in sorted(counts.items()))
    return (
        f"{cohorts}; slice store {known.store.place}, snapshot {known.store.snapshot}. What the cohorts are: {AUTHORS}"
    )


def _eligible(known: Known) -> str:
    where = {name: value for name, value in known.spec.where.model_dump().items() if value is not None}
    filters = "; ".join(
        f"{name}: {', '.join(value) if isinstance(value, list) else value}" for name, value in where.items()
    )
    return f"sessions of the store with a usable scan of {' or '.join(known.shown)} and an outcome" + (
        f"; where {filters}" if filters else ""
    )


def _prepared(known: Known) -> str:
    how = known.store.preprocessing
    low, high = how["window"]
    return (
        f"{known.store.slice_axis} slices of {how['size']} pixels of {how['spacing_mm']:g} mm; register: "
        f"{how['register']}; brain: {how['brain']}; bias field: {how.get('bias_field', 'none')}; grey values "
        f"({how.get('intensity', 'percentiles')}) between percentiles {low:g} and {high:g}; fingerprint "
        f"{known.store.fingerprint}, imaging version {imaging_of(known.store)}; alike for all"
    )


def _predictors(known: Known) -> str:
    form = "a stack shows the same slice of each" if known.store.form == "modalities" else "a stack shows one of them"
    return (
        f"{', '.join(known.shown)}: {known.index.num_rows:,} stacks, {form}; no other predictor. Why these: {AUTHORS}"
    )


def _size(known: Known) -> str:
    text = f"{counted(len(known.sessions), 'session')} of {counted(len(set(known.persons)), 'subject')}"
    kinds = Counter(known.kinds)
    if kinds:
        text += f" ({', '.join(f'{kinds[name]} {name}' for name in known.classes)})"
    tested = np.bincount(known.folds)
    return f"{text}; {tested.min()} to {tested.max()} tested in a fold"


def _missing(known: Known) -> str:
    counts = lacking(known.index, known.sessions, known.shown)
    without = [f"{count} without {name}" for name, count in counts.items() if count]
    how = "nothing of them was shown"
    if known.store.form == "modalities":
        how = "their channel was filled as the encoder has it"
    elif not isinstance(known.spec.task, SegmentationTask):
        how = "their part of a vector was taken as the training mean"
    shown = f"{', '.join(without)}: {how}" if without else "every session has every modality"
    left = ", ".join(f"{count} ({reason})" for reason, count in known.left_out.items())
    return f"{shown}. Left out: {left or 'no session'}"


def _imbalance(known: Known) -> str:
    if isinstance(known.spec.task, SegmentationTask):
        return "half of the slices of a step were drawn from those that hold a class, each class as often"
    if not known.kinds:
        return "no classes"
    kinds = Counter(known.kinds)
    counts = ", ".join(f"{kinds[name]} {name}" for name in known.classes)
    weighed = known.spec.training is not None and known.spec.training.class_balanced
    how = "those of rare classes weighed more in training" if weighed else "neither weighted nor resampled"
    return f"sessions: {counts}; {how}"


def _by(groups: Sequence[str]) -> str:
    return f"figures by {', '.join(groups)}" if groups else "no figure by group"


def _flow(known: Known) -> str:
    left, rejected = sum(known.left_out.values()), known.store.totals.rejected
    return (
        f"{counted(len(known.sessions) + left, 'session')} with stacks that were asked for, {left} left out, "
        f"{len(known.sessions)} used; {counted(rejected, 'scan')} of the store had been rejected at ingest"
    )


def _performance(known: Known, results: Results) -> str:
    told = []
    for name, label in known.measures.items():
        value, *ends = (results.figures.get(f"{name}{end}") for end in ("", "_low", "_high"))
        if isinstance(value, str) or any(isinstance(end, str) for end in ends):
            continue
        low, high = (None if isinstance(end, str) else end for end in ends)
        told.append(f"{label} {interval_text(value, low, high) if low is not None else number_text(value)}")
    return f"{'; '.join(told)} (95 % intervals over subjects)"


def _poor_input(known: Known) -> str:
    return "`kind: infer` rejects scans that cannot be used, with the reason; and says which modality a session lacks"

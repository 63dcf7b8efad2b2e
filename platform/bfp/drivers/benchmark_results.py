"""What a benchmark came to, as blocks of the report: the paper's figures, the table, the checks, the cost.

For machines: `<measure>` of ours with all labels and modalities, `<measure>_<approach>` of each other approach there,
and by how much ours is `above_<approach>` (`below_…` where less is better); with `_low` and `_high`, the ends of the
95 % interval. Of a second task they carry its number, `2_<measure>`. Every row stands in results.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bfp import __version__
from bfp.drivers.acquaintance import Acquaintance
from bfp.drivers.benchmark_cells import NOTHING_SHOWN, Found
from bfp.drivers.benchmark_figures import WITHIN, Row
from bfp.drivers.benchmark_material import Material, SegmentationMaterial, TaskMaterial
from bfp.drivers.finetune_material import learned_in_words, target_of
from bfp.drivers.finetune_results import HEADS, RESEARCH, below_chance, p_text
from bfp.finetuning.site import SiteProbe, numbered
from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.bootstrap import REPLICATES
from bfp.metrics.measures import FALSE_ALARMS, MEASURES, Measures
from bfp.metrics.over_folds import OverFolds, over_folds
from bfp.metrics.segmentation import INTERVALS, RULE
from bfp.reports.blocks import Bar, Bars, Block, Cell, Facts, Results, Table, Text, TrendLine, Trends
from bfp.reports.numbers import duration_text, interval_text
from bfp.specs.benchmark import ATLAS, COVARIATES, HISTOGRAMS, PERMUTED, SITE, THRESHOLD, Benchmark
from bfp.specs.encoders import parse_encoder
from bfp.words import counted

NAMES = {
    HISTOGRAMS: "histograms of the slices",
    COVARIATES: "covariates alone",
    SITE: "the site alone",
    PERMUTED: "permuted labels",
    ATLAS: "an atlas that sees no image",
    THRESHOLD: "the best grey threshold",
}
ROUGH = (
    "Figures of few folds and of small groups are rough; what differs between encoders on this cohort may differ the "
    "other way on another."
)
OF_FOLDS = f"{REPLICATES:,} bootstrap replicates over subjects (bias-corrected and accelerated)"
MARKS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
MARKED = "Marks: p of the corrected t test against {ours}, by Holm: * below 0.05, ** 0.01, *** 0.001."


class Shown(NamedTuple):
    """shown: the page and the figures; warnings: what is wrong with the comparison."""

    shown: Results
    warnings: list[str]


def results_of(
    spec: Benchmark, material: Material, found: Found, rows: Sequence[Row], met: Mapping[str, Acquaintance]
) -> Shown:
    numbers: dict[str, Cell] = {
        "encoders": len(spec.encoders),
        "cells": len(found.cells),
        "rows": len(rows),
        "sessions": max(len(task.labelled.sessions) for task in material.tasks),
    }
    blocks: list[Block] = []
    warnings: list[str] = []
    for number, task in enumerate(material.tasks, start=1):
        own = [row for row in rows if row.where.task == task.name]
        numbers |= _numbers(spec, material, own, prefix="" if number == 1 else f"{number}_")
        blocks += _figures(spec, material, task, own)
        warnings += _warnings(spec, material, task, own)
    if found.sites:
        blocks += [_sites(spec, material, found, task) for task in material.tasks if task.site]
    blocks += [
        _guard(spec, met),
        _cost(spec, found),
        *(_learned(task) for task in material.tasks),
        Facts(title="What was compared on what", rows=_facts(spec, material)),
        *(_table(spec, [row for row in rows if row.where.task == task.name], task) for task in material.tasks),
        _methods(spec, material, found),
        Text("Limits", [f"{RESEARCH} {ROUGH}"]),
    ]
    return Shown(Results(figures=numbers, blocks=blocks), warnings)


# the paper's figures --------------------------------------------------------------------------------------------------


def _figures(spec: Benchmark, material: Material, task: TaskMaterial, rows: Sequence[Row]) -> list[Block]:
    measures = MEASURES[task.task.type]
    label, most = measures.first.label, max(spec.label_fractions)
    compared = (*spec.encoders, HISTOGRAMS, ATLAS, THRESHOLD)
    encoders = [name for name in compared if any(row.where.approach == name for row in rows)]
    everything = material.everything.name
    at: dict[tuple[str, str, str, float, str], Row] = {}
    for row in rows:
        where = row.where
        shown = [(where.learned_with, where.tested_with)]
        if where.approach == ATLAS:  # which sees no image, and stands beside every set of modalities
            shown = [(learned.name, tested.name) for learned in material.sets for tested in material.sets]
        at |= {(where.cohort, *each, where.fraction, where.approach): row for each in shown}
    marked = MARKED.format(ours=spec.compared)
    if ATLAS in encoders:
        marked += f" The atlas was tested against {spec.compared} with {everything}, and has a mark there alone."
    base = 0.0 if measures.chance is None else measures.chance

    def bar(place: tuple[str, str, str], name: str) -> Bar:
        row = at.get((*place, most, name))
        # What sees no image was tested against ours with all modalities, wherever it stands.
        is_tested = name != ATLAS or place[1:] == (everything, everything)
        return _bar(row, marked=is_tested)

    def bars(title: str, groups: Mapping[str, tuple[str, str, str]], note: str) -> Bars:
        return Bars(
            title=f"{task.name}: {title}",
            groups=list(groups),
            series=[NAMES.get(name, name) for name in encoders],
            bars=[[bar(place, name) for name in encoders] for place in groups.values()],
            axis_label=f"{label}, {measures.first.averaged}",
            base=base,
            note=note,
        )

    blocks: list[Block] = [
        bars(
            "encoders",
            {shown.name: (WITHIN, shown.name, shown.name) for shown in material.sets},
            f"Cross-validated, learned and tested with these modalities. {marked}",
        )
    ]
    if len(spec.label_fractions) > 1:
        blocks.append(_few_labels(spec, material, task, at, encoders, measures))
    less = {
        f"{shown.name} only": (WITHIN, everything, shown.name) for shown in material.sets if shown.name != everything
    }
    less = {name: place for name, place in less.items() if (*place, most, encoders[0]) in at}
    if less:
        blocks.append(
            bars(
                "missing modalities",
                {"all": (WITHIN, everything, everything), **less},
                f"Learned with {everything}; what is missing then is filled as the encoder fills what is absent. "
                f"{marked}",
            )
        )
    if material.outside:
        groups = {"cross-validation": (WITHIN, everything, everything)}
        groups |= {name: (name, everything, everything) for name in material.outside}
        blocks.append(
            bars(
                "outside cohorts",
                groups,
                "What the folds learned, on cohorts from which nothing was learned; a ring is a fold's.",
            )
        )
    return blocks


def _bar(row: Row | None, *, marked: bool) -> Bar:
    if row is None:
        return Bar(None, None, None)
    p = row.p_holm if marked else None
    mark = next((mark for limit, mark in MARKS if p is not None and p < limit), "")
    return Bar(*row.judged.figure.mean, row.judged.figure.folds, mark)


def _few_labels(
    spec: Benchmark,
    material: Material,
    task: TaskMaterial,
    at: Mapping[tuple[str, str, str, float, str], Row],
    encoders: Sequence[str],
    measures: Measures,
) -> Trends:
    everything, lines = material.everything.name, []
    for name in encoders:
        own = [at[WITHIN, everything, everything, fraction, name] for fraction in sorted(spec.label_fractions)]
        value, low, high = ([getattr(row.judged.figure.mean, end) for row in own] for end in ("value", "low", "high"))
        lines.append(TrendLine(NAMES.get(name, name), [row.learned_from for row in own], value, low, high))
    shares = ", ".join(f"{fraction:.0%}" for fraction in sorted(spec.label_fractions))
    each = " of each class" if task.task.type == "classification" else ""
    return Trends(
        title=f"{task.name}: few labels",
        lines=lines,
        x_label="labelled subjects that are learned from (mean of folds)",
        y_label=f"{measures.first.label}, {measures.first.averaged}",
        reference=measures.chance,
        note=f"Shares of {shares} of the training subjects{each}; the smaller are parts of the larger. With "
        f"{everything}.",
    )


# the table and the checks ---------------------------------------------------------------------------------------------


def _table(spec: Benchmark, rows: Sequence[Row], task: TaskMaterial) -> Table:
    label = MEASURES[task.task.type].first.label
    cells: list[list[Cell]] = []
    above: list[Cell] = []
    counted_in = isinstance(task, SegmentationMaterial)
    for row in rows:
        where, found = row.where, row.judged
        better = "" if found.better is None else interval_text(*found.better.mean)
        p: list[Cell] = ["" if each is None else p_text(each) for each in (row.p_holm, found.p_plain_t)]
        place: list[Cell] = [
            where.cohort or "cross-validation",
            where.learned_with,
            where.tested_with,
            f"{where.fraction:.0%} ({row.learned_from:.0f})",
        ]
        cells.append(
            [
                *([""] * len(place) if place == above else place),
                NAMES.get(where.approach, where.approach),
                interval_text(*found.figure.mean),
                *([_in_sessions(row), _false_alarms(row)] if counted_in else []),
                better,
                *p,
            ]
        )
        above = place
    return Table(
        title=f"{task.name}: every cell",
        columns=[
            "tested on",
            "learned with",
            "tested with",
            "labels",
            "approach",
            label,
            *(["in sessions", "false alarms"] if counted_in else []),
            f"{spec.compared} better by",
            "p",
            "plain t",
        ],
        rows=cells,
        note="In brackets 95 % intervals over subjects; labels: the share, and the subjects a head learns from. p is "
        "of the corrected t test over the folds of all seeds (Nadeau and Bengio), adjusted by Holm over this table; "
        "outside cohorts are compared by intervals. The plain t test is what papers print; it finds differences where "
        "there are none. The same with all digits: results.csv, results.md."
        + (f" {RULE}, over all classes, seeds and heads." if counted_in else "")
        + below_chance(
            {
                NAMES[name]: row.judged.figure
                for row in rows
                if (name := row.where.approach) in (SITE, COVARIATES, PERMUTED)
            },
            MEASURES[task.task.type],
        ),
    )


def _in_sessions(row: Row) -> str:
    return f"{row.judged.figure.defined / row.judged.rounds:.4g} of {row.sessions}"


def _false_alarms(row: Row) -> str:
    """In how many of the sessions without a class there is a mask of it, over all classes and heads."""
    found = [each for name, each in row.judged.further.items() if name.startswith(FALSE_ALARMS)]
    masks = sum(round((each.mean.value or 0) * each.defined) for each in found)
    return f"{masks} of {sum(each.defined for each in found)}"


def _sites(spec: Benchmark, material: Material, found: Found, task: TaskMaterial) -> Table:
    ((column, values),) = task.site.items()
    sites, names = numbered(values)
    measures, folds, persons = MEASURES[task.task.type], task.folds[0], task.labelled.persons

    def site(said: np.ndarray) -> str:
        return interval_text(
            *over_folds(weighted_auroc, sites, said, folds=folds, subjects=persons, seed=spec.seed).mean
        )

    def own(said: np.ndarray) -> OverFolds:
        targets = task.labelled.targets
        return over_folds(measures.first.figure, targets, said, folds=folds, subjects=persons, seed=spec.seed)

    rows: list[list[Cell]] = []
    for (approach, name), probe in found.sites.items():
        if name != task.name:
            continue
        key = next(
            key
            for key in found.cells
            if key[:3] == (approach, name, 0)
            and key.shown == material.everything.name
            and key.fraction == max(spec.label_fractions)
        )
        told = [site(getattr(probe, each)) for each in SiteProbe.__slots__[:4]]
        before, after = (interval_text(*own(said).mean) for said in (found.cells[key].said, probe.task_after))
        rows.append([NAMES.get(approach, approach), *told, before, after])
    label = measures.first.label
    return Table(
        title=f"{task.name}: how well features tell sites apart",
        columns=[
            "approach",
            "site, linear",
            "site, neighbours",
            "linear, without",
            "neighbours, without",
            f"{label}",
            f"{label}, without",
        ],
        rows=rows,
        note=f"AUROC of {column} ({counted(len(names), 'site')}, one against the rest) on the folds of the "
        "first seed, by a linear head and by the nearest neighbours; 0.5: nothing. Without: once what parts the means "
        "of the sites of the training sessions is taken away, of which a linear head can say nothing more; what the "
        f"neighbours still tell is left in the features. {label}: of the task, before and after.",
    )


def _guard(spec: Benchmark, met: Mapping[str, Acquaintance]) -> Table:
    rows: list[list[Cell]] = [[name, spec.encoders[name], each.told] for name, each in met.items()]
    return Table(
        title="Whom the encoders have met",
        columns=["encoder", "from", "subjects of its pretraining among those that are judged"],
        rows=rows,
        note="By name and by what their voxels came to at ingest. Pretraining sees no label, but an encoder that has "
        "met the subjects it is judged on has an advantage that it will not have on others.",
    )


def _warnings(spec: Benchmark, material: Material, task: TaskMaterial, rows: Sequence[Row]) -> list[str]:
    measures, found = MEASURES[task.task.type], list[str]()
    if measures.telling is None:
        return []
    telling, chance = measures.telling
    for row in rows:
        figure = row.judged.figure if telling is measures.first else row.judged.further[telling.name]
        if figure.mean.low is None or figure.mean.low <= chance:
            continue
        told = f"{telling.label} {interval_text(*figure.mean)}"
        if row.where.approach == SITE:
            found.append(
                f"{task.name}: {next(iter(task.site))} alone tells it ({told}): what images add "
                "must be read beside that; compare within sites, or leave sites out that have one class"
            )
        if row.where.approach == PERMUTED:
            found.append(
                f"{task.name}: permuted labels are told from the images ({told}, "
                f"{row.where.learned_with}): by chance in one study of forty, else a fault of the study; submit it "
                "with another name and another seed"
            )
    return found


def _cost(spec: Benchmark, found: Found) -> Table:
    rows: list[list[Cell]] = []
    for name in dict.fromkeys(key.approach for key in found.cells):
        cells = [cell for key, cell in found.cells.items() if key.approach == name]
        vectors = [cost for (approach, _), cost in found.costs.items() if approach == name]
        rows.append(
            [
                NAMES.get(name, name),
                len(vectors),
                sum(cost.stacks for cost in vectors),
                duration_text(sum(cost.seconds for cost in vectors)) if vectors else "",
                len(cells),
                duration_text(sum(cell.seconds for cell in cells)),
                duration_text(max(cell.seconds for cell in cells)),
            ]
        )
    return Table(
        title="What it cost",
        columns=["approach", "extractions", "stacks", "took one worker", "cells", "took one worker", "longest"],
        rows=rows,
        note="An extraction is one pass of an encoder over all stacks for one set of modalities, kept for all "
        "its cells; a cell is a cross-validation. Times are those that one worker took, on its CPU or its GPU; many "
        "work at once.",
    )


# words ----------------------------------------------------------------------------------------------------------------


def _learned(task: TaskMaterial) -> Facts:
    rows: list[tuple[str, Cell]] = [("target", target_of(task.task))]
    rows += [(name, text) for name, text in learned_in_words(task.task, task.labelled).items()]
    rows += [("left out", f"{counted(count, 'session')}: {reason}") for reason, count in task.labelled.left_out.items()]
    for cohort, own in task.outside.items():
        rows += [(f"{cohort}: {name}", text) for name, text in learned_in_words(task.task, own).items()]
    return Facts(title=f"{task.name}: what was learned from what", rows=rows)


def _facts(spec: Benchmark, material: Material) -> list[tuple[str, Cell]]:
    store = material.stacks.store
    rows: list[tuple[str, Cell]] = [
        ("store", f"{store.place}, snapshot {store.snapshot}"),
        ("preprocessing", store.fingerprint),
    ]
    rows += [
        (f"outside: {name}", f"{own.store.place}, snapshot {own.store.snapshot}")
        for name, own in material.outside.items()
    ]
    for name, encoder in spec.encoders.items():
        untrained = " (untrained, whatever the name says)" if parse_encoder(encoder).origin == "random" else ""
        rows.append((name, f"{encoder}{untrained}"))
    rows += [
        ("modalities", "; ".join(shown.name for shown in material.sets)),
        ("shares of labels", ", ".join(f"{fraction:.0%}" for fraction in sorted(spec.label_fractions))),
        ("folds", f"as in {spec.splits}" if spec.splits else f"{spec.folds}, dealt by each seed"),
        ("seeds", ", ".join(str(spec.seed + number) for number in range(spec.seeds))),
    ]
    return rows


def _methods(spec: Benchmark, material: Material, found: Found) -> Text:
    store = material.stacks.store
    kinds = list(dict.fromkeys(task.task.type for task in material.tasks))
    figures = [
        f"{MEASURES[kind].first.label} is the {MEASURES[kind].first.averaged}; its 95 % interval is from "
        + (INTERVALS if kind == "segmentation" else OF_FOLDS)
        for kind in kinds
    ]
    of_vectors = list(dict.fromkeys(task.task.type for task in material.of_vectors))
    fitted = " or ".join(HEADS[kind] for kind in of_vectors)
    chosen_by = " and ".join(MEASURES[kind].first.label for kind in of_vectors)
    seeds = f", repeated with {spec.seeds} seeds" if spec.seeds > 1 else ""
    outside = (
        f" What each fold learned was also tested on {counted(len(material.outside), 'outside cohort')} "
        f"({', '.join(material.outside)}), from which nothing was learned."
        if material.outside
        else ""
    )
    pooled = "averaged in bands of height" if spec.pooling == "position" else "averaged over all slices"
    strengths = ", ".join(f"{value:g}" for value in spec.regularisation)
    learned = (
        f"{store.slice_axis.capitalize()} slice stacks were passed through each frozen encoder "
        f"({', '.join(spec.encoders)}). The standard deviations over the patch tokens of each stack were {pooled}. A "
        f"standardised, L2-regularised {fitted} was fitted; its inverse strength (C of {strengths}) was chosen by "
        f"{chosen_by} in a cross-validation inside each fold's training subjects."
    )
    decoded = [
        f"{task.name} was segmented slice by slice: from the patch tokens of each frozen encoder a convolutional "
        f"decoder ({task.task.decoder.layers} layers, width {task.task.decoder.width}) was learned anew in each fold "
        f"with Dice and cross-entropy, {task.task.decoder.steps:,} steps of {task.task.decoder.batch_size} slices; "
        "nothing was chosen by its figures. Masks were brought back to the voxels of the file in which each session's "
        f"had been drawn, and compared there. {RULE}. Beside the encoders stands an atlas: how often a "
        "pixel is of a class, at its height, over the training sessions."
        for task in material.segmentations
    ]
    judged = (
        f"Performance was estimated by {spec.folds}-fold cross-validation{seeds}, grouped by subject, on the same "
        f"sessions and folds for every encoder. {'. '.join(figures)}. Differences from "
        f"{spec.compared} were tested over folds by the corrected resampled t test (Nadeau and Bengio, 2003), "
        "two-sided, its standard error being at least the bootstrap's; p values were adjusted by Holm's procedure "
        f"over all cells of a task.{outside} Software: bfp {__version__}."
    )
    return Text(title="Methods", paragraphs=[*([learned] if of_vectors else []), *decoded, judged])


def _numbers(spec: Benchmark, material: Material, rows: Sequence[Row], *, prefix: str) -> dict[str, Cell]:
    numbers: dict[str, Cell] = {}
    most, everything = max(spec.label_fractions), material.everything.name
    for row in rows:
        where = row.where
        if where.cohort != WITHIN or where.fraction != most or where.learned_with not in (everything, NOTHING_SHOWN):
            continue
        if where.tested_with != where.learned_with:
            continue
        measures = MEASURES[row.kind]
        name = prefix + measures.first.name + ("" if where.approach == spec.compared else f"_{where.approach}")
        figures = {name: row.judged.figure}
        if row.judged.better is not None:
            figures[f"{prefix}{measures.compared}_{where.approach}"] = row.judged.better
        for key, own in figures.items():
            numbers |= {key: own.mean.value, f"{key}_low": own.mean.low, f"{key}_high": own.mean.high}
    return numbers

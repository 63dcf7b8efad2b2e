"""The cases on a page: what the heads were most right and most wrong about (`finetuning.cases`), and what told.

Each is explained by the head that judged it, which did not see its subject: which of its slices made it say what it
said (the log odds of a class, a number, a log hazard: `finetuning.contributions`), and in them which patches. It costs
one forward pass for each slice that is shown. Where encoders were tuned, those of the folds are not kept, and no case
can be explained. What kinds of tasks differ in stands in one place, their `_Terms`.

Like the other pictures of ingest and finetune these show what the store holds: the whole head where its preprocessing
cuts out no brain, under the store's own names. The page says so.

<run>/pictures/cases-<k>.png    of the k-th group, from 1: a class; all numbers; times with the event, those without it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bfp.drivers.finetune_material import Material
from bfp.errors import Interrupted
from bfp.features.tokens import tokens
from bfp.finetuning.cases import (
    Case,
    cases_of,
    merits_of_classes,
    merits_of_numbers,
    order_of_times,
    telling_slices,
)
from bfp.finetuning.contributions import Sum, patch_effects, stack_shares, weights_of
from bfp.finetuning.crossvalidation import Judged
from bfp.finetuning.network import Pooled
from bfp.finetuning.session_stacks import KeptVectors, Places, StoredPixels
from bfp.models.attention import AttentionPooling, places
from bfp.models.encoder import LoadedEncoder
from bfp.reports.blocks import Block, Cell, Picture, Table, Text
from bfp.reports.numbers import number_text, signed_text
from bfp.reports.pictures import TellingSlice, Told, orientation, telling
from bfp.runs import Run
from bfp.specs.finetune import Classification, Regression, Survival
from bfp.words import counted

TITLE = "Cases"
FULL_COLOUR_AT = 0.98
"""Of all patches that are shown, how many have a colour that can still grow: a few would else leave none to others."""
TUNED = (
    "No case is explained: the encoder was tuned, that of each fold was another one, and those are not kept. The "
    "model's own encoder has learned from every session, and what it says of one of them is no test."
)
REFITTED = (
    "To put sessions of different folds in one order, the head of every fold is fitted here at the strength of the "
    "model's own; the figures, and predictions.parquet, are of heads whose strength each fold chose for itself, so "
    "that the same session may have another number there."
)
THE_SAME = "They were judged by the heads that the figures, and predictions.parquet, are of."
OTHERS = " What predictions.parquet says of a session is of a head whose strength the fold chose for itself."
WHAT_IT_IS = (
    "Each case was judged by the head that did not see its subject. They are the best and the worst of the study, and "
    "no sample of it. Look at the wrong ones first: the scan, its quality, its label. Scans are shown as the store "
    "holds them, under its names: give this page to nobody who may not see them."
)
WHAT_IT_IS_NOT = (
    "The colours explain the model and not the disease. They say what moved its judgement, be it anatomy, the scanner "
    "or a fault of the scan; a lesion without colour is one that the model did not use; and on a wrong case they look "
    "as convincing as on a right one. They locate no disease, and no patient should be treated by them."
)


@dataclass(frozen=True, slots=True, eq=False)
class _Terms:
    """How the cases of one kind of task are found, and what they are called; n sessions.

    merits, groups: as `cases_of` takes them; outputs: int (n,), the one of the head's that is explained. pictures:
    their titles, by group. which: the cases there are. verdicts: right and wrong. said, those: what shares add up to,
    and its pronoun; up, down: what a share above 0 speaks for, and one below; unit: theirs. columns, cells, note: the
    table's own, of each session; told: in a line.
    """

    merits: np.ndarray
    groups: np.ndarray
    outputs: np.ndarray
    pictures: list[str]
    which: str
    verdicts: tuple[str, str]
    said: str
    those: str
    up: str
    down: str
    unit: str
    columns: list[str]
    cells: list[list[Cell]]
    note: str
    told: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class _Explained:
    """A case and what told. name: of the session; where, shares: of all its slices; shown: places among them; pixels:
    uint8 (s, 3, H, W) and effects: float64 (s, N) of these; bias: what is said of the training mean."""

    case: Case
    name: str
    where: Places
    shares: np.ndarray
    bias: float
    shown: list[int]
    pixels: np.ndarray
    effects: np.ndarray

    def name_of(self, n: int, parts: Sequence[str]) -> str:
        """A slice, by its modality, where that is a part of the session, and its height."""
        return " ".join(filter(None, (parts[self.where.parts[n]], f"at {self.where.heights[n]:.0%}")))


def case_blocks(
    run: Run,
    material: Material,
    encoder: LoadedEncoder,
    features: pa.Table,
    judged: Judged,
    poolings: Sequence[Pooled],
    *,
    refitted: bool,
) -> list[Block]:
    """Write the pictures, and say what they are; nothing where no session is better or worse than another.

    features: of the encoder at rest; poolings: of the head of each fold; refitted: whether those heads were fitted
    again, at the strength of the model's own, and are not the ones of the figures. Raises Interrupted where the user
    stops it.
    """
    sessions, parts = material.labelled.sessions, poolings[0].parts
    judges = REFITTED if refitted else THE_SAME
    terms = _terms(material, judged)
    cases = cases_of(terms.merits, groups=terms.groups, folds=material.folds, persons=material.labelled.persons)
    if not cases:
        return []
    vectors = KeptVectors.of(features, sessions, parts=parts)
    pixels = StoredPixels(material.store, material.index, sessions, shown=material.shown, parts=parts)
    run.phase("cases", total=len(cases), unit="sessions")
    explained = []
    for number, case in enumerate(cases):
        run.progress(number)
        if run.stopping:
            raise Interrupted(f"stopped after {number} of {counted(len(cases), 'case')}; submit it again to go on")
        name = " ".join(filter(None, sessions[case.session]))
        said = Sum.of(judged.folds[case.fold].head, int(terms.outputs[case.session]))
        explained.append(_explained(case, name, said, poolings[case.fold], encoder, vectors, pixels))
    run.progress(len(cases))
    most_of_slice = float(max(np.abs(each.shares).max() for each in explained)) or 1.0
    of_patches = np.concatenate([np.abs(each.effects).ravel() for each in explained])
    most_of_patch = float(np.quantile(of_patches, FULL_COLOUR_AT)) or 1.0
    blocks: list[Block] = [
        Text(
            TITLE,
            [
                f"{terms.which} {judges} {WHAT_IT_IS}",
                _how(terms, material, poolings[0]),
                WHAT_IT_IS_NOT,
            ],
        ),
        _table(explained, terms, parts, refitted=refitted),
    ]
    for group, title in enumerate(terms.pictures):
        own = [each for each in explained if each.case.group == group]
        if not own:
            continue
        told = [_told(each, terms, material, parts) for each in own]
        file = f"pictures/cases-{group + 1}.png"
        axis = material.store.slice_axis
        drawn = telling(told, axis=axis, most_of_slice=most_of_slice, most_of_patch=most_of_patch)
        (run.folder / file).write(drawn)
        blocks.append(
            Picture(
                title,
                file,
                f"Orange, up and +: {terms.up}; blue, down and −: {terms.down}. A full bar is "
                f"{number_text(most_of_slice)} {terms.unit}, a full colour {number_text(most_of_patch)} or more, in "
                "every picture. Bars: all slices in order, the lowest on the left, those shown marked below. "
                + orientation(axis),
            )
        )
    return blocks


def _explained(
    case: Case,
    name: str,
    said: Sum,
    pooling: Pooled,
    encoder: LoadedEncoder,
    vectors: KeptVectors,
    pixels: StoredPixels,
) -> _Explained:
    where = vectors.places[case.session]
    rows = pixels.places[case.session].rows  # the same stacks, in the same order, of another table
    features = vectors.read(where.rows).numpy()
    bags, weights = _pooled(pooling, features, where)
    shares = stack_shares(said, features, bags=bags, weights=weights)
    shown = telling_slices(shares, heights=where.heights, parts=where.parts.tolist())
    slices = pixels.read(rows[shown])
    of_patches = tokens(encoder, slices).patches.cpu().numpy()
    effects = [
        patch_effects(said, own, bag=int(bags[n]), weight=float(weights[n]))
        for n, own in zip(shown, of_patches, strict=True)
    ]
    return _Explained(case, name, where, shares, said.bias, shown, slices.numpy(), np.stack(effects))


def _pooled(pooling: Pooled, features: np.ndarray, where: Places) -> tuple[np.ndarray, np.ndarray]:
    """The bag of each stack, and how much it weighs there."""
    within = pooling.within if isinstance(pooling, AttentionPooling) else pooling
    bags = within.bags(where.heights, [within.parts[number] for number in where.parts])
    if not isinstance(pooling, AttentionPooling):
        return bags, weights_of(bags)
    (own,) = pooling.maps
    beside = places(where.heights, where.parts, part_count=len(within.parts))
    return bags, weights_of(bags, own.scores(features, beside))


# what kinds of tasks differ in ---------------------------------------------------------------------------------------


def _terms(material: Material, judged: Judged) -> _Terms:
    match material.task:
        case Classification(classes=classes):
            return _of_classes(judged, classes)
        case Regression(target=target):
            return _of_numbers(judged, target)
        case Survival(time=time, event=event):
            return _of_times(judged, material.folds, time, event)


def _of_classes(judged: Judged, classes: Sequence[str]) -> _Terms:
    taken_for, sure = judged.said.argmax(axis=1), judged.said.max(axis=1).tolist()
    named = [(classes[k], classes[taken]) for k, taken in zip(judged.targets, taken_for, strict=True)]
    return _Terms(
        merits=merits_of_classes(judged.targets, judged.said),
        groups=judged.targets,
        outputs=taken_for,
        pictures=[f"Cases of {name}" for name in classes],
        which="The sessions below are those of each class that the heads were surest of, rightly and wrongly.",
        verdicts=("right", "wrong"),
        said="log odds of the class that a session was taken for"
        + (" (against the geometric mean of the others)" if len(classes) > 2 else ""),
        those="are those",
        up="for the class that the session was taken for",
        down="against it",
        unit="of log odds",
        columns=["is", "taken for", "probability"],
        cells=[[own, taken, p] for (own, taken), p in zip(named, sure, strict=True)],
        note="The probability is that of the fold's head, not recalibrated.",
        told=[f"{own} taken for {taken} ({p:.2f})" for (own, taken), p in zip(named, sure, strict=True)],
    )


def _of_numbers(judged: Judged, target: str) -> _Terms:
    pairs = list(zip(judged.targets.tolist(), judged.said[:, 0].tolist(), strict=True))
    return _Terms(
        merits=merits_of_numbers(judged.targets, judged.said),
        groups=np.zeros(len(pairs), dtype=np.int64),
        outputs=np.zeros(len(pairs), dtype=np.int64),
        pictures=[f"Cases: {target} predicted nearest and furthest off"],
        which=f"The sessions below are those whose {target} was predicted nearest, and those where the prediction was "
        "furthest off. Predictions are drawn to the mean: near it a head that knows nothing is right, and far from it "
        "wrong; whether the scan had a say is told by the shares.",
        verdicts=("near", "far off"),
        said=f"predicted {target}",
        those="is that",
        up=f"for a higher {target}",
        down="for a lower one",
        unit=f"in the unit of {target}",
        columns=["true", "off by"],
        cells=[[true, said - true] for true, said in pairs],
        note="Off by: predicted less true.",
        told=[f"{target} {true:g}, predicted {number_text(said)}" for true, said in pairs],
    )


def _of_times(judged: Judged, folds: np.ndarray, time: str, event: str) -> _Terms:
    order = order_of_times(judged.targets, judged.said, folds=folds)
    came = judged.targets[:, 1] == 1
    right = [f"{own:g} of {of:g}" for own, of in zip(order.right, order.pairs, strict=True)]
    return _Terms(
        merits=order.merits,
        groups=np.where(came, 0, 1),
        outputs=np.zeros(len(came), dtype=np.int64),
        pictures=[f"Cases: {event} seen", f"Cases: {event} not seen"],
        which="The sessions below are those that were put in the right order with most others, and those that were "
        "put in the wrong order with most. Two sessions that one fold tested are a pair where one is known to have had "
        "the event before the other, and a right one where that one was said to be at the higher risk. A session in "
        "which the event was not seen is in pairs with earlier events alone: it is right where it was said to be at a "
        "lower risk than they, and nobody knows whether its risk was put too low. Who was last seen early is in few "
        "pairs and hardly ever a case.",
        verdicts=("right", "wrong"),
        said="log hazard",
        those="is that",
        up="for a higher risk (sooner)",
        down="for a lower one (later)",
        unit="of log hazard",
        columns=[time, event, "pairs right"],
        cells=[
            [f"{at:g}", "seen" if seen else "not seen", own]
            for at, seen, own in zip(judged.targets[:, 0], came, right, strict=True)
        ],
        note=f"{time}: of the event ({event}), or when the session's subject was last seen without it. Pairs right: of "
        "those in its fold, equal risks counting half.",
        told=[
            f"{time} {at:g}, {event} {'seen' if seen else 'not seen'}; {own} pairs right"
            for at, seen, own in zip(judged.targets[:, 0], came, right, strict=True)
        ],
    )


# what is said and shown ----------------------------------------------------------------------------------------------


def _how(terms: _Terms, material: Material, pooling: Pooled) -> str:
    attends = isinstance(pooling, AttentionPooling)
    channels = "all channels" if material.store.form == "modalities" else "a slice and its two neighbours"
    return (
        f"How to read them: the {terms.said} {terms.those} of the training mean plus the share of each slice. The sum "
        "is exact, since the head is linear and slices are averaged"
        f"{', by weights of attention that are taken as they are' if attends else ''}. The slices with the largest "
        "shares are shown. The colour of a patch is the change of that sum which its token makes: with it less without "
        f"it, from the tokens of one pass through the encoder, for {channels} at once. A slice is described by how "
        "much its patches differ. Its share may thus be above 0 because they differ less than usual, while every patch "
        "that differs is blue. Tokens have seen one another, so a patch stands for what the encoder noticed from "
        "there, and colours do not add up to the share."
    )


def _table(explained: Sequence[_Explained], terms: _Terms, parts: Sequence[str], *, refitted: bool) -> Table:
    rows: list[list[Cell]] = []
    for each in explained:
        up, down = each.shares[each.shares > 0].sum(), each.shares[each.shares < 0].sum()
        rows.append(
            [
                each.name,
                *terms.cells[each.case.session],
                each.case.fold + 1,
                *(each.bias, float(up), float(down), float(each.bias + each.shares.sum())),
                "; ".join(f"{each.name_of(n, parts)}: {signed_text(each.shares[n])}" for n in each.shown),
            ]
        )
    return Table(
        title="What was said of the cases, and why",
        columns=["session", *terms.columns, "fold", "mean", "up", "down", "sum", "slices shown"],
        rows=rows,
        note=f"Sum: the {terms.said}, which {terms.those} of the training mean, plus the shares of the slices "
        f"{terms.up}, plus those of the slices {terms.down}. Slices shown: at which height of the head, and their "
        f"shares. {terms.note}{OTHERS * refitted}",
    )


def _told(each: _Explained, terms: _Terms, material: Material, parts: Sequence[str]) -> Told:
    if material.store.form == "modalities":
        there = [channel for channel in range(3) if each.pixels[:, channel].any()]
        channels = tuple(material.store.channels[channel] for channel in there)
    else:  # the slice itself, between its neighbours
        there, channels = [1], ("",)
    slices = [
        TellingSlice(
            name=each.name_of(n, parts),
            pixels=pixels[there],
            share=float(each.shares[n]),
            effects=effects,
            place=n,
        )
        for n, pixels, effects in zip(each.shown, each.pixels, each.effects, strict=True)
    ]
    verdict = terms.verdicts[0 if each.case.is_right else 1]
    return Told(f"{verdict}, {each.name}: {terms.told[each.case.session]}", channels, tuple(slices), each.shares)

"""The cases on the page of a classification: the surest right and wrong sessions of each class, and what told.

Each is explained by the head that judged it, which did not see its subject: which of its slices spoke for the class
that it was taken for (`finetuning.contributions`), and in them which patches. It costs one forward pass for each slice
that is shown. Where encoders were tuned, those of the folds are not kept, and no case can be explained.

Like the other pictures of ingest and finetune these show what the store holds: the whole head where its preprocessing
cuts out no brain, under the store's own names. The page says so.

<run>/pictures/cases-<k>.png    those of class k, from 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bfp.drivers.finetune_material import Material
from bfp.errors import Interrupted
from bfp.features.tokens import tokens
from bfp.finetuning.cases import Case, cases_of, telling_slices
from bfp.finetuning.contributions import LogOdds, patch_effects, stack_shares, weights_of
from bfp.finetuning.crossvalidation import Judged
from bfp.finetuning.network import Pooled
from bfp.finetuning.session_stacks import KeptVectors, Places, StoredPixels
from bfp.models.attention import AttentionPooling, places
from bfp.models.encoder import LoadedEncoder
from bfp.reports.blocks import Block, Cell, Picture, Table, Text
from bfp.reports.pictures import TellingSlice, Told, orientation, telling
from bfp.runs import Run
from bfp.words import counted

TITLE = "Cases"
FULL_COLOUR_AT = 0.98
"""Of all patches that are shown, how many have a colour that can still grow: a few would else leave none to others."""
TUNED = (
    "No case is explained: the encoder was tuned, that of each fold was another one, and those are not kept. The "
    "model's own encoder has learned from every session, and what it says of one of them is no test."
)
WHAT_IT_IS = (
    "The sessions below are the surest that the heads were right about and the surest that they were wrong about, each "
    "judged by the head that did not see its subject: the best and the worst of the study, and no sample of it. Look "
    "at the wrong ones first: the scan, its quality, its label. Scans are shown as the store holds them, under its "
    "names: give this page to nobody who may not see them."
)
WHAT_IT_IS_NOT = (
    "The colours explain the model and not the disease. They say what moved its judgement, be it anatomy, the scanner "
    "or a fault of the scan; a lesion without colour is one that the model did not use; and on a wrong case they look "
    "as convincing as on a right one. They locate no disease, and no patient should be treated by them."
)


@dataclass(frozen=True, slots=True, eq=False)
class _Explained:
    """A case and what told. where, shares: of all its slices; shown: places among them; pixels: uint8 (s, 3, H, W) and
    effects: float64 (s, N) of these; bias: log odds of the training mean."""

    case: Case
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
    classes: Sequence[str],
) -> list[Block]:
    """Write the pictures, and say what they are. features: of the encoder at rest; poolings: of the head of each fold.

    Raises Interrupted where the user stops it.
    """
    sessions, parts = material.labelled.sessions, poolings[0].parts
    cases = cases_of(judged.targets, judged.said, folds=material.folds, persons=material.labelled.persons)
    vectors = KeptVectors.of(features, sessions, parts=parts)
    pixels = StoredPixels(material.store, material.index, sessions, shown=material.shown, parts=parts)
    run.phase("cases", total=len(cases), unit="sessions")
    explained = []
    for number, case in enumerate(cases):
        run.progress(number)
        if run.stopping:
            raise Interrupted(f"stopped after {number} of {counted(len(cases), 'case')}; submit it again to go on")
        log_odds = LogOdds.of(judged.folds[case.fold].head, case.taken_for)
        explained.append(_explained(case, log_odds, poolings[case.fold], encoder, vectors, pixels))
    run.progress(len(cases))
    most_of_slice = float(max(np.abs(each.shares).max() for each in explained)) or 1.0
    of_patches = np.concatenate([np.abs(each.effects).ravel() for each in explained])
    most_of_patch = float(np.quantile(of_patches, FULL_COLOUR_AT)) or 1.0
    blocks: list[Block] = [
        Text(TITLE, [WHAT_IT_IS, _how(material, poolings[0], len(classes)), WHAT_IT_IS_NOT]),
        _table(explained, material, classes, parts),
    ]
    for k, name in enumerate(classes):
        own = [each for each in explained if each.case.target == k]
        if not own:
            continue
        told = [_told(each, material, classes, parts) for each in own]
        file = f"pictures/cases-{k + 1}.png"
        axis = material.store.slice_axis
        drawn = telling(told, axis=axis, most_of_slice=most_of_slice, most_of_patch=most_of_patch)
        (run.folder / file).write(drawn)
        blocks.append(
            Picture(
                f"Cases of {name}",
                file,
                "Orange, up and +: for the class that the session was taken for; blue, down and −: against it. A full "
                f"bar is {most_of_slice:.2g} of log odds, a full colour {most_of_patch:.2g} or more, in every picture. "
                "Bars: all slices in order, the lowest on the left, those shown marked below. " + orientation(axis),
            )
        )
    return blocks


def _explained(
    case: Case,
    log_odds: LogOdds,
    pooling: Pooled,
    encoder: LoadedEncoder,
    vectors: KeptVectors,
    pixels: StoredPixels,
) -> _Explained:
    where = vectors.places[case.session]
    rows = pixels.places[case.session].rows  # the same stacks, in the same order, of another table
    features = vectors.read(where.rows).numpy()
    bags, weights = _pooled(pooling, features, where)
    shares = stack_shares(log_odds, features, bags=bags, weights=weights)
    shown = telling_slices(shares, heights=where.heights, parts=where.parts.tolist())
    slices = pixels.read(rows[shown])
    of_patches = tokens(encoder, slices).patches.cpu().numpy()
    effects = [
        patch_effects(log_odds, own, bag=int(bags[n]), weight=float(weights[n]))
        for n, own in zip(shown, of_patches, strict=True)
    ]
    return _Explained(case, where, shares, log_odds.bias, shown, slices.numpy(), np.stack(effects))


def _pooled(pooling: Pooled, features: np.ndarray, where: Places) -> tuple[np.ndarray, np.ndarray]:
    """The bag of each stack, and how much it weighs there."""
    within = pooling.within if isinstance(pooling, AttentionPooling) else pooling
    bags = within.bags(where.heights, [within.parts[number] for number in where.parts])
    if not isinstance(pooling, AttentionPooling):
        return bags, weights_of(bags)
    (own,) = pooling.maps
    beside = places(where.heights, where.parts, part_count=len(within.parts))
    return bags, weights_of(bags, own.scores(features, beside))


# what is said and shown ----------------------------------------------------------------------------------------------


def _how(material: Material, pooling: Pooled, class_count: int) -> str:
    attends = isinstance(pooling, AttentionPooling)
    against = " (against the geometric mean of the others)" if class_count > 2 else ""
    channels = "all channels" if material.store.form == "modalities" else "a slice and its two neighbours"
    return (
        f"How to read them: the log odds of the class that a session was taken for{against} are those of the training "
        "mean plus the share of each slice. The sum is exact, since the head is linear and slices are averaged"
        f"{', by weights of attention that are taken as they are' if attends else ''}. The slices with the largest "
        "shares are shown. The colour of a patch is the change of the log odds that its token makes: with it less "
        f"without it, from the tokens of one pass through the encoder, for {channels} at once. A slice is described by "
        "how much its patches differ. One may thus speak for the class because they differ less than usual: its share "
        "is above 0, and every patch that differs is against the class. Tokens have seen one another, so a patch "
        "stands for what the encoder noticed from there, and colours do not add up to the share."
    )


def _table(explained: Sequence[_Explained], material: Material, classes: Sequence[str], parts: Sequence[str]) -> Table:
    rows: list[list[Cell]] = []
    for each in explained:
        case, key = each.case, material.labelled.sessions[each.case.session]
        up, down = each.shares[each.shares > 0].sum(), each.shares[each.shares < 0].sum()
        rows.append(
            [
                " ".join(filter(None, key)),
                classes[case.target],
                classes[case.taken_for],
                case.probability,
                case.fold + 1,
                *(each.bias, float(up), float(down), float(each.bias + each.shares.sum())),
                "; ".join(f"{each.name_of(n, parts)}: {each.shares[n]:+.2f}" for n in each.shown),
            ]
        )
    return Table(
        title="What the cases were taken for, and why",
        columns=[
            *("session", "is", "taken for", "probability", "fold"),
            *("mean", "for", "against", "log odds", "slices shown"),
        ],
        rows=rows,
        note="Log odds of the class that it was taken for: those of the training mean, plus the shares of the slices "
        "that speak for it, plus those of the slices against it. Slices shown: at which height of the head, and their "
        "shares. The probability is that of the fold's head, as strong as the model's own, not recalibrated.",
    )


def _told(each: _Explained, material: Material, classes: Sequence[str], parts: Sequence[str]) -> Told:
    case, key = each.case, material.labelled.sessions[each.case.session]
    name = " ".join(filter(None, key))
    verdict = "right" if case.is_right else "wrong"
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
    title = f"{verdict}, {name}: {classes[case.target]} taken for {classes[case.taken_for]} ({case.probability:.2f})"
    return Told(title, channels, tuple(slices), each.shares)

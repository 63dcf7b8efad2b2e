"""Segmentation by cross-validation: a decoder for each fold, learned without the subjects whom it is tested on.

1. slices are drawn: half of a batch from those that hold a class, each class as often, half from all slices
2. loss: Dice over the batch and cross-entropy (MONAI's DiceCELoss): cross-entropy alone would call everything
   background, of which there is a hundred times as much as of a lesion
3. AdamW, the rate falling as a cosine; as many steps as were said: nothing is chosen on the tested subjects
4. every slice of a tested session is predicted, and the probabilities go back to the voxels of the file in which its
   segmentation was drawn (`imaging.native`), where the two are compared

Approaches beside it, on the same folds, go back the same way:

    atlas       how often a pixel is of a class, at this height, over the training sessions; it sees no image
    threshold   of one class: the pixels of one modality above, or below, a grey value; all chosen in training

Where the segmentation's own file cannot be read any more, or is another by now, slices are compared as they stand in
the store, in the working grid, and that is said of the session.

Letters: as in `bfp.models.decoder`; n slices of a session.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from bfp.cohorts.derivatives import Masks
from bfp.cohorts.sessions import Key
from bfp.errors import BfpError, InputError, StorageError
from bfp.features.token_maps import Labels, SessionMaps, open_maps
from bfp.imaging.grid import Grid
from bfp.imaging.native import labels_on
from bfp.imaging.nifti import decode
from bfp.metrics.segmentation import Overlap, overlaps
from bfp.models.decoder import Decoder, Layers
from bfp.models.segmenter import decoder_bytes
from bfp.models.tensor_files import header_of
from bfp.storage import Place

Approach = Literal["encoder", "untrained", "atlas", "threshold"]
LEARNED = ("encoder", "untrained")
"""Approaches that train a decoder."""

FORMAT = 4
"""Of kept folds, of a fine-tuning and of a benchmark: raised where the same inputs come to other results."""
ATLAS_BANDS = 40
ALL = -1
"""The fold in which nobody is tested: a decoder for all sessions."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a decoder is made and trained. steps: of batch_size slices each."""

    layers: Layers
    width: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class DrawnOn:
    """Where a session's segmentation was drawn, and the way there from its stacks.

    labels, size_bytes, etag: the label map's file as it was when the store was made. scan: the URI of the one that it
    was drawn on. working: the grid of the stacks; None where the store does not tell.
    """

    labels: Place
    size_bytes: int
    etag: str
    scan: str
    working: Grid | None
    reference_ras_from_scan_ras: np.ndarray

    def fault(self) -> str:
        """Why nothing can be compared in native space, as it stands in storage now; empty where it can."""
        if self.working is None:
            return "the store does not tell where its stacks lie"
        entry = self.labels.entry()
        if entry is None or entry.size < 0:
            return "the file of its labels is not there any more"
        if (entry.size, entry.etag) != (self.size_bytes, self.etag):
            return "the file of its labels has changed since the store was made"
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class Segmented:
    """The sessions of a study and what is learned of them. drawn_on: of each; spacing_mm: of the working grid."""

    sessions: list[Key]
    drawn_on: list[DrawnOn]
    folds: np.ndarray
    labels: Labels
    size_px: int
    spacing_mm: tuple[float, float, float]

    @property
    def class_count(self) -> int:
        return len(self.labels.classes)


class Score(NamedTuple):
    """How one session came out. space: native, or working for the reason `why`; overlaps: of each class."""

    session: int
    space: str
    why: str
    overlaps: list[Overlap]


@dataclass(frozen=True, slots=True, eq=False)
class FoldResult:
    """What came of a fold: decoder, the weights of one that was trained, b"" without; scores of the tested sessions;
    losses: some of the training's; said: what a baseline chose, in words."""

    decoder: bytes
    scores: list[Score]
    losses: list[float]
    said: str


def run_fold(
    study: Segmented, approach: Approach, maps: Sequence[Place], fold: int, recipe: Recipe, device: str, masks: Masks
) -> FoldResult:
    """Learn without the sessions of one fold, and segment them. maps: of each session, its kept file."""
    opened = [open_maps(file) for file in maps]
    training = [own for own, tested in zip(opened, study.folds == fold, strict=True) if not tested]
    learned = learn(approach, training, recipe, class_count=study.class_count, device=device)
    scores = []
    for number in np.flatnonzero(study.folds == fold):
        score, mask = judge(study, int(number), opened[number], learned.maps_of(opened[number]))
        scores.append(score)
        if approach == "encoder" and mask is not None:
            scan = study.drawn_on[number].scan
            masks.write(study.sessions[number], scan, mask.labels, header=mask.header, grid=mask.grid)
    decoder = decoder_bytes(learned.decoder, {}) if learned.decoder is not None else b""
    return FoldResult(decoder, scores, learned.losses, learned.said)


# learning ------------------------------------------------------------------------------------------------------------


class Learned(NamedTuple):
    """maps_of: what is said of a session, as below; decoder: where one was trained; losses, said: as of FoldResult."""

    maps_of: Callable[[SessionMaps], np.ndarray]
    decoder: Decoder | None
    losses: list[float]
    said: str


def learn(
    approach: Approach, training: Sequence[SessionMaps], recipe: Recipe, *, class_count: int, device: str
) -> Learned:
    """What an approach makes of these sessions."""
    if approach in LEARNED:
        trained, losses = train_decoder(training, recipe, class_count=class_count, device=device)
        maps_of = functools.partial(decoder_maps, trained, batch_size=recipe.batch_size, device=device)
        return Learned(maps_of, trained, losses, "")
    if approach == "atlas":
        return Learned(functools.partial(atlas_maps, atlas_of(training, class_count)), None, [], "")
    chosen = choose_threshold(training)
    return Learned(functools.partial(threshold_maps, chosen), None, [], chosen.text)


def train_decoder(
    sessions: Sequence[SessionMaps], recipe: Recipe, *, class_count: int, device: str
) -> tuple[Decoder, list[float]]:
    """A decoder learned from all slices of these sessions, in evaluation mode; and its losses, some fifty of them."""
    from monai.losses.dice import DiceCELoss  # seconds

    first = sessions[0]
    decoder = Decoder(
        features=first.tokens.shape[2],
        classes=class_count + 1,
        width=recipe.width,
        patches=round(first.tokens.shape[1] ** 0.5),
        size_px=first.pixels.shape[2],
        seed=recipe.seed,
    ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU
    loss = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False, batch=True)
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.steps)
    slices = Slices(sessions, class_count)
    losses = []
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(recipe.seed)  # of dropout
        for step in range(recipe.steps):
            batch = slices.batch(recipe.batch_size, np.random.default_rng([recipe.seed, step]), device=device)
            value = loss(decoder(batch.tokens, batch.pixels, batch.heights), batch.classes[:, None])
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            rates.step()
            if step % max(1, recipe.steps // 50) == 0:
                losses.append(float(value.detach()))
    if not all(bool(torch.isfinite(weights).all()) for weights in decoder.parameters()):
        raise InputError("the decoder's weights are not finite after training; lower task.decoder.learning_rate")
    return decoder.eval(), losses


class Batch(NamedTuple):
    """tokens float (b, N, F), pixels uint8 (b, 3, S, S), heights float (b,), classes int64 (b, S, S)."""

    tokens: Tensor
    pixels: Tensor
    heights: Tensor
    classes: Tensor


class Slices:
    """The slices of several sessions, to draw batches from."""

    def __init__(self, sessions: Sequence[SessionMaps], class_count: int) -> None:
        self._sessions = sessions
        self._all = [(own, row) for own, session in enumerate(sessions) for row in range(len(session))]
        holders: list[list[tuple[int, int]]] = [[] for _ in range(class_count)]
        for own, session in enumerate(sessions):
            for row, classes in enumerate(session.classes):
                for k in np.flatnonzero(np.bincount(classes.ravel(), minlength=class_count + 1)[1:]):
                    holders[k].append((own, row))
        self._holders = [those for those in holders if those]

    def batch(self, size: int, random: np.random.Generator, *, device: str) -> Batch:
        """Every second slice is one that holds a class which was drawn, as long as any slice holds one."""
        drawn = []
        for place in range(size):
            pool = self._all
            if self._holders and place % 2 == 0:
                pool = self._holders[int(random.integers(len(self._holders)))]
            drawn.append(pool[int(random.integers(len(pool)))])

        def stacked(name: str) -> Tensor:
            rows = np.stack([getattr(self._sessions[own], name)[row] for own, row in drawn])
            return torch.from_numpy(rows).to(device)

        return Batch(stacked("tokens").float(), stacked("pixels"), stacked("heights"), stacked("classes").long())


# what approaches say of a session, float16 (n, K, S, S) ---------------------------------------------------------------


@torch.inference_mode()
def decoder_maps(decoder: Decoder, session: SessionMaps, *, batch_size: int, device: str) -> np.ndarray:
    """The probability of each class in each pixel."""
    pieces = []
    for at in range(0, len(session), batch_size):
        own = slice(at, at + batch_size)
        tokens, pixels, heights = (
            torch.from_numpy(np.array(array[own])).to(device)
            for array in (session.tokens, session.pixels, session.heights)
        )
        pieces.append(decoder(tokens.float(), pixels, heights).softmax(dim=1).half().cpu().numpy())
    return np.concatenate(pieces)


def atlas_of(sessions: Sequence[SessionMaps], class_count: int) -> np.ndarray:
    """How often each pixel is of each class, by bands of height: float32 (bands, K, S, S)."""
    size_px = sessions[0].classes.shape[1]
    counts = np.zeros((ATLAS_BANDS, class_count + 1, size_px, size_px), np.float32)
    for session in sessions:
        bands = _bands(session.heights)
        for band, classes in zip(bands, session.classes, strict=True):
            for k in range(class_count + 1):
                counts[band, k] += classes == k
    total = counts.sum(axis=1, keepdims=True)
    counts[:, :1] += total == 0  # where no slice was seen there is background
    return counts / np.maximum(total, 1)


def atlas_maps(atlas: np.ndarray, session: SessionMaps) -> np.ndarray:
    return atlas[_bands(session.heights)].astype(np.float16)


def _bands(heights: np.ndarray) -> np.ndarray:
    return np.minimum((heights * ATLAS_BANDS).astype(np.intp), ATLAS_BANDS - 1)


class Threshold(NamedTuple):
    """The pixels of a channel from `lowest` to `highest`, both included."""

    channel: int
    lowest: int
    highest: int
    dice: float

    @property
    def text(self) -> str:
        if self.lowest > self.highest:
            return "nothing, since nothing was drawn"
        return f"channel {self.channel + 1}, grey values {self.lowest} to {self.highest}"


NOWHERE = Threshold(0, lowest=1, highest=0, dice=-1.0)
"""No pixel is within."""


def choose_threshold(sessions: Sequence[SessionMaps]) -> Threshold:
    """The channel, the side and the grey value with the largest mean Dice in the slices of these sessions.

    Sessions without the class tell nothing, and where there are no others no pixel is within. Black, which lies outside
    of heads, is never.
    """
    inside, outside = np.zeros((2, len(sessions), 3, 256))
    for number, session in enumerate(sessions):
        within = session.classes > 0
        for channel in range(3):
            greys = session.pixels[:, channel]
            inside[number, channel] = np.bincount(greys[within], minlength=256)
            outside[number, channel] = np.bincount(greys[~within], minlength=256)
    there = inside.sum(axis=2, keepdims=True)
    with_class = there[:, 0, 0] > 0
    best = NOWHERE
    for upwards in (True, False) if with_class.any() else ():
        hit, false = (_running(counts[with_class, :, 1:], upwards) for counts in (inside, outside))
        dice = np.mean(2 * hit / (hit + false + there[with_class]), axis=0)  # (3, 255), of the grey values from 1
        channel, at = (int(place) for place in np.unravel_index(dice.argmax(), dice.shape))
        if dice[channel, at] > best.dice:
            ends = (at + 1, 255) if upwards else (1, at + 1)
            best = Threshold(channel, ends[0], ends[1], float(dice[channel, at]))
    return best


def _running(counts: np.ndarray, upwards: bool) -> np.ndarray:
    """Sums from each grey value to the brightest, or from the darkest to it."""
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1] if upwards else counts.cumsum(axis=-1)


def threshold_maps(chosen: Threshold, session: SessionMaps) -> np.ndarray:
    greys = session.pixels[:, chosen.channel]
    inside = (greys >= chosen.lowest) & (greys <= chosen.highest)
    return np.stack([~inside, inside], axis=1).astype(np.float16)


# judging -------------------------------------------------------------------------------------------------------------


def judge(study: Segmented, number: int, session: SessionMaps, maps: np.ndarray) -> tuple[Score, Mask | None]:
    """How a session came out, and its labels on the voxels of the segmentation's file; None where that is lost."""
    where = study.drawn_on[number]
    try:
        drawn = _drawn(where, study.labels)
    except StorageError:  # it may be there again the next time
        raise
    except BfpError as error:
        predicted = maps.argmax(axis=1)
        spacing_mm = (study.spacing_mm[2], *study.spacing_mm[:2])
        found = overlaps(
            _whole(predicted, session.slices),
            _whole(session.classes, session.slices),
            class_count=study.class_count,
            spacing_mm=spacing_mm,
        )
        return Score(number, "working", str(error), found), None
    assert where.working is not None
    labels = labels_on(
        maps,
        slices=session.slices,
        working=where.working,
        native=drawn.grid,
        reference_ras_from_scan_ras=where.reference_ras_from_scan_ras,
    )
    found = overlaps(labels, drawn.classes, class_count=study.class_count, spacing_mm=drawn.grid.spacing_mm)
    return Score(number, "native", "", found), Mask(labels, drawn.header, drawn.grid)


class Mask(NamedTuple):
    """labels: uint8 (i, j, k), of the voxels of a file with this raw header."""

    labels: np.ndarray
    header: bytes
    grid: Grid


class _Drawn(NamedTuple):
    """classes uint8 (i, j, k), on the grid of their file, with its raw header."""

    grid: Grid
    classes: np.ndarray
    header: bytes


def _drawn(where: DrawnOn, labels: Labels) -> _Drawn:
    """The segmentation in its own file. Raises BfpError where it cannot be had any more."""
    if fault := where.fault():
        raise InputError(fault)
    volume = decode(where.labels.read(), may_be_blank=True)
    values = volume.scaled(volume.stored).astype(np.uint16)
    return _Drawn(volume.grid, labels.classes_of(values), volume.header)


def _whole(planes: np.ndarray, slices: np.ndarray) -> np.ndarray:
    """Slices (n, S, S) where they stand among all from the first to the last."""
    volume = np.zeros((int(slices[-1] - slices[0]) + 1, *planes.shape[1:]), planes.dtype)
    volume[slices - slices[0]] = planes
    return volume


# kept ----------------------------------------------------------------------------------------------------------------


def dump_fold(fold: FoldResult) -> bytes:
    """As safetensors: the decoder's weights, if any, and all else as JSON in the metadata."""
    told = {
        "scores": json.dumps([[*score[:3], [list(own) for own in score.overlaps]] for score in fold.scores]),
        "losses": json.dumps(fold.losses),
        "said": fold.said,
    }
    return safetensors.numpy.save({"decoder": np.frombuffer(fold.decoder, np.uint8)}, metadata=told)


def load_fold(data: bytes) -> FoldResult:
    told = header_of(data).metadata
    scores = [
        Score(session, space, why, [Overlap(*own) for own in found])
        for session, space, why, found in json.loads(told["scores"])
    ]
    decoder = safetensors.numpy.load(data)["decoder"].tobytes()
    return FoldResult(decoder, scores, json.loads(told["losses"]), told["said"])

"""Which patches the student does not see: random blocks on a share of the global crops (Zhou et al. 2021; DINOv2).

As the released code does it:
- exactly ⌊2·B · probability⌋ of a batch's global crops are masked; which ones is shuffled;
- their target shares are stratified: the i-th lies in the i-th equal slice of the ratio's range;
- a mask is a union of rectangles, strictly smaller than the grid on both sides, of an area uniform between 4 patches
  and what is still missing (at most about half the grid), of a log-uniform aspect ratio between 0.3 and 1/0.3; a
  rectangle that would overshoot is drawn again, and after ten vain tries the mask is left a little short.

Departures: all crops' rectangles are drawn side by side, by place in the global batch, so that workers agree and no
loop runs over crops; with `constant=True` each target is the middle of its slice and what is short is filled up with
single patches, so that every batch masks the same number: varying numbers made memory grow from step to step on a
CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from bfp.pretraining.crops import LARGE_CROPS
from bfp.pretraining.device import send
from bfp.pretraining.draws import Draws

SMALLEST_BLOCK = 4  # patches
ASPECT = 0.3  # smallest height over width; its inverse is the largest
TRIES = 10  # rectangles drawn in vain before a mask is left short
VISIBLE_SHARE = 0.15  # of a crop's patches, predicted although the student sees them, where the teacher has own views


class Masked(NamedTuple):
    """The patches of 2·B global crops that are hidden and those that are predicted, crop-major, on the training device.

    masks: bool (2·B, N). indices: int64 (M,) of the patches to predict in the flattened (2·B · N): the hidden ones, or
    those of `head_patches`. weights: float32 (M,), of their losses, which are divided by 2·B; as published, one over
    the number of hidden patches in the same crop. `head_patches` leaves them to be scaled by `evened`.
    """

    masks: Tensor
    indices: Tensor
    weights: Tensor


def masked(masks: np.ndarray, *, device: torch.device) -> Masked:
    """masks (2·B, N) with the indices and weights that the iBOT loss needs, on the device."""
    indices = np.flatnonzero(masks)
    weights = (1.0 / np.maximum(masks.sum(1), 1)).astype(np.float32)[indices // masks.shape[1]]
    return Masked(*(send(torch.from_numpy(array), device) for array in (masks, indices, weights)))


def head_patches(masks: np.ndarray, *, head: Tensor, draws: Draws, smallest_ratio: float) -> Masked:
    """The patches to predict where the teacher sees the crops in another contrast: of the head, hidden and visible.

    masks: bool (2·B, N). head: float (2·B, N) on the device, the share of head in a patch. Of each masked crop as many
    hidden patches as the least masked one has, smallest_ratio · N; of every crop VISIBLE_SHARE · N visible ones.
    Patches with head come first, chosen at random; air would take half of the prototypes. All weigh 1, but for one
    that had to stand in where a crop has too few of its kind: it weighs nothing.
    """
    N = masks.shape[1]
    order = send(torch.from_numpy(_crop_major(draws.uniform("patch order", LARGE_CROPS, N))), head.device)
    order = order + (head > 0.5)
    hidden = send(torch.from_numpy(masks), head.device)
    masked_crops = send(torch.from_numpy(np.flatnonzero(masks.any(1))), head.device)
    every_crop = torch.arange(len(masks), device=head.device)

    def first(wanted: Tensor, crops: Tensor, count: int) -> tuple[Tensor, Tensor]:
        best = torch.where(wanted, order, -1.0)[crops].topk(count, dim=1)
        return (crops[:, None] * N + best.indices).flatten(), (best.values >= 0).flatten()

    indices, counted = (
        torch.cat(parts)
        for parts in zip(
            first(hidden, masked_crops, int(smallest_ratio * N)),
            first(~hidden, every_crop, max(1, int(VISIBLE_SHARE * N))),
            strict=True,
        )
    )
    return Masked(hidden, indices, counted.float())


def evened(parts: Sequence[Masked], *, group: ProcessGroup | None) -> list[Masked]:
    """The patches of a worker's micro-batches, weighed by 2·B over how many of them count.

    group: the workers whose patches and crops these are, None for this one's alone. So a patch weighs the same in
    whatever part of the batch it is computed.
    """
    crops = sum(len(part.masks) for part in parts) * (dist.get_world_size(group) if group else 1)
    count = torch.stack([part.weights.sum() for part in parts]).sum()
    if group is not None:
        dist.all_reduce(count, group=group)
    return [part._replace(weights=part.weights * (crops / count.clamp(min=1))) for part in parts]


def block_masks(
    draws: Draws, *, grid: tuple[int, int], ratio: tuple[float, float], probability: float, constant: bool = False
) -> np.ndarray:
    """bool (2 · count, N): the masks of this worker's global crops, all first crops, then all second ones.

    grid: (rows, columns) of patches. ratio: smallest and largest share of a masked crop that is hidden.
    probability: share of the global batch's global crops that are masked.
    """
    patches = grid[0] * grid[1]
    crops = LARGE_CROPS * draws.total
    chosen = int(crops * probability)
    edges = np.linspace(ratio[0], ratio[1], chosen + 1)
    # Slice i of the range for the i-th crop in shuffled order, -1 for a crop that is not masked.
    order = draws.shuffled("mask order", crops).reshape(LARGE_CROPS, draws.total)
    slices = np.where(order < chosen, order, -1)[:, draws.first : draws.first + draws.count].ravel()
    place = (
        np.full_like(slices, 0.5, dtype=float) if constant else _crop_major(draws.uniform("mask share", LARGE_CROPS))
    )
    shares = edges[slices] + (edges[np.minimum(slices + 1, chosen)] - edges[slices]) * place
    # The released code rounds down; rounding up an exact middle would be as good, but differ between machines.
    targets = np.where(slices >= 0, (patches * shares).astype(int), 0)
    masks = _blocks(draws, targets=targets, grid=grid)
    return _topped_up(draws, masks, targets=targets) if constant else masks


def largest_block(grid: tuple[int, int]) -> int:
    """The most patches that one rectangle may have: half the grid, the half of its rows rounded down."""
    return (grid[0] // 2) * grid[1]


def _blocks(draws: Draws, *, targets: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Unions of random rectangles with at most `targets` (crops,) patches; bool (crops, N)."""
    rows, columns = grid
    crops = len(targets)
    masks = np.zeros((crops, rows, columns), dtype=bool)
    covered = np.zeros(crops, dtype=int)
    vain = np.zeros(crops, dtype=int)
    row, column = np.arange(rows)[None, :, None], np.arange(columns)[None, None, :]
    # Each round draws one rectangle for every mask that still wants one. Rounds are drawn in batches of TRIES.
    attempt = 0
    while len(open_masks := np.flatnonzero((covered < targets) & (vain < TRIES))):
        if attempt % TRIES == 0:
            drawn = _crop_major(draws.uniform(f"blocks {attempt // TRIES}", LARGE_CROPS, TRIES, 4))
        area_draw, aspect_draw, top_draw, left_draw = drawn[open_masks, attempt % TRIES].T
        attempt += 1
        room = np.minimum(targets - covered, largest_block(grid))[open_masks]
        area = SMALLEST_BLOCK + area_draw * (room - SMALLEST_BLOCK)
        aspect = np.exp((2 * aspect_draw - 1) * np.log(1 / ASPECT))  # height over width
        height = np.rint(np.sqrt(area * aspect)).astype(int)
        width = np.rint(np.sqrt(area / aspect)).astype(int)
        fits = (height < rows) & (width < columns)
        top = (top_draw * (rows - height + 1)).astype(int)[:, None, None]
        left = (left_draw * (columns - width + 1)).astype(int)[:, None, None]
        inside = (
            (row >= top)
            & (row < top + height[:, None, None])
            & (column >= left)
            & (column < left + width[:, None, None])
        )
        gained = (inside & ~masks[open_masks]).sum((1, 2))
        taken = fits & (gained > 0) & (gained <= room)
        masks[open_masks[taken]] |= inside[taken]
        covered[open_masks] += np.where(taken, gained, 0)
        vain[open_masks] = np.where(taken, 0, vain[open_masks] + 1)
    return masks.reshape(crops, rows * columns)


def _topped_up(draws: Draws, masks: np.ndarray, *, targets: np.ndarray) -> np.ndarray:
    """The masks with single random patches added until each has its target."""
    scores = _crop_major(draws.uniform("top up", LARGE_CROPS, masks.shape[1]))
    rank = np.argsort(np.argsort(scores + masks * 2.0, axis=1), axis=1)  # free patches first, in random order
    return masks | (rank < (targets - masks.sum(1))[:, None])


def _crop_major(drawn: np.ndarray) -> np.ndarray:
    """(count, 2, …) -> (2 · count, …)."""
    return drawn.swapaxes(0, 1).reshape(-1, *drawn.shape[2:])

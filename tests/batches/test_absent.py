"""Absent channels: hidden and filled the same way everywhere."""

from __future__ import annotations

import torch

from bfp.batches.absent import fill_absent

PIXELS = torch.arange(1, 37, dtype=torch.uint8).reshape(3, 3, 2, 2)
PRESENT = torch.tensor([[True, True, True], [False, True, True], [False, False, False]])


def test_absent_channels_are_zeros_and_present_ones_untouched() -> None:
    filled = fill_absent(PIXELS, PRESENT)
    assert filled.dtype == torch.uint8
    assert torch.equal(filled[0], PIXELS[0])
    assert filled[1, 0].sum() == 0
    assert torch.equal(filled[1, 1:], PIXELS[1, 1:])
    assert filled[2].sum() == 0


def test_absent_channels_repeat_the_first_present_one() -> None:
    filled = fill_absent(PIXELS, PRESENT, "repeat")
    assert torch.equal(filled[0], PIXELS[0])
    assert torch.equal(filled[1], PIXELS[1][[1, 1, 2]])
    assert filled[2].sum() == 0


def test_filling_twice_is_filling_once() -> None:
    for how in ("zero", "repeat"):
        once = fill_absent(PIXELS, PRESENT, how)
        assert torch.equal(fill_absent(once, PRESENT, how), once)

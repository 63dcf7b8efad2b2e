"""What a run came to, in one line, from the figures in its results.json; for the page, `bfp runs` and `bfp demo`.

A figure with an interval stands as three: `auroc`, `auroc_low`, `auroc_high`.
"""

from __future__ import annotations

from collections.abc import Mapping

from bfp.reports.blocks import Cell
from bfp.reports.numbers import interval_text, number_text
from bfp.words import counted

# what is counted: (figure, of what, what became of them)
_COUNTS = {
    "ingest": [("stacks", "stack", ""), ("scans", "scan", ""), ("rejected", "scan", " left out")],
    "infer": [("sessions", "session", " predicted"), ("rejected", "scan", " left out")],
    "pretrain": [("steps", "step", "")],
}
# what is estimated, with its interval: (figure, what it is called)
_ESTIMATES = {
    "pretrain": [("tissue_r2_pretrained", "tissue R²"), ("tissue_r2_untrained", "untrained")],
    "finetune": [
        ("auroc", "AUROC"),
        ("auroc_untrained", "untrained"),
        ("mae", "mean absolute error"),
        ("r2", "R²"),
        ("c_index", "concordance"),
        ("dice", "Dice"),
        ("dice_atlas", "atlas"),
    ],
    "benchmark": [
        ("auroc", "AUROC"),
        ("auroc_histograms", "histograms"),
        ("mae", "mean absolute error"),
        ("mae_histograms", "histograms"),
        ("c_index", "concordance"),
        ("c_index_histograms", "histograms"),
        ("dice", "Dice"),
        ("dice_atlas", "atlas"),
    ],
}


def headline(kind: str, figures: Mapping[str, Cell]) -> str:
    """Such as "600 steps, loss 9.10 → 5.21, tissue R² 0.26 [0.24, 0.28]"; "" where nothing is known."""
    parts = [
        counted(count, one) + fate
        for name, one, fate in _COUNTS.get(kind, [])
        if isinstance(count := figures.get(name), int)
    ]
    if {"loss_first", "loss_last"} <= figures.keys():
        first, last = (_number(figures[name]) for name in ("loss_first", "loss_last"))
        parts.append(f"loss {number_text(first)} → {number_text(last)}")
    parts += [f"{label} {estimate(name, figures)}" for name, label in _ESTIMATES.get(kind, []) if name in figures]
    return ", ".join(parts)


def estimate(name: str, figures: Mapping[str, Cell]) -> str:
    """The figure `name` with its interval, if it has one, as text."""
    value = _number(figures.get(name))
    if f"{name}_low" not in figures:
        return number_text(value)
    return interval_text(value, _number(figures[f"{name}_low"]), _number(figures[f"{name}_high"]))


def _number(cell: Cell) -> float | None:
    return None if isinstance(cell, str) else cell

"""The command line in this process, and run folders to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from bfp.cli.main import run
from bfp.errors import Interrupted
from bfp.reports.blocks import (
    Curves,
    Facts,
    Histogram,
    IntervalRow,
    Intervals,
    Picture,
    Results,
    Roc,
    RocCurve,
    Table,
    Text,
)
from bfp.runs import Run
from bfp.storage import Place

SPEC = "kind: pretrain\nname: brain\noutput: {output}\nstore: stores/a\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def bfp(capsys: pytest.CaptureFixture[str], *arguments: object) -> Answer:
    """Run one command line in this process."""
    capsys.readouterr()
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Answer(code, captured.out, captured.err)


RESULTS = Results(
    {"steps": 4, "loss_first": 9.1, "loss_last": 5.21, "tissue_r2_pretrained": None},
    [
        Facts("Training", [("device", "2 CPUs"), ("steps", 4)]),
        Table("Folds", ["fold", "AUROC"], [["first", 0.81], ["second", None]], note="By subject."),
        Curves("Losses", ["loss"], "loss, nats"),
        Intervals("Tissue", [IntervalRow("pretrained", 0.262, 0.241, 0.283)], "residual R²"),
        Histogram("Shift", [0.5, 1.5, 12.0], "shift, mm", "scans"),
        Picture("Slices", "pictures/qc.png", "Anterior up."),
        Roc("ROC", [RocCurve("model", [0.0, 1.0], [0.0, 1.0])]),
        Text("Methods", ["We trained."]),
    ],
)


def make_run(output: Place, name: str = "brain", *, outcome: str = "done") -> Run:
    """A finished run with every sort of block, or one that was stopped, or failed."""
    made = Run(output / name, spec_yaml=SPEC.format(output=output), kind="pretrain", version="0.1")
    errors = {"interrupted": Interrupted("3 steps stand"), "failed": ValueError("no good <at all>")}
    try:
        with made:
            made.phase("training", total=4, unit="steps")
            for step in range(1, 5):
                made.figures(step, {"loss": 10.0 / step})
                made.progress(step, loss=10.0 / step)
            made.warn("one session lacks a T1w")
            if outcome in errors:
                raise errors[outcome]
            made.result(RESULTS.as_json())
            (made.folder / "model" / "config.json").write(b"{}")
            (made.folder / "model" / "deep" / "model.safetensors").write(b"weights")
    except (Interrupted, ValueError):
        pass
    return made

"""The command line in this process, and run folders to look at."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from bfp.cli.main import run
from bfp.errors import Interrupted
from bfp.reports.blocks import Results
from bfp.runs import Run
from bfp.storage import Place
from tests.reports.makers import BLOCKS

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


RESULTS = Results({"steps": 4, "loss_first": 9.1, "loss_last": 5.21, "tissue_r2_pretrained": None}, BLOCKS)


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
            config = b'{"architecture": "vit", "model_args": {}, "pretrained_cfg": {}}'
            for name in ("model.json", "head.safetensors", "README.md"):
                (made.folder / "model" / name).write(b"{}")
            (made.folder / "model" / "encoder" / "config.json").write(config)
            (made.folder / "model" / "encoder" / "model.safetensors").write(b"weights")
    except (Interrupted, ValueError):
        pass
    return made

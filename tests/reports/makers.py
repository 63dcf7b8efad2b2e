"""Run folders to report on, made by the run itself, and results with every kind of block."""

from __future__ import annotations

from pathlib import Path

from bfp.reports.blocks import (
    Bar,
    Bars,
    Block,
    Curves,
    Facts,
    Histogram,
    IntervalRow,
    Intervals,
    Picture,
    Reliability,
    ReliabilityCurve,
    Results,
    Roc,
    RocCurve,
    Scatter,
    Table,
    Text,
    TrendLine,
    Trends,
)
from bfp.reports.pictures import SessionSlices, mosaic
from bfp.runs import Run, RunFolder
from bfp.storage import Place
from tests.reports.heads import head

SPEC = "kind: pretrain\nname: small\n"

BLOCKS: list[Block] = [
    Facts("What ran on what", [("encoder", "vit_small"), ("stacks", 1932)]),
    Table("Scans", ["modality", "scans"], [["T1w", 50], ["FLAIR", None]], note="One cohort."),
    Curves("Losses", ["loss", "dino"], "loss, nats"),
    Intervals(
        "AUROC by encoder",
        [IntervalRow("pretrained", 0.83, 0.76, 0.9, [0.8, None]), IntervalRow("permuted", None, None, None)],
        "AUROC, 1",
        reference=0.5,
    ),
    Roc("ROC curves", [RocCurve("pretrained", [0.0, 0.2, 1.0], [0.0, 0.8, 1.0])]),
    Reliability("Calibration", [ReliabilityCurve("AD", [0.2, 0.8], [0.3, None], [0.1, None], [0.5, None])]),
    Histogram("Shift", [0.3, 0.4, 1.1, 12.2], "displacement, mm", "scans", flag_above=5.0),
    Bars(
        "Encoders",
        ["all"],
        ["ours", "theirs"],
        [[Bar(0.8, 0.7, 0.9, [0.8]), Bar(0.6, 0.5, 0.7, [], "*")]],
        "AUROC",
        0.5,
    ),
    Trends("Few labels", [TrendLine("ours", [20.0, 80.0], [0.7, 0.8], [0.6, 0.7], [0.8, 0.9])], "subjects", "AUROC"),
    Scatter("Age", [50.0, 60.0], [55.0, 61.0], "age, years", "said, years"),
    Picture("Slices", "pictures/qc.png", "Left of the picture is the patient's left."),
    Text("Methods", ["Stacks were made.", "Then an encoder."]),
]


def small_run(folder: Path, *, results: Results | None = None, error: Exception | None = None) -> RunFolder:
    """A pretraining run in `folder`, ended well or by `error`, with logged losses and one picture."""
    here = Place(str(folder))
    try:
        with Run(here, spec_yaml=SPEC, kind="pretrain", version="0.1.0") as run:
            run.phase("training", total=20, unit="steps")
            for step in range(20):
                run.figures(step, {"loss": 9.0 - step / 4, "dino": 5.0 - step / 8})
                run.progress(step + 1)
            run.warn("the teacher sleeps")
            run.warn("the teacher sleeps")
            channels = SessionSlices("sub-01", head(n=2, channels=3), ("T1w", "T2w", "FLAIR"), (True, False, True))
            (here / "pictures" / "qc.png").write(mosaic([channels], axis="axial"))
            if error is not None:
                raise error
            run.result((results or Results({"steps": 20}, BLOCKS)).as_json())
    except Exception as raised:
        if raised is not error:
            raise
    return RunFolder(here)

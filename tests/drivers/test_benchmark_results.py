"""The figures of a benchmark's page, of rows that are made."""

import numpy as np
import pytest

from bfp.drivers.benchmark_figures import Judged, Row, Where
from bfp.drivers.benchmark_material import Material, SegmentationMaterial, Shown, Stacks, _names
from bfp.drivers.benchmark_results import _figures
from bfp.finetuning.labels import Labelled
from bfp.metrics.bootstrap import Interval
from bfp.metrics.over_folds import OverFolds
from bfp.specs import Benchmark

SEGMENTATION = {"type": "segmentation", "target": "ball"}


def a_spec(*tasks):
    return Benchmark.model_validate(
        {
            "kind": "benchmark",
            "name": "balls",
            "output": "runs",
            "store": "store",
            "encoders": {"ours": "random:vit_small_patch14_dinov2"},
            "tasks": list(tasks),
        }
    )


def row(learned, tested, approach, dice, p=None):
    figure = OverFolds(Interval(dice, dice - 0.02, dice + 0.02), [dice] * 4, 8)
    return Row(
        Where("ball", "", learned, tested, 1.0, approach), "segmentation", 8, 8, 6, Judged(figure, {}, 1, None, p, p), p
    )


def test_what_sees_no_image_has_a_mark_only_beside_the_bar_that_it_was_tested_against():
    both, less = Shown("T1w+T2w", ("T1w", "T2w")), Shown("T2w", ("T2w",))
    spec, nobody = a_spec(SEGMENTATION), Labelled([], np.zeros(0, np.int64), [], {})
    task = SegmentationMaterial("ball", spec.tasks[0], nobody, [], {}, {}, {}, {}, {})
    material = Material([both, less], Stacks(None, None, {}), {}, [task])
    rows = [
        row("T1w+T2w", "T1w+T2w", "ours", 0.8),
        row("T1w+T2w", "T2w", "ours", 0.3),
        row("T2w", "T2w", "ours", 0.3),
        row("", "", "atlas", 0.3, p=0.0004),
    ]
    blocks = _figures(spec, material, task, rows)
    marks = [dict(zip(block.groups, [bars[1].mark for bars in block.bars], strict=True)) for block in blocks]
    assert marks == [{"T1w+T2w": "***", "T2w": ""}, {"all": "***", "T2w only": ""}]
    assert all("tested against ours with T1w+T2w, and has a mark there alone" in block.note for block in blocks)


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ([SEGMENTATION, {"type": "regression", "target": "age"}], ["ball", "age"]),
        (
            [SEGMENTATION, {**SEGMENTATION, "decoder": {"layers": "intermediate"}}],
            ["ball (layers last)", "ball (layers intermediate)"],
        ),
        ([SEGMENTATION, {"type": "regression", "target": "ball"}], ["ball (segmentation)", "ball (regression)"]),
        (
            [{"type": "survival", "time": time, "event": "event"} for time in ("months", "years")],
            ["months to event", "years to event"],
        ),
        (
            [{"type": "classification", "target": "dx", "classes": ["CN", other]} for other in ("AD", "MCI")],
            ["dx (CN, AD)", "dx (CN, MCI)"],
        ),
    ],
)
def test_tasks_that_would_be_called_alike_are_told_apart_by_what_differs(tasks, names):
    assert _names(a_spec(*tasks).tasks) == names

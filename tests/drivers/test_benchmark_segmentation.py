"""A benchmark whose task is a segmentation, from real files through stores to the table."""

import csv
import io
import json

import numpy as np
import pytest

from bfp.drivers import benchmark
from bfp.errors import InputError
from bfp.reports.blocks import results_from_json
from bfp.runs import Run
from bfp.specs import Benchmark
from bfp.storage import place
from tests.drivers.segmented import cohort_spec, write_cohort
from tests.drivers.test_finetune_segmentation import DECODER, SHAPE, ingested

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store and an outside one; the balls show in T1w alone."""
    found = []
    for seed, (name, subjects) in enumerate({"within": 6, "outside": 2}.items()):
        folder = tmp_path_factory.mktemp(name)
        write_cohort(folder / "bids", subjects=subjects, seed=seed, hidden_in="T2w")
        found.append(ingested(folder, cohort_spec(folder / "bids")).uri)
    return found


def a_spec(stores, output, **fields):
    told = {
        "kind": "benchmark",
        "name": "balls",
        "output": str(output),
        "store": stores[0],
        "external": {"elsewhere": stores[1]},
        "encoders": {"one": "random:vit_small_patch14_dinov2"},
        "encoder_shape": SHAPE,
        "tasks": [{"type": "segmentation", "target": "ball", "decoder": DECODER}],
        "label_fractions": [0.5, 1.0],
        "modalities": [["T1w", "T2w"], ["T2w"]],
        "folds": 2,
        "compute": {"workers": 1},  # each loads torch, timm and MONAI, which takes longer than what it has to do here
    }
    return Benchmark.model_validate(told | fields)


def execute(spec):
    events, folder = [], place(spec.output) / spec.name
    with Run(folder, spec_yaml="", kind="benchmark", version="0", listener=events.append) as run:
        benchmark.execute(spec, run)
    return folder, events


@pytest.fixture(scope="module")
def run(stores, tmp_path_factory):
    return execute(a_spec(stores, tmp_path_factory.mktemp("runs")))[0]


def rows_of(run, measure="dice"):
    rows = list(csv.DictReader(io.StringIO((run / "results.csv").read().decode())))
    return {tuple(row.values())[1:6]: row for row in rows if row["measure"] == measure}


def test_what_shows_is_found_within_and_outside_and_better_than_by_an_atlas(run):
    rows, both, within = rows_of(run), ("T1w+T2w", "T1w+T2w"), "cross-validation"
    dice = {key: float(row["value"]) for key, row in rows.items()}
    for cohort in (within, "elsewhere"):
        assert dice[cohort, *both, "1.0", "one"] > 0.4 > dice[cohort, "", "", "1.0", "atlas"]
        assert dice[cohort, *both, "1.0", "one"] > dice[cohort, "T2w", "T2w", "1.0", "one"] + 0.2
    assert dice[within, *both, "1.0", "one"] > dice[within, "T1w+T2w", "T2w", "1.0", "one"] + 0.2
    assert float(rows[within, "", "", "1.0", "atlas"]["ours_better_low"]) > 0


def test_there_is_a_row_for_every_share_set_and_approach_and_one_of_each_figure(run):
    shown = [("T1w+T2w", "T1w+T2w"), ("T1w+T2w", "T2w"), ("T2w", "T2w")]
    within = {("cross-validation", *own, share) for own in shown for share in ("0.5", "1.0")}
    outside = {("elsewhere", *own, share) for own in shown if own[0] == own[1] for share in ("0.5", "1.0")}
    rows = rows_of(run)
    for approach in ("one", "threshold"):
        assert {key[:4] for key in rows if key[4] == approach} == within | outside
    assert {key[0] for key in rows if key[4] == "atlas"} == {"cross-validation", "elsewhere"}
    assert rows.keys() == rows_of(run, "hd95_mm").keys() == rows_of(run, "dice_ball").keys()
    learned = {key[3]: row["learned_subjects"] for key, row in rows.items() if key[4] == "one"}
    assert learned == {"0.5": "2.0", "1.0": "3.0"}


def test_the_page_shows_the_papers_figures_and_says_how_it_was_segmented(run):
    results = results_from_json(json.loads((run / "results.json").read()))
    titles = [block.title for block in results.blocks]
    assert titles[:4] == ["ball: encoders", "ball: few labels", "ball: missing modalities", "ball: outside cohorts"]
    methods = next(block for block in results.blocks if block.title == "Methods").paragraphs
    assert methods[0].startswith("ball was segmented slice by slice")
    assert results.figures["dice"] == pytest.approx(
        float(rows_of(run)["cross-validation", "T1w+T2w", "T1w+T2w", "1.0", "one"]["value"])
    )


def test_adding_a_share_and_an_encoder_learns_only_what_is_new(run, stores):
    def files():
        return {name: (run / "cells" / name).read() for name in (run / "cells").names()}

    before = files()
    more = {"two": "random:vit_small_patch14_dinov2", "one": "random:vit_small_patch14_dinov2"}
    spec = a_spec(stores, run.parent, encoders=more, label_fractions=[1.0])
    assert execute(spec)[0] == run
    after = files()
    assert {name: after[name] for name in before} == before
    new = {name.partition("-")[0] for name in after.keys() - before.keys()}
    assert "one" not in new
    assert "two" in new


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": [{"type": "segmentation", "target": "bal"}]}, "bal"),
        ({"modalities": [["T1w"], ["FLAIR"]]}, "no session has stacks of every set of `modalities`"),
        ({"folds": 7}, "fewer than 7 folds"),
    ],
)
def test_what_is_wrong_is_said_by_the_plan(stores, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        benchmark.plan(a_spec(stores, tmp_path, **fields))
    assert list(tmp_path.iterdir()) == []


def test_the_plan_counts_tokens_and_cells(stores, tmp_path):
    plan = benchmark.plan(a_spec(stores, tmp_path))
    rows = dict(plan.rows)
    assert rows["beside them"] == "atlas, threshold"
    assert "vectors" not in rows
    assert plan.figures["cells"] == 4 + 2 + 4
    assert np.isclose(plan.figures["stacks"], int(rows["tokens"].split()[1].replace(",", "")))

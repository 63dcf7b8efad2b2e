"""A benchmark whose task is a segmentation, from real files through stores to the table."""

import csv
import io
import json
from collections import Counter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from bfp.drivers import benchmark, benchmark_segmentation
from bfp.drivers.benchmark_cells import keys_of
from bfp.drivers.benchmark_material import material_of
from bfp.drivers.benchmark_segmentation import inputs_of, run_segmentations
from bfp.errors import InputError, Interrupted
from bfp.reports.blocks import results_from_json
from bfp.runs import Run
from bfp.specs import Benchmark
from bfp.storage import place
from tests.drivers.segmented import cohort_spec, write_cohort
from tests.drivers.test_finetune_segmentation import DECODER, SHAPE, ingested

pytestmark = pytest.mark.usefixtures("ray_session")


LOST = "00"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store and an outside one; the balls show in T1w alone. One mask of each is gone by then."""
    found = []
    for seed, (name, subjects) in enumerate({"within": 6, "outside": 2}.items()):
        folder = tmp_path_factory.mktemp(name)
        write_cohort(folder / "bids", subjects=subjects, seed=seed, hidden_in="T2w")
        found.append(ingested(folder, cohort_spec(folder / "bids")).uri)
        (lost,) = (folder / "bids").glob(f"derivatives/**/sub-{LOST}_*.nii.gz")
        lost.unlink()
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
def ended(stores, tmp_path_factory):
    return execute(a_spec(stores, tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def run(ended):
    return ended[0]


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
    for figure in ("hd95_mm", "dice_ball", "false_alarms_ball"):
        assert rows.keys() == rows_of(run, figure).keys()
    assert {key[0]: row["defined_sessions"] for key, row in rows.items()} == {
        "cross-validation": "6.0",
        "elsewhere": "2.0",
    }
    assert {row["defined_sessions"] for row in rows_of(run, "false_alarms_ball").values()} == {"0.0"}
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


def test_what_was_not_compared_in_native_space_is_told_with_its_reason_once_for_each_session(ended):
    said = [event["message"] for event in ended[1] if event["event"] == "warning"]
    (warned,) = said
    assert warned == (
        "ball: 2 sessions judged in the working grid of the stacks, not in native space (one, atlas, threshold): the "
        "file of its labels is not there any more"
    )


def test_a_decoder_takes_one_gpu_however_many_there_are_and_what_sees_no_token_takes_none(run, stores, monkeypatch):
    spec, asked = a_spec(stores, run.parent), {}
    material = material_of(spec, run=run)
    inputs = inputs_of(material)
    maps = {at: [run / "features" / name for name in names] for at, names in inputs.pixels.items()}
    keys = [key for name in ("one", "atlas", "threshold") for key in keys_of(spec, material, name, of=material.tasks)]

    def take(function, jobs, **told):
        asked.update(jobs)
        raise Interrupted("before any of them")

    monkeypatch.setattr(benchmark_segmentation, "side_by_side", take)
    told = SimpleNamespace(folder=run, progress=print, stopping=False)
    with pytest.raises(Interrupted):
        run_segmentations(spec, told, material, keys, maps, inputs, at_once=1, gpus=2.0)
    claimed = {(key.approach, job.gpus, job.arguments[-1]) for (key, _), job in asked.items()}
    assert claimed == {("one", 1.0, "cuda"), ("atlas", 0.0, "cpu"), ("threshold", 0.0, "cpu")}


def test_an_encoder_costs_the_time_that_its_maps_took(run):
    results = results_from_json(json.loads((run / "results.json").read()))
    (cost,) = [block for block in results.blocks if block.title == "What it cost"]
    by_name = {row[0]: dict(zip(cost.columns[:4], row, strict=False)) for row in cost.rows}
    assert by_name["one"]["extractions"] == 2
    assert by_name["one"]["took one worker"] != ""
    assert by_name["the best grey threshold"]["extractions"] == 0


@pytest.mark.long
def test_adding_a_share_and_an_encoder_learns_only_what_is_new(run, stores, monkeypatch):
    asked = []
    seen = benchmark_segmentation.labels_seen
    monkeypatch.setattr(benchmark_segmentation, "labels_seen", lambda study: asked.append(study) or seen(study))

    def files():
        return {name: (run / "cells" / name).read() for name in (run / "cells").names()}

    def added(**fields):
        before = files()
        assert execute(a_spec(stores, run.parent, **fields))[0] == run
        after = files()
        assert {name: after[name] for name in before} == before
        return Counter(name.partition("-")[0] for name in after.keys() - before.keys())

    more = {"two": "random:vit_small_patch14_dinov2", "one": "random:vit_small_patch14_dinov2"}
    assert added(encoders=more, label_fractions=[1.0]) == {"two": 2 * 2}  # sets of modalities, folds
    assert len(asked) == 2  # of the store and of the outside one, whatever the cells
    assert added(label_fractions=[0.3, 1.0]) == {"one": 2 * 2, "threshold": 2 * 2, "atlas": 2}


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
    drawn = (
        pq.read_table(place(stores[0]).path / "masks").num_rows
        + pq.read_table(place(stores[1]).path / "masks").num_rows
    )
    assert plan.figures["stacks"] == 2 * drawn  # two sets of modalities
    assert rows["tokens"] == f"of {2 * drawn} stacks by each encoder, computed once"

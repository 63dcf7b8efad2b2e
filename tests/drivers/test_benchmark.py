import csv
import io
import json
import threading

import numpy as np
import pytest
import ray

from bfp.drivers import benchmark, capacity_here
from bfp.errors import InputError, Interrupted
from bfp.reports.blocks import Bars, Table, Trends, results_from_json
from bfp.runs import Run
from bfp.specs import Benchmark
from bfp.storage import place
from tests.finetuning.makers import make_labelled_store

pytestmark = pytest.mark.usefixtures("ray_session")

CLASSES = {"type": "classification", "target": "diagnosis", "classes": ["CN", "AD"]}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return (
        make_labelled_store(tmp_path_factory.mktemp("store"), subjects=30),
        make_labelled_store(tmp_path_factory.mktemp("outside"), subjects=12, seed=1),
    )


def a_spec(stores, folder, **fields):
    store, outside = stores
    told = {
        "kind": "benchmark",
        "name": "paper",
        "output": str(folder),
        "store": store.uri,
        "external": {"elsewhere": outside.uri},
        "encoders": {"one": "random:vit_small_patch14_dinov2", "two": "random:vit_small_patch14_dinov2"},
        "encoder_shape": {"width": 32, "depth": 2, "heads": 2},
        "tasks": [CLASSES],
        "label_fractions": [0.5, 1.0],
        "modalities": [["T1w", "T2w", "FLAIR"], ["T1w"]],
        "folds": 3,
        "regularisation": [0.001, 0.1],
        "baselines": {"covariates": ["age", "sex"]},
        "site": "sex",
        "compute": {"workers": 1},  # each loads torch and timm, which takes longer than what it has to do here
    }
    return Benchmark.model_validate(told | fields)


def execute(spec, stop_after=None):
    """Submit it once; stop_after: ask to stop at the first progress of the phase that begins so."""
    folder, submitted = place(spec.output) / spec.name, []

    def listen(event):
        if stop_after and event["event"] == "progress" and event["phase"].startswith(stop_after) and event["done"]:
            submitted[0].ask_to_stop()

    with Run(folder, spec_yaml="", kind="benchmark", version="0", listener=listen) as run:
        submitted.append(run)
        benchmark.execute(spec, run)
    return folder


@pytest.fixture(scope="module")
def run(stores, tmp_path_factory):
    return execute(a_spec(stores, tmp_path_factory.mktemp("runs")))


def rows_of(run):
    """Those of what approaches are compared by."""
    return [row for row in table_of(run) if row["measure"] in ("auroc", "mae")]


def table_of(run):
    return list(csv.DictReader(io.StringIO((run / "results.csv").read().decode())))


def files_of(run):
    return {
        name: (run / folder / name).read()
        for folder in ("cells", "features", "rows", "sites")
        for name in (run / folder).names()
    }


def test_there_is_a_row_for_every_cell(run):
    rows = rows_of(run)
    places = {
        (row["cohort"], row["learned_with"], row["tested_with"], row["label_fraction"])
        for row in rows
        if row["approach"] == "one"
    }
    everything, t1 = "T1w+T2w+FLAIR", "T1w"
    shown = [(everything, everything), (everything, t1), (t1, t1)]
    within = {("cross-validation", *own, share) for own in shown for share in ("0.5", "1.0")}
    outside = {("elsewhere", own[0], own[1], share) for own in shown if own[0] == own[1] for share in ("0.5", "1.0")}
    assert places == within | outside
    assert {row["approach"] for row in rows} == {"one", "two", "histograms", "covariates", "site", "permuted"}
    assert len(rows) == len({tuple(row.values())[:6] for row in rows})
    assert len(table_of(run)) == 6 * len(rows)  # with average precision, balanced accuracy, F1, sensitivity, Brier


def test_a_row_is_the_mean_over_folds_of_what_was_said_and_ours_is_the_last_encoder(run):
    rows = {tuple(row.values())[:6]: row for row in rows_of(run)}
    everything = ("diagnosis", "cross-validation", "T1w+T2w+FLAIR", "T1w+T2w+FLAIR", "1.0")
    one, two = rows[(*everything, "one")], rows[(*everything, "two")]
    folds = [float(value) for value in one["folds"].split(";")]
    assert len(folds) == 3
    assert float(one["value"]) == pytest.approx(np.mean(folds))
    assert float(one["ours_better_by"]) == pytest.approx(float(two["value"]) - float(one["value"]))
    assert two["ours_better_by"] == two["p_corrected_t"] == ""
    assert 0 < float(one["p_corrected_t"]) <= float(one["p_holm"]) <= 1
    assert (one["tested_sessions"], one["tested_subjects"], one["learned_subjects"]) == ("30", "30", "20.0")
    half = rows[(*everything[:4], "0.5", "one")]
    assert half["learned_subjects"] == "10.0"
    assert results(run).figures["auroc"] == pytest.approx(float(two["value"]))


def results(run):
    return results_from_json(json.loads((run / "results.json").read()))


def test_a_signal_is_found_where_it_was_learned_and_on_an_outside_cohort_and_lots_tell_nothing(run):
    rows = [
        row for row in rows_of(run) if row["learned_with"] in ("T1w+T2w+FLAIR", "") and row["label_fraction"] == "1.0"
    ]
    low = {
        (row["cohort"], row["approach"]): float(row["low"]) for row in rows if row["tested_with"] == row["learned_with"]
    }
    assert min(low["cross-validation", "two"], low["elsewhere", "two"], low["elsewhere", "histograms"]) > 0.5
    assert max(low["cross-validation", name] for name in ("permuted", "covariates", "site")) < 0.5


def test_heads_are_tested_with_less_than_they_learned_with(run):
    """What is hidden from a head that learned with everything is what it sees of a session that lacks it."""
    rows = {tuple(row.values())[2:6]: float(row["value"]) for row in rows_of(run) if row["cohort"] != "elsewhere"}
    everything, t1 = "T1w+T2w+FLAIR", "T1w"
    assert rows[everything, everything, "1.0", "two"] != rows[everything, t1, "1.0", "two"]
    assert rows[t1, t1, "1.0", "two"] != rows[everything, t1, "1.0", "two"]


def test_the_page_shows_the_papers_figures_the_checks_and_the_cost(run):
    shown = results(run).blocks
    titles = [block.title for block in shown]
    assert titles[:4] == [
        "diagnosis: encoders",
        "diagnosis: few labels",
        "diagnosis: missing modalities",
        "diagnosis: outside cohorts",
    ]
    assert "diagnosis: every cell" in titles
    bars = next(block for block in shown if isinstance(block, Bars))
    assert (bars.groups, bars.series) == (["T1w+T2w+FLAIR", "T1w"], ["one", "two", "histograms of the slices"])
    assert all(len(bar.dots) == 3 for group in bars.bars for bar in group)
    few = next(block for block in shown if isinstance(block, Trends))
    assert few.lines[0].at == [10.0, 20.0]
    cost = next(block for block in shown if isinstance(block, Table) and block.title == "What it cost")
    by_name = {row[0]: row for row in cost.rows}
    assert by_name["two"][1] == by_name["one"][1] == 2  # a pass for each set of modalities
    assert (by_name["one"][4], by_name["permuted labels"][4], by_name["covariates alone"][4]) == (4, 2, 2)
    guard = next(block for block in shown if isinstance(block, Table) and block.title.startswith("Whom"))
    assert {row[2] for row in guard.rows} == {"untrained: it has met nobody"}
    assert any("how well features tell sites apart" in title for title in titles)
    from bfp.reports.page import render
    from bfp.runs import RunFolder

    assert "encoders" in render(RunFolder(run))


def test_the_table_is_written_for_people_too(run):
    text = (run / "results.md").read().decode()
    assert "| cross-validation | T1w+T2w+FLAIR | T1w+T2w+FLAIR | 100% (20) | two |" in text
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == len(rows_of(run)) + 2


def test_adding_an_encoder_a_share_and_a_seed_computes_only_what_is_new(run, stores, tmp_path):
    spec = a_spec(
        stores, tmp_path, encoders={"two": "random:vit_small_patch14_dinov2"}, label_fractions=[1.0], ours="two"
    )
    again = execute(spec)
    before = files_of(again)
    both = {"one": "random:vit_small_patch16_224", "two": "random:vit_small_patch14_dinov2"}  # before the other
    more = a_spec(stores, tmp_path, encoders=both, seeds=2, ours="two")
    with pytest.raises(InputError, match=r"16, the patch size"):
        execute(more)
    both["one"] = "random:vit_base_patch14_dinov2"
    execute(a_spec(stores, tmp_path, encoders=both, seeds=2, ours="two"))
    after = files_of(again)
    assert before.keys() <= after.keys()
    assert all(after[name] == own for name, own in before.items())  # cells hold the seconds they took: none ran again
    rows = rows_of(again)
    assert {row["label_fraction"] for row in rows} == {"0.5", "1.0"}
    assert all(len(row["folds"].split(";")) == 6 for row in rows if row["cohort"] == "cross-validation")


@pytest.mark.long
def test_cells_have_the_cpus_that_the_extraction_had(stores, tmp_path):
    """On a Ray whose every CPU the workers of the extraction take."""
    holder = ray.remote(num_cpus=3)(_Holder).remote()  # of the four
    ray.get(holder.ready.remote())
    spec = a_spec(stores, tmp_path, external={}, label_fractions=[1.0], modalities=None)
    folder = place(spec.output) / spec.name
    try:
        with Run(folder, spec_yaml="", kind="benchmark", version="0", listener=lambda event: None) as run:
            waited = threading.Timer(240, run.ask_to_stop)
            waited.start()
            benchmark.execute(spec, run)
            waited.cancel()
    finally:
        ray.kill(holder)
    assert rows_of(folder)


class _Holder:
    def ready(self):
        return True


def test_a_stopped_benchmark_goes_on_and_ends_as_if_undisturbed(run, stores, tmp_path):
    spec = a_spec(stores, tmp_path)
    for phase in ("vectors: one", "cells: two", "figures"):
        with pytest.raises(Interrupted, match="submit it again to go on"):
            execute(spec, stop_after=phase)
    again = execute(spec)
    assert rows_of(again) == rows_of(run)


@pytest.mark.long
def test_a_number_is_compared_by_its_error_and_less_is_better(stores, tmp_path):
    spec = a_spec(
        stores,
        tmp_path,
        tasks=[{"type": "regression", "target": "severity"}, {"type": "regression", "target": "age"}],
        external={},
        label_fractions=[1.0],
        modalities=None,
        baselines={"covariates": ["sex"], "histograms": True},
        site=None,
    )
    run = execute(spec)
    figures = results(run).figures
    assert figures["mae_high"] < figures["mae_permuted_low"]  # severity shows in the images
    assert figures["below_covariates_low"] > 0
    assert figures["2_mae_low"] < figures["2_mae_permuted"] < figures["2_mae_high"] + 5  # age does not
    rows = [row for row in rows_of(run) if row["task"] == "severity" and row["approach"] == "covariates"]
    assert float(rows[0]["ours_better_by"]) == pytest.approx(figures["mae_covariates"] - figures["mae"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": [{"type": "segmentation", "target": "tumour"}]}, r"tumour"),
        ({"modalities": [["T1w"], ["PD"]]}, r"modalities\[1\]: PD: the store .* has T1w, T2w, FLAIR"),
        ({"encoders": {"ours": "/nowhere"}, "encoder_shape": None}, r"encoders\.ours: .*no encoder there"),
        ({"external": {"far": "/nowhere"}}, "no slice store there"),
        ({"baselines": {"covariates": ["agee"]}}, "no column agee; did you mean age"),
        ({"site": "scanner"}, "no column scanner"),
        ({"folds": 20}, "fewer than 20 folds"),
    ],
)
def test_what_is_wrong_is_said_by_the_plan_and_nothing_is_written(stores, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        benchmark.plan(a_spec(stores, tmp_path, **fields))
    assert not list(tmp_path.iterdir())


def test_the_plan_counts_cells_and_warns_of_what_names_do_not_say(stores, tmp_path):
    plan = benchmark.plan(a_spec(stores, tmp_path), capacity=capacity_here(2))
    # of the encoders and histograms 2 sets x 2 shares each, covariates 2 shares, lots 2 sets, the site once
    assert plan.figures["cells"] == 3 * 4 + 2 + 2 + 1
    assert any("untrained (random:), whatever the name says" in warning for warning in plan.warnings)


def test_an_outside_cohort_of_another_preprocessing_is_refused(stores, tmp_path):
    from tests.store.makers import make_store

    other = make_store(tmp_path / "other", sessions=2, size_px=28)
    raw = json.loads((other / "store.json").read())
    raw["preprocessing"]["spacing_mm"], raw["fingerprint"] = 9.0, "0" * len(raw["fingerprint"])
    (other / "store.json").write(json.dumps(raw).encode())
    with pytest.raises(InputError, match=r"external\.far: .* was made by another preprocessing than .*spacing_mm"):
        benchmark.plan(a_spec(stores, tmp_path / "runs", external={"far": other.uri}))


def test_labels_that_could_be_of_two_cohorts_are_refused(stores, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(
        "subject,diagnosis,age,sex\n" + "".join(f"{n:02},{CLASSES['classes'][n % 2]},60,F\n" for n in range(30))
    )
    with pytest.raises(InputError, match=r"subject 00 is in .* and in external\.elsewhere .*add a column `cohort`"):
        benchmark.plan(a_spec(stores, tmp_path / "runs", labels=str(table), site=None))


def test_somebody_learned_from_and_tested_in_an_outside_cohort_is_refused(tmp_path):
    both = (
        make_labelled_store(tmp_path / "a", subjects=12, seed=3),
        make_labelled_store(tmp_path / "b", subjects=6, seed=3),
    )
    spec = a_spec(both, tmp_path / "runs", folds=2, label_fractions=[1.0], modalities=None, site=None)
    with pytest.raises(InputError, match=r"elsewhere: made/0. and made/0. are the same scans under two names"):
        execute(spec)


@pytest.mark.long
def test_a_site_that_alone_tells_the_class_is_warned_of(tmp_path):
    both = (
        make_labelled_store(tmp_path / "a", subjects=24, seed=4),
        make_labelled_store(tmp_path / "b", subjects=6, seed=5),
    )
    labels = tmp_path / "labels.csv"
    rows = [
        f"{n:02},{CLASSES['classes'][n % 2]},{'ABCD'[n % 2 + 2 * (n == 5)]},{10 * (n % 2) + n / 9}" for n in range(24)
    ]
    labels.write_text("subject,diagnosis,scanner,score\n" + "\n".join(rows) + "\n")
    tasks = [CLASSES, {"type": "regression", "target": "score"}]
    spec = a_spec(
        both,
        tmp_path / "runs",
        external={},
        labels=str(labels),
        tasks=tasks,
        site="scanner",
        folds=3,
        modalities=None,
    )
    spec = spec.model_copy(
        update={"label_fractions": [1.0], "baselines": spec.baselines.model_copy(update={"covariates": []})}
    )
    heard = []
    folder = place(spec.output) / spec.name
    with Run(folder, spec_yaml="", kind="benchmark", version="0", listener=heard.append) as run:
        benchmark.execute(spec, run)
    warnings = [event["message"] for event in heard if event["event"] == "warning"]
    for told in ("diagnosis: scanner alone tells it (AUROC", "score: scanner alone tells it (R²"):
        assert any(told in each for each in warnings)
    table = next(block for block in results(folder).blocks if "tell sites apart" in block.title)
    assert [row[0] for row in table.rows] == ["histograms of the slices", "one", "two"]

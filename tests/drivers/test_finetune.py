import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from sklearn.metrics import roc_auc_score

from bfp.drivers import finetune
from bfp.drivers.finetune_tuned import methods
from bfp.errors import InputError, Interrupted
from bfp.finetuning.crossvalidation import load_fold
from bfp.inference.predictor import Predictor
from bfp.models.session_model import load_model, model_folder
from bfp.reports.blocks import results_from_json
from bfp.runs import Run
from bfp.specs import Finetune
from bfp.storage import place
from bfp.store import layout
from tests.finetuning.makers import make_labelled_store

SHAPE = {"width": 32, "depth": 2, "heads": 2}
CASES = "What was said of the cases, and why"
ALONE = {"untrained": False, "permuted": False, "histograms": False, "neighbours": False}


pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_labelled_store(tmp_path_factory.mktemp("store"), subjects=30)


def a_spec(at, folder, **fields):
    told = {
        "kind": "finetune",
        "name": "ad",
        "output": str(folder),
        "store": at.uri,
        "encoder": "random:vit_small_patch14_dinov2",
        "encoder_shape": SHAPE,
        "task": {"type": "classification", "target": "diagnosis", "classes": ["CN", "AD"]},
        "folds": 3,
        "baselines": {"covariates": ["age", "sex"], "oracle": "severity"},
        "regularisation": [0.001, 0.1],
        "compute": {"workers": 1},  # each loads torch and timm, which takes longer than what it has to do here
    }
    return Finetune.model_validate(told | fields)


def execute(spec, stop_after=None):
    """Submit it once; stop_after: ask to stop at the first progress of the phase that begins so."""
    folder = place(spec.output) / spec.name
    submitted = []

    def listen(event):
        if stop_after and event["event"] == "progress" and event["phase"].startswith(stop_after) and event["done"]:
            submitted[0].ask_to_stop()

    with Run(folder, spec_yaml="", kind="finetune", version="0", listener=listen) as run:
        submitted.append(run)
        finetune.execute(spec, run)
    return folder


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    return execute(a_spec(store, tmp_path_factory.mktemp("runs")))


def figures(run):
    return json.loads((run / "results.json").read())["figures"]


def test_a_class_that_shows_in_the_images_is_found_and_age_and_sex_tell_nothing(run):
    found = figures(run)
    assert found["auroc_low"] > 0.5
    assert found["auroc"] > 0.9
    assert found["auroc_oracle"] == 1
    assert found["auroc_neighbours"] > 0.8
    assert found["auroc_covariates_low"] < 0.5 < found["auroc_covariates_high"]
    assert found["above_covariates_low"] > 0
    assert found["auroc_permuted_low"] < 0.5 < found["auroc_permuted_high"]
    assert "above_permuted" not in found  # it is no rival
    assert found["p_delong_covariates"] < 0.05
    assert found["p_delong_covariates"] < found["p_corrected_t_covariates"] < 1  # three folds prove little
    assert found["average_precision_low"] > 0.5
    assert found["brier"] < 0.25


def test_the_figures_are_those_of_the_written_predictions(run):
    table = pq.read_table((run / "predictions" / "predictions.parquet").path).to_pandas()
    keys = {"encoder": "auroc", "histograms": "auroc_histograms", "permuted": "auroc_permuted"}
    for approach, key in keys.items():  # of `permuted` the class is the one that was dealt
        rows = table[table.approach == approach]
        assert len(rows) == 30
        assert set(rows.fold) == {1, 2, 3}
        by_fold = [roc_auc_score(own["class"] == "AD", own.prob_AD) for _, own in rows.groupby("fold")]
        assert figures(run)[key] == pytest.approx(np.mean(by_fold), abs=1e-12)


def said_at_the_models_strength(run):
    """What the heads of the folds say of those whom they did not see, each as strong as the model's own; and it."""
    model, said = load_model(model_folder(run)), {}
    for number, head in enumerate(model.fold_heads):
        kept = [load_fold(file.read_bytes()) for file in (run / "checkpoints/folds").path.glob(f"encoder-{number}-*")]
        alike = [fold for fold in kept if fold.strength == model.facts["strength"]]
        own = next(fold for fold in alike if np.array_equal(fold.head.weights, head.weights))
        said.update(zip(own.tested.tolist(), own.said, strict=True))
    return np.array([said[number] for number in range(len(said))]), model


def test_the_models_threshold_is_of_heads_that_are_as_strong_as_its_own(run):
    """Those of the folds, each with the strength that it chose, say things on different scales."""
    said, model = said_at_the_models_strength(run)
    table = pq.read_table((run / "predictions" / "predictions.parquet").path).to_pandas()
    controls = said[table[table.approach == "encoder"]["class"].to_numpy() == "CN", 1]
    assert model.outputs.threshold.probability in said[:, 1]
    assert (controls < model.outputs.threshold.probability).mean() >= 0.9


def test_the_split_is_written_so_that_others_can_use_it(run):
    lines = (run / "folds.csv").read().decode().splitlines()
    assert lines[0] == "cohort,subject,session,class,fold"
    assert lines[1].startswith("made,00,,CN,")
    assert len(lines) == 31


def test_the_report_says_what_was_compared(run):
    results = results_from_json(json.loads((run / "results.json").read()))
    titles = [block.title for block in results.blocks]
    assert titles[:3] == [
        "AUROC of each approach",
        "How much higher the AUROC of the untrained encoder is",
        "Is the difference more than chance?",
    ]
    assert titles[3:8] == ["Further figures", "ROC curves", "Calibration", "Confusion", "Cases"]
    assert [row.label for row in results.blocks[0].rows] == [
        "untrained encoder",
        "same encoder, nearest neighbours",
        "histograms of the slices",
        "covariates alone (age, sex)",
        "permuted labels",
        "oracle (severity)",
    ]
    curves = {curve.label: curve for curve in results.blocks[titles.index("ROC curves")].curves}
    for label, key in {"untrained encoder": "auroc", "permuted labels": "auroc_permuted"}.items():
        area = np.trapezoid(curves[label].true_positive, curves[label].false_positive)
        assert area == pytest.approx(results.figures[key])
    assert [len(curve.low) for curve in curves.values()] == [41, 0, 0, 0, 0, 0]  # the band is the model's
    groups = results.blocks[titles.index("In whom it is right")]
    assert [row[:2] for row in groups.rows if row[0] == "sex"] == [["sex", "F"], ["sex", "M"]]
    assert [row[0] for row in groups.rows].count("age") == 3
    assert sum(row[2] + row[3] for row in groups.rows if row[0] == "sex") == 30
    assert titles[-4:] == ["Participants", "What TRIPOD+AI asks for", "Methods", "Limits"]
    assert "not a medical device" in results.blocks[-1].paragraphs[0]


def test_the_cases_are_the_surest_of_the_predictions_and_what_told_lies_where_the_class_shows(run):
    results = results_from_json(json.loads((run / "results.json").read()))
    blocks = {block.title: block for block in results.blocks}
    cases = blocks[CASES].rows
    held_out = pq.read_table((run / "predictions" / "predictions.parquet").path).to_pandas()
    held_out = held_out[held_out.approach == "encoder"].assign(
        sure=lambda rows: rows[["prob_CN", "prob_AD"]].max(axis=1)
    )
    for name in ("CN", "AD"):
        for is_right in (True, False):
            own = held_out[(held_out["class"] == name) & ((held_out.predicted == name) == is_right)]
            expected = own.sort_values("sure", ascending=False).subject[:2]
            assert [row[0] for row in cases if row[1] == name and (row[2] == name) == is_right] == [
                f"made {subject}" for subject in expected
            ]
        png = (run / blocks[f"Cases of {name}"].file).read()
        assert png.startswith(b"\x89PNG")
    for *_, probability, _, bias, up, down, log_odds, shown in cases:
        assert log_odds == pytest.approx(bias + up + down)
        assert log_odds == pytest.approx(np.log(probability / (1 - probability)), abs=1e-4)
        heights = [int(each.split("%")[0].removeprefix("at ")) for each in shown.split("; ")]
        assert 1 <= len(heights) <= 4
        assert any(abs(height - 30) < 10 or abs(height - 70) < 10 for height in heights)


def test_what_tripod_asks_for_is_said_as_far_as_the_run_knows_it(run):
    results = results_from_json(json.loads((run / "results.json").read()))
    blocks = {block.title: block for block in results.blocks}
    told = {row[0]: row[2] for row in blocks["What TRIPOD+AI asks for"].rows}
    assert told["10"].startswith("30 sessions of 30 subjects (15 CN, 15 AD); 10 to 10 tested in a fold")
    assert told["11"].startswith("10 without FLAIR: ")
    assert told["23a"].startswith("AUROC 0.9")
    assert told["5b"] == "not in the store: for the authors"
    who = {(row[0], row[1]): row for row in blocks["Participants"].rows}
    assert who["class", "AD"][2:6] == [15, 15, 0, 15]
    assert who["class", "AD"][-1] == "8 F, 7 M"
    ages = [row[6] for row in blocks["Participants"].rows]
    assert all(40 < float(age.split(" ")[0]) < 95 for age in ages)


def test_the_model_folder_predicts_without_the_run(run):
    model = load_model(model_folder(run))
    assert model.outputs.names == ("CN", "AD")
    assert len(model.fold_heads) == 3
    assert model.preprocessing["size"] == 28
    assert model.facts["figures"]["auroc"] == figures(run)["auroc"]


def test_the_model_folder_holds_what_its_held_out_sessions_say_of_it(run):
    model = load_model(model_folder(run))
    table = pq.read_table((run / "predictions" / "predictions.parquet").path).to_pandas()
    held_out = table[table.approach == "encoder"]
    threshold = model.outputs.threshold
    called = held_out.prob_AD >= threshold.probability
    positive = held_out["class"] == "AD"
    assert called[positive].mean() == pytest.approx(threshold.sensitivity)
    assert (~called[~positive]).mean() == pytest.approx(threshold.specificity)
    assert threshold.specificity >= 0.9
    recalibrated = model.outputs.recalibration(held_out[["prob_CN", "prob_AD"]].to_numpy())[:, 1]
    assert recalibrated.mean() == pytest.approx(positive.mean(), abs=0.02)
    assert 15 <= len(model.typical.held_out) <= 30


def titles_of(run):
    return {block.title: block for block in results_from_json(json.loads((run / "results.json").read())).blocks}


def test_a_number_is_learned_and_its_model_says_how_far_off_it_may_be(store, tmp_path):
    spec = a_spec(store, tmp_path, task={"type": "regression", "target": "severity"}, baselines=ALONE)
    assert dict(finetune.plan(spec).rows)["learned"].startswith("severity: 0.")
    run = execute(spec)
    found, blocks = figures(run), titles_of(run)
    assert found["mae"] < 0.45  # the mean of all is off by 0.5
    assert found["r2"] > 0
    table = pq.read_table((run / "predictions" / "predictions.parquet").path).to_pandas()
    held_out = table[table.approach == "encoder"]
    errors = np.sort(np.abs(held_out.predicted - held_out.target))
    assert found["interval_half_width"] == errors[27]  # the 28th of 30: ⌈31 · 0.9⌉
    assert (run / "folds.csv").read().startswith(b"cohort,subject,session,target,fold\n")
    model = load_model(model_folder(run))
    numbers = model.outputs
    assert (numbers.trained_from, numbers.trained_to) == (held_out.target.min(), held_out.target.max())
    assert numbers.margin.half_width == found["interval_half_width"]
    assert len(model.fold_heads) == 3
    slope = np.polyfit(held_out.target, held_out.predicted, 1)[0]
    assert found["slope"] == pytest.approx(slope)
    assert 0 < slope < 0.9
    note = blocks["severity: predicted and true"].note
    assert f"rise by {slope:.2f} for each 1 that is so: they are drawn to the mean" in note
    assert "held the true number of at least 90 % of the held-out subjects" in note
    assert "regression to the mean" in blocks["Limits"].paragraphs[0]
    off = (held_out.predicted - held_out.target).sort_values(key=np.abs)
    nearest_and_furthest = [*off[:4], *off[:-5:-1]]
    assert [row[2] for row in blocks[CASES].rows] == pytest.approx(nearest_and_furthest)
    for _, true, off_by, _, mean, up, down, said, _ in blocks[CASES].rows:
        assert said == pytest.approx(true + off_by, abs=1e-4)
        assert said == pytest.approx(mean + up + down)
    assert (run / blocks["Cases: severity predicted nearest and furthest off"].file).exists()
    card = (run / "model" / "README.md").read().decode()
    assert "Cross-validated mean absolute error 0." in card
    assert "An interval of 0." in card


def test_a_time_to_an_event_is_learned_as_a_hazard_among_those_of_the_training(store, tmp_path):
    labels, random = tmp_path / "labels.csv", np.random.default_rng(0)
    rows = [f"{n:02},{random.exponential(60 - 50 * (n % 2)) + 0.1:.3f},{int(n % 5 > 0)}" for n in range(30)]
    labels.write_text("subject,months,converted\n" + "\n".join(rows) + "\n")
    task = {"type": "survival", "time": "months", "event": "converted"}
    run = execute(a_spec(store, tmp_path, labels=str(labels), task=task, baselines=ALONE))
    assert figures(run)["c_index"] > 0.6
    model = load_model(model_folder(run))
    said, _ = said_at_the_models_strength(run)
    np.testing.assert_array_equal(model.outputs.held_out, np.sort(said[:, 0]))
    assert model.target == "months to converted"
    blocks = titles_of(run)
    assert "tells neither a time nor how likely the event is" in blocks["Limits"].paragraphs[0]
    came = np.array([row.endswith(",1") for row in rows])
    (size,) = [row[2] for row in blocks["What TRIPOD+AI asks for"].rows if row[0] == "10"]
    assert f"({came.sum()} converted, {(~came).sum()} not seen)" in size
    low, middle, high = blocks["From low risk to high"].rows
    assert low[1] + middle[1] + high[1] == 30
    assert float(low[5].split(" ")[0]) > float(high[5].split(" ")[0])  # the share without the event
    assert {row[2] for row in blocks[CASES].rows} == {"seen", "not seen"}
    for session, *_, hazard, _ in blocks[CASES].rows:
        assert hazard == pytest.approx(said[int(session.removeprefix("made ")), 0], abs=1e-4)
    assert "is fitted here at the strength of the model's own" in blocks["Cases"].paragraphs[0]
    assert "whose strength the fold chose for itself" in blocks[CASES].note
    assert [title for title in blocks if title.startswith("Cases: converted")] == [
        "Cases: converted seen",
        "Cases: converted not seen",
    ]
    assert "Cross-validated concordance 0." in (run / "model" / "README.md").read().decode()


def test_a_finished_model_is_an_encoder_for_the_next_and_is_compared_with_itself_untrained(run, store, tmp_path):
    again = execute(a_spec(store, tmp_path, encoder=run.uri, encoder_shape=None, baselines={"histograms": False}))
    found = figures(again)
    assert found["auroc"] == figures(run)["auroc"]
    # the same seed made both
    assert found["above_untrained"] == 0
    assert "whom its pretraining had met, without labels: not known" in (again / "model/README.md").read().decode()


def test_a_stopped_run_goes_on_and_ends_as_if_undisturbed(run, store, tmp_path):
    spec = a_spec(store, tmp_path)
    with pytest.raises(Interrupted, match="of 15 folds; submit it again"):
        execute(spec, stop_after="cross-validation")
    kept = [file for part in ("features", "checkpoints/folds") for file in (tmp_path / "ad" / part).iterdir()]
    stamps = {file: file.stat().st_mtime_ns for file in kept}
    execute(spec)
    assert {file: file.stat().st_mtime_ns for file in kept} == stamps
    for file in ("predictions/predictions.parquet", "folds.csv", "model/head.safetensors"):
        assert (tmp_path / "ad" / file).read_bytes() == (run / file).read()


SHORT = {"epochs": 3, "warmup_epochs": 1, "sessions_per_step": 8, "slices_per_session": 4}


def test_a_tuned_encoder_is_judged_beside_the_frozen_one_and_its_folder_predicts(store, tmp_path):
    spec = a_spec(store, tmp_path, tune="full", pooling="mean", training=SHORT, baselines=ALONE)
    assert dict(finetune.plan(spec).rows)["training"].startswith("the whole encoder, at most 3 epochs; 8 sessions")
    with pytest.raises(Interrupted, match=r"stopped after \d of 3 trainings; submit it again"):
        execute(spec, stop_after="training")
    kept = tmp_path / "ad/checkpoints/tuned"
    assert list(kept.glob("fold-*/epoch-*.safetensors"))
    run = execute(spec)
    undisturbed = execute(spec.model_copy(update={"name": "undisturbed"}))
    for file in ("predictions/predictions.parquet", "model/encoder/model.safetensors"):
        assert (run / file).read() == (undisturbed / file).read()
    heads, others = (safetensors.numpy.load((each / "model/head.safetensors").read()) for each in (run, undisturbed))
    assert heads.keys() == others.keys()  # the files are sealed with the names of their runs
    for name, weights in heads.items():
        np.testing.assert_array_equal(weights, others[name])
    assert not list(kept.glob("*/*"))  # epochs go when what came of them stands
    assert {"auroc", "auroc_frozen", "above_frozen"} <= figures(run).keys()
    results = results_from_json(json.loads((run / "results.json").read()))
    worth = next(block for block in results.blocks if block.title == "Was training worth it?")
    (no_cases,) = [block for block in results.blocks if block.title == "Cases"]
    assert no_cases.paragraphs[0].startswith("No case is explained: the encoder was tuned")
    assert [row[0] for row in worth.rows] == ["fold 1", "fold 2", "fold 3"]
    model = load_model(model_folder(run))
    assert model.fold_heads == ()
    assert model.predict(np.zeros(32)).told["spread"] is None
    Predictor(model_folder(run), device="cpu", batch_size=8)  # encoder and head are of one another
    frozen = json.loads((execute(a_spec(store, tmp_path, name="frozen", pooling="mean")) / "results.json").read())
    assert figures(run)["auroc_frozen"] == frozen["figures"]["auroc"]


def test_the_methods_tell_by_what_loss_it_was_trained(store, tmp_path):
    ended = SimpleNamespace(model=SimpleNamespace(epoch=3))
    of_classes = methods(a_spec(store, tmp_path, tune="full"), ended)
    of_numbers = methods(
        a_spec(store, tmp_path, tune="full", task={"type": "regression", "target": "age"}, baselines={}), ended
    )
    assert "labels smoothed by 0.1" in of_classes
    assert "by the Huber loss of standardised numbers" in of_numbers
    assert "smoothed" not in of_numbers


@pytest.mark.long
def test_attention_on_a_frozen_encoder_keeps_the_heads_of_its_folds(store, tmp_path):
    run = execute(a_spec(store, tmp_path, pooling="attention", training=SHORT, baselines=ALONE))
    assert {"auroc_frozen", "auroc_mean", "above_mean"} <= figures(run).keys()
    blocks = json.loads((run / "results.json").read())["blocks"]
    (cases,) = [block["rows"] for block in blocks if block["title"] == CASES]
    (text,) = [block["paragraphs"][0] for block in blocks if block["title"] == "Cases"]
    assert "by the heads that the figures, and predictions.parquet, are of" in text
    for *_, probability, _, _, _, _, log_odds, _ in cases:  # attention weighs the slices, and they still add up
        assert log_odds == pytest.approx(np.log(probability / (1 - probability)), abs=1e-4)
    model = load_model(model_folder(run))
    assert len(model.pooling.maps) == 4
    random = np.random.default_rng(0)
    pooled = model.pooling.pool(
        random.normal(size=(9, 32)).astype(np.float32), heights=np.linspace(0, 1, 9), parts=[""] * 9
    )
    assert pooled.shape == (4 * 32,)
    other = pooled.copy()
    other[:32] += 1  # the model's own vector, which no head of a fold looks at
    assert (model.head.logits(pooled[None]) != model.head.logits(other[None])).any()
    for head in model.fold_heads:
        np.testing.assert_array_equal(head.logits(pooled[None]), head.logits(other[None]))


@pytest.mark.long
def test_a_run_keeps_to_its_snapshot_while_the_store_grows(tmp_path):
    growing = make_labelled_store(tmp_path / "grows", subjects=12)
    spec = a_spec(growing, tmp_path)
    assert finetune.plan(spec).figures["snapshot"] == 1
    execute(spec)
    commits = [record for record in layout.latest_snapshot(growing).snapshot.commits if record.name != "s11"]
    layout.take_snapshot(growing, commits, cohorts=["made"])
    assert finetune.plan(spec).figures["snapshot"] == 1
    assert finetune.plan(a_spec(growing, tmp_path, name="another")).figures["snapshot"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"store": "/nowhere"}, "/nowhere: no slice store there"),
        ({"encoder": "/nowhere", "encoder_shape": None}, "encoder: /nowhere: no encoder there"),
        ({"encoder": "meta:/nowhere.pth", "encoder_shape": None}, "encoder: /nowhere.pth: no such file of weights"),
        (
            {"encoder": "random:vit_small_patch16_224"},
            "its stacks have 28 pixels, not a multiple of 16, the patch size of random:vit_small_patch16_224",
        ),
        ({"modalities": ["PD"]}, "modalities: PD: the store .* has T1w, T2w, FLAIR"),
        ({"labels": "/nowhere.csv"}, "/nowhere.csv: cannot read it: nothing is there"),
        ({"splits": "/nowhere.csv"}, "/nowhere.csv: cannot read it: nothing is there"),
        ({"folds": 20}, "class CN has 15 subjects .* fewer than 20 folds"),
        ({"where": {"cohorts": ["other"]}}, "no stack is left by `where` and `modalities`"),
        ({"baselines": {"oracle": "severty"}}, "no column severty; did you mean severity"),
        (
            {"task": {"type": "classification", "target": "diagnoses", "classes": ["CN", "AD"]}},
            "no column diagnoses; did you mean diagnosis",
        ),
    ],
)
def test_what_is_wrong_is_said_by_the_plan_and_nothing_is_written(store, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        finetune.plan(a_spec(store, tmp_path / "runs", **fields))
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_the_split_of_a_run_is_taken_by_another_whatever_its_seed(run, store, tmp_path):
    (tmp_path / "folds.csv").write_bytes((run / "folds.csv").read())
    spec = a_spec(store, tmp_path, seed=9, splits=str(tmp_path / "folds.csv"))
    again = execute(spec)
    assert (again / "folds.csv").read() == (run / "folds.csv").read()
    assert (execute(a_spec(store, tmp_path, name="dealt", seed=9)) / "folds.csv").read() != (run / "folds.csv").read()
    with pytest.raises(
        InputError, match=r"splits: .*folds\.csv: has 3 folds \(1, 2, 3\), and folds is 5; write folds: 3"
    ):
        finetune.plan(a_spec(store, tmp_path, name="five", folds=5, splits=str(tmp_path / "folds.csv")))


def test_a_subject_under_two_names_is_refused_where_folds_would_part_them(tmp_path):
    doubled = make_labelled_store(tmp_path / "doubled", subjects=12, again={10: 2})
    split = "subject,fold\n" + "".join(f"{n:02},{{}}\n" for n in range(12))
    folds = [n // 2 % 3 for n in range(12)]
    (tmp_path / "parted.csv").write_text(split.format(*folds))
    folds[10] = folds[2]
    (tmp_path / "together.csv").write_text(split.format(*folds))
    parted = a_spec(doubled, tmp_path, name="parted", splits=str(tmp_path / "parted.csv"))
    with pytest.raises(
        InputError, match=r"made/02 and made/10 are the same scans under two names \((\d+) of \1 planes"
    ):
        execute(parted)
    run = execute(a_spec(doubled, tmp_path, name="together", splits=str(tmp_path / "together.csv")))
    told = (run / "events.jsonl").read().decode()
    assert "1 pair of subjects are the same scans under two names, in one fold each" in told
    assert "the same scans: made/02 and made/10 share" in told


@pytest.mark.parametrize(
    ("column", "task", "message"),
    [
        ([3.5] * 30, {"type": "regression", "target": "x"}, r"x is 3\.5 in every session .*nothing to learn"),
        (
            ["CN"] * 20 + ["Ad"] * 10,
            {"type": "classification", "target": "x", "classes": ["CN", "AD"]},
            "nobody's x is AD; left out: 10 sessions: x is Ad",
        ),
    ],
)
def test_what_cannot_be_learned_is_said_by_the_plan(store, tmp_path, column, task, message):
    with pytest.raises(InputError, match=message):
        finetune.plan(of_column(store, tmp_path, column, task))


@pytest.mark.parametrize(
    ("column", "task", "warned"),
    [
        (
            [60 + n for n in range(28)] + [9999, -9],
            {"type": "regression", "target": "x"},
            "x: 2 sessions far from the others (-9, 9999): codes of what is not known?",
        ),
        (
            [n % 7 + 1 for n in range(20)] + ["twelve"] * 10,
            {"type": "regression", "target": "x"},
            "10 sessions of 30 left out: 10 sessions: x is twelve, which is no number",
        ),
        (
            ["CN", "AD"] * 15,
            {"type": "classification", "target": "x", "classes": ["CN", "AD"]},
            "folds: one tests only 2 subjects of a class",
        ),
    ],
)
def test_labels_that_may_not_be_what_they_seem_are_warned_of_by_the_plan(store, tmp_path, column, task, warned):
    warnings = finetune.plan(of_column(store, tmp_path, column, task, folds=7)).warnings
    assert any(each.startswith(warned) for each in warnings)
    spread = [str(60 + n % 7) if task["type"] == "regression" else column[n] for n in range(30)]
    usual = finetune.plan(of_column(store, tmp_path, spread, task, folds=3)).warnings
    assert not any(about in each for about in ("far from the others", "left out", "of a class") for each in usual)


def test_a_rating_of_which_most_are_zero_has_no_numbers_that_are_far_off_but_codes(store, tmp_path):
    task = {"type": "regression", "target": "x"}
    rating = [0] * 24 + [0.5, 1, 2, 1, 3, 1]
    assert finetune.plan(of_column(store, tmp_path, rating, task, folds=3)).warnings == []
    (warned,) = finetune.plan(of_column(store, tmp_path, [*rating[:-1], 999], task, folds=3)).warnings
    assert warned.startswith("x: 1 session far from the others (999): codes of what is not known?")


def of_column(store, tmp_path, column, task, **fields):
    """A spec whose task learns `x`, of each of the 30 subjects in turn."""
    labels = tmp_path / "labels.csv"
    labels.write_text("subject,x\n" + "\n".join(f"{n:02},{value}" for n, value in enumerate(column)) + "\n")
    return a_spec(store, tmp_path, labels=str(labels), task=task, baselines=ALONE, **fields)


@pytest.mark.parametrize(
    ("task", "figure", "told"),
    [
        (
            {"type": "classification", "target": "diagnosis", "classes": ["CN", "AD"]},
            "auroc_site_low",
            "site tells diagnosis by itself (AUROC of 0.",
        ),
        ({"type": "regression", "target": "age"}, "r2_site_low", "site tells age by itself (R² of 0."),
    ],
)
def test_a_site_that_alone_tells_the_class_or_number_is_a_baseline_and_is_warned_of(
    store, tmp_path, task, figure, told
):
    labels = tmp_path / "labels.csv"
    rows = [f"{n:02},{('CN', 'AD')[n % 2]},{60 + 20 * (n % 2) + n % 5},{'XY'[(n + (n == 0)) % 2]}" for n in range(30)]
    labels.write_text("subject,diagnosis,age,site\n" + "\n".join(rows) + "\n")
    heard = []
    asked = {"labels": str(labels), "task": task, "baselines": {**ALONE, "permuted": True}}
    spec = a_spec(store, tmp_path / "runs", **asked, regularisation=[0.1, 10.0])
    folder = place(spec.output) / spec.name
    with Run(folder, spec_yaml="", kind="finetune", version="0", listener=heard.append) as run:
        finetune.execute(spec, run)
    assert figures(folder)[figure] > (0.5 if task["type"] == "classification" else 0.0)
    (warning,) = [event["message"] for event in heard if event["event"] == "warning"]
    assert warning.startswith(told)


def test_the_plan_counts_what_will_be_used(store, tmp_path):
    planned = finetune.plan(a_spec(store, tmp_path, modalities=["FLAIR"]))
    assert planned.figures["sessions"] == 20
    assert dict(planned.rows)["learned"] == (
        "diagnosis: CN (10 sessions of 10 subjects), AD (10 sessions of 10 subjects)"
    )


def test_the_plan_says_what_each_covariate_is_taken_for(store, tmp_path):
    assert dict(finetune.plan(a_spec(store, tmp_path)).rows)["covariates"] == (
        "age: number; sex: 2 categories; severity: number"
    )
    table = tmp_path / "labels.csv"
    rows = [f"{n:02},{'CN' if n % 2 == 0 else 'AD'},{'64,5' if n == 7 else 50 + n}" for n in range(30)]
    table.write_text("subject;diagnosis;age\n" + "\n".join(f"{row.replace(',', ';', 2)}" for row in rows))
    with pytest.raises(InputError, match=r"labels.csv: column age: `64,5` of subject 07 is not a number"):
        finetune.plan(a_spec(store, tmp_path, labels=str(table), baselines={"covariates": ["age"]}))

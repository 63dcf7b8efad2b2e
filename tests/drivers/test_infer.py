import json
import shutil
import subprocess
import sys

import nibabel as nib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfp.drivers import capacity_here, infer
from bfp.drivers.inputs import recipe_of
from bfp.errors import InputError, Interrupted, JobFailed, Reason, StorageError
from bfp.inference.pipeline import prepared
from bfp.models.encoder_alone import read_encoder_alone
from bfp.reports.blocks import results_from_json
from bfp.runs import Run
from bfp.specs import Infer
from bfp.specs.preprocessing import Preprocessing
from bfp.storage import place
from tests.inference.makers import (
    ALL,
    OF_HAZARDS,
    OF_NUMBERS,
    make_encoder,
    make_model,
    preprocessing,
    rewrite,
    write_subject,
)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("run") / "model").parent


@pytest.fixture
def bids(tmp_path):
    """Three whole subjects, one without FLAIR, one whose only scan is broken."""
    folder = tmp_path / "clinic"
    for subject in ("01", "02", "03"):
        write_subject(folder, subject)
    write_subject(folder, "04", modalities=("T1w", "T2w"))
    write_subject(folder, "05", modalities=("T1w",))
    broken = folder / "sub-05" / "anat" / "sub-05_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:5000])
    return folder


def a_spec(model, bids, tmp_path, **fields):
    told = {
        "kind": "infer",
        "name": "tonight",
        "output": str(tmp_path / "runs"),
        "model": model.uri,
        "cohorts": [{"name": "clinic", "bids": str(bids)}],
    }
    return Infer.model_validate(told | fields)


def execute(spec, *, stop=False):
    folder = place(spec.output) / spec.name
    events = []
    with Run(folder, spec_yaml="", kind="infer", version="0", listener=events.append) as run:
        if stop:
            run.ask_to_stop()
        infer.execute(spec, run)
    return folder.path, events


def predictions(run):
    return pq.read_table(run / "predictions" / "predictions.parquet").to_pylist()


def predicted(events):
    return max(event["done"] for event in events if event["event"] == "progress" and event["phase"] == "predicting")


def test_raw_scans_become_one_row_a_session_and_only_what_is_new_is_done_again(model, bids, tmp_path):
    spec = a_spec(model, bids, tmp_path)
    run, events = execute(spec)
    rows = predictions(run)
    assert [row["subject"] for row in rows] == ["01", "02", "03", "04"]
    assert all(row["prob_CN"] + row["prob_AD"] == pytest.approx(1) for row in rows)
    assert rows[3]["missing"] == ["FLAIR"]
    assert rows[3]["warnings"][0] == "no FLAIR, which the model was trained with"
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert any("1 session has no FLAIR" in message for message in said)
    # The training sessions of this model are noise: every real scan lies far from them.
    assert all(row["atypical"] == 1 and row["distance"] > 1 for row in rows)
    assert all("all 40 training sessions lie less far" in "".join(row["warnings"]) for row in rows)
    assert "4 sessions lie beyond 99 % of the training sessions: the model was trained on nothing like it" in said
    (rejected,) = pq.read_table(run / "rejected" / "rejected.parquet").to_pylist()
    assert (rejected["subject"], rejected["modality"], rejected["reason"]) == ("05", "T1w", "file ends early")
    results = results_from_json(json.loads((run / "results.json").read_text()))
    assert (results.figures["sessions"], results.figures["rejected"]) == (4, 1)
    assert results.figures["atypical"] == 4
    assert results.blocks[0].title == "Predictions"
    look = next(block for block in results.blocks if block.title == "Sessions to look at")
    assert sorted(row[1] for row in look.rows) == ["01", "02", "03", "04"]
    assert all("unlike what the model was trained on" in row[3] for row in look.rows)
    assert [row[-1] for row in results.blocks[0].rows] == ["yes"] * 4
    nothing = next(block for block in results.blocks if block.title == "Sessions of which nothing came")
    assert nothing.rows == [["clinic", "05", "", "file ends early"]]
    assert (run / "pictures" / "sessions.png").exists()

    stamps = {file: file.stat().st_mtime_ns for file in run.glob("*/part-*.parquet")}
    write_subject(bids, "06")
    write_subject(bids, "01", seed=1)
    run, events = execute(spec)
    assert predicted(events) == 2
    again = predictions(run)
    assert [row["subject"] for row in again] == ["01", "02", "03", "04", "06"]
    assert again[1:4] == rows[1:4]
    assert again[0]["inputs"] != rows[0]["inputs"]
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps


def blocks_of(run):
    return {block.title: block for block in results_from_json(json.loads((run / "results.json").read_text())).blocks}


def test_a_model_of_a_number_gives_it_with_an_interval_and_warns_outside_its_range(bids, tmp_path):
    learned = make_model(tmp_path / "model", outputs=OF_NUMBERS)
    spec = a_spec(learned, bids, tmp_path)
    assert dict(infer.plan(spec).rows)["model"] == f"{learned}: age, -0.07 to 0.5"
    run, events = execute(spec)
    rows, blocks = predictions(run), blocks_of(run)
    assert [row["high"] - row["predicted"] for row in rows] == pytest.approx([0.75] * 4)
    assert [row["predicted"] - row["low"] for row in rows] == pytest.approx([0.75] * 4)
    assert "prob_AD" not in rows[0]
    outside = [row for row in rows if not -0.07 <= row["predicted"] <= 0.5]
    assert [row["subject"] for row in outside] == ["01", "03"]
    for row in rows:
        assert any("outside what the model learned from (-0.07 to 0.5)" in text for text in row["warnings"]) == (
            row in outside
        )
    figures = json.loads((run / "results.json").read_text())["figures"]
    assert figures["outside_range"] == len(outside)
    assert f"{len(outside)} sessions are predicted outside the numbers that the model learned from (-0.07 to 0.5)" in [
        event["message"] for event in events if event["event"] == "warning"
    ]
    columns = ["cohort", "subject", "session", "age", "low", "high", "spread", "missing", "look first"]
    assert blocks["Predictions"].columns == columns
    histogram = blocks["Predicted age"]
    assert (histogram.flag_below, histogram.flag_above) == (-0.07, 0.5)
    assert dict(blocks["Model"].rows)["cross-validated mean absolute error"] == "0.80 [0.70, 0.90]"
    assert "regression to the mean" in blocks["Limits"].paragraphs[0]
    assert "An interval of 0.750 to both sides of it follows" in blocks["Methods"].paragraphs[0]
    why = {row[1]: row[3] for row in blocks["Sessions to look at"].rows}
    assert [subject for subject in sorted(why) if "outside what the model learned from" in why[subject]] == ["01", "03"]


def test_a_model_of_a_hazard_gives_its_place_among_those_of_the_training(bids, tmp_path):
    run, _ = execute(a_spec(make_model(tmp_path / "model", outputs=OF_HAZARDS), bids, tmp_path))
    rows, blocks = predictions(run), blocks_of(run)
    for row in rows:
        assert row["percentile"] == OF_HAZARDS.percentile(row["log_hazard"])
    assert blocks["Predictions"].columns[3:5] == ["log hazard", "percentile"]
    assert blocks["Percentiles among the training sessions"].values == [row["percentile"] for row in rows]
    assert dict(blocks["Model"].rows)["cross-validated concordance"] == "0.80 [0.70, 0.90]"
    assert "tells neither a time nor how likely the event is" in blocks["Limits"].paragraphs[0]


def test_an_encoder_without_a_head_gives_embeddings_of_new_scans(bids, tmp_path):
    encoder = make_encoder(tmp_path / "run" / "model").parent
    spec = a_spec(encoder, bids, tmp_path)
    assert "an encoder without a head: embeddings" in dict(infer.plan(spec).rows)["model"]
    run, _ = execute(spec)
    rows, blocks = predictions(run), blocks_of(run)
    assert [row["subject"] for row in rows] == ["01", "02", "03", "04"]
    assert {len(row[name]) for row in rows for name in ("class_token", "patch_mean", "embedding")} == {16}
    assert "predicted" not in rows[0]
    assert rows[3]["missing"] == ["FLAIR"]
    assert [row[:3] for row in blocks["Sessions"].rows] == [["clinic", row["subject"], ""] for row in rows]
    assert dict(blocks["Encoder"].rows)["pretrained by"] == "bfp 0.1, run brains"
    assert "An embedding says nothing by itself" in blocks["Limits"].paragraphs[0]
    assert infer.plan(spec).figures["sessions_to_do"] == 0


def test_an_encoder_is_shown_the_modalities_whose_stacks_it_was_pretrained_on(tmp_path):
    neighbours = preprocessing(stacks={"form": "neighbours", "modalities": ["T1w", "FLAIR"]})
    for modalities, shown in ((None, ["T1w", "FLAIR"]), (["FLAIR"], ["FLAIR"])):
        folder = make_encoder(tmp_path / "-".join(shown), neighbours, modalities=modalities)
        assert read_encoder_alone(folder)["shown"] == shown


def test_an_encoder_that_does_not_say_how_scans_are_prepared_is_refused_by_the_plan(bids, tmp_path):
    several = make_encoder(tmp_path / "several", preprocessing(), preprocessing(spacing_mm=6.0))
    with pytest.raises(InputError, match="pretrained on 2 stores of more than one preprocessing"):
        infer.plan(a_spec(several, bids, tmp_path))
    mixed = make_encoder(tmp_path / "mixed", imaging=(4, 5))
    with pytest.raises(InputError, match="pretrained on stacks of imaging versions 4, 5"):
        infer.plan(a_spec(mixed, bids, tmp_path))
    folder = make_encoder(tmp_path / "encoder")
    with pytest.raises(InputError, match=r"embedding: false: .* gives nothing else"):
        infer.plan(a_spec(folder, bids, tmp_path, embedding=False))
    config = json.loads((folder / "config.json").read())
    older = {name: value for name, value in config["bfp"].items() if name not in ("imaging", "weights_sha256")}
    for told, message in (
        (older, "written by an older bfp, which did not tell imaging, weights_sha256; export the encoder again"),
        ({}, "tells no preprocessing, since bfp did not pretrain it"),
    ):
        (folder / "config.json").write(json.dumps({**config, "bfp": told}).encode())
        with pytest.raises(InputError, match=message):
            infer.plan(a_spec(folder, bids, tmp_path))


def test_a_stopped_run_keeps_what_it_has_and_goes_on(model, bids, tmp_path):
    spec = a_spec(model, bids, tmp_path, embedding=False, privacy={"pictures": "none"})
    with pytest.raises(Interrupted, match="of 5 sessions; submit it again to go on"):
        execute(spec, stop=True)
    run, _ = execute(spec)
    assert [row["subject"] for row in predictions(run)] == ["01", "02", "03", "04"]
    assert "embedding" not in predictions(run)[0]
    assert not (run / "pictures").exists()


@pytest.mark.long
def test_what_takes_too_long_is_tried_again_at_the_next_submit(model, bids, tmp_path):
    # A file that is broken at its start may be judged within any limit.
    run, events = execute(a_spec(model, bids, tmp_path, compute={"scan_timeout_s": 1e-6}))
    rejected = pq.read_table(run / "rejected" / "rejected.parquet").to_pylist()
    late = {row["subject"] for row in rejected if row["reason"] == Reason.TIMEOUT}
    assert late >= {"01", "02", "03", "04"}
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert warnings[0].startswith(
        f"scans of {len(late)} sessions could not be read in full this time, or took too long"
    )
    spec = a_spec(model, bids, tmp_path, privacy={"pictures": "none"})
    assert infer.plan(spec).figures["sessions_to_do"] == len(late)
    run, _ = execute(spec)
    assert [row["subject"] for row in predictions(run)] == ["01", "02", "03", "04"]
    assert dict(infer.plan(spec).rows)["to do"] == "0 sessions; 5 are predicted already"


@pytest.mark.long
def test_more_rejections_than_allowed_fail_the_run_with_its_predictions_kept(model, bids, tmp_path):
    message = (
        r"1 of 12 scans \(8\.3%\) are rejected, more than max_rejected: 0\.05; the predictions of the others are kept"
    )
    with pytest.raises(JobFailed, match=message):
        execute(a_spec(model, bids, tmp_path, max_rejected=0.05, privacy={"pictures": "none"}))
    assert len(predictions(tmp_path / "runs" / "tonight")) == 4


def test_a_file_that_is_being_written_is_a_failure_and_not_a_rejected_scan(model, bids, tmp_path):
    cohorts = a_spec(model, bids, tmp_path).cohorts
    (session, *_) = infer.sessions_of(cohorts, Preprocessing.model_validate(preprocessing()))
    file = bids / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    file.write_bytes(file.read_bytes() + b"more")
    recipe = recipe_of(Preprocessing.model_validate(preprocessing()))
    with pytest.raises(StorageError, match="it is being written to; submit again"):
        prepared("inputs", session, recipe=recipe, shown=ALL, scan_timeout_s=60)


def test_the_plan_counts_what_will_be_predicted(model, bids, tmp_path):
    planned = infer.plan(a_spec(model, bids, tmp_path))
    assert planned.figures["sessions"] == 5
    assert dict(planned.rows)["found"] == "5 sessions: 3 FLAIR, 5 T1w, 4 T2w"
    assert dict(planned.rows)["to do"] == "5 sessions; 0 are predicted already"
    assert infer.plan(a_spec(model, bids, tmp_path), capacity=capacity_here(1)).figures["workers"] == 1
    assert (
        infer.plan(a_spec(model, bids, tmp_path, compute={"workers": 3}), capacity=capacity_here(2)).figures["workers"]
        == 2
    )


def test_a_plan_needs_neither_ray_nor_torch_also_for_a_run_that_was_begun(model, bids, tmp_path):
    spec = a_spec(model, bids, tmp_path)
    part = place(spec.output) / spec.name / "predictions" / "part-x.parquet"
    pq.write_table(pa.table({"inputs": ["x"]}), (part.write(b""), part.path)[1])
    code = (
        "import sys\n"
        "from bfp.drivers import infer\n"
        "from bfp.specs.infer import Infer\n"
        f"infer.plan(Infer.model_validate_json({spec.model_dump_json()!r}))\n"
        "print([name for name in ('ray', 'torch', 'SimpleITK') if name in sys.modules])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_model_trained_on_masked_brains_asks_each_cohort_for_its_masks(bids, tmp_path):
    masked = make_model(tmp_path / "masked", brain="given")
    with pytest.raises(InputError, match=r"cohorts: clinic: .* each cohort needs a segmentation named `brain`"):
        infer.plan(a_spec(masked, bids, tmp_path))
    mask = {"name": "brain", "suffix": "mask", "drawn_on": "T1w", "classes": {"brain": [1]}}
    cohort = {"name": "clinic", "bids": str(bids), "segmentations": [mask]}
    plan = infer.plan(a_spec(masked, bids, tmp_path, cohorts=[cohort]))
    assert plan.figures["sessions"] == 5
    assert dict(plan.rows)["brain masks"] == "in 0 of 5 sessions of cohort clinic"
    (warning,) = plan.warnings
    assert warning == (
        "segmentation brain: in 0 of 5 sessions of cohort clinic; compare its `suffix` or "
        "`column` with the cohort's files"
    )
    cohort["segmentations"] = [{**mask, "drawn_on": "PDw"}]
    with pytest.raises(InputError, match=r"cohorts\[0\]: its brain mask is drawn on PDw, which the model is not shown"):
        infer.plan(a_spec(masked, bids, tmp_path, cohorts=[cohort]))


def test_a_plan_without_a_model_or_for_other_stacks_is_refused(model, bids, tmp_path):
    with pytest.raises(InputError, match="no finished model there"):
        infer.plan(a_spec(place(str(tmp_path)), bids, tmp_path))
    other = make_model(tmp_path / "other")
    told = json.loads((other / "model.json").read())
    rewrite(other, facts={**told["facts"], "imaging": 99})
    with pytest.raises(InputError, match="trained on stacks of imaging version 99, this bfp makes version"):
        infer.plan(a_spec(other, bids, tmp_path))
    assert not (tmp_path / "runs").exists()


def test_a_model_with_values_that_are_none_is_refused_by_the_plan(bids, tmp_path):
    broken = make_model(tmp_path / "broken")
    told = json.loads((broken / "model.json").read())
    for change, message in (
        ({"preprocessing": {**told["preprocessing"], "size": "big"}}, "model.json: preprocessing.size: .*integer"),
        ({"facts": {"run": "x", "imaging": 1}}, "model.json: facts: lacks bfp, encoder, weights, figures"),
    ):
        rewrite(broken, **{**told, **change})
        with pytest.raises(InputError, match=message) as caught:
            infer.plan(a_spec(broken, bids, tmp_path))
        assert "http" not in str(caught.value)


def test_more_memory_than_the_machine_has_is_a_warning(model, bids, tmp_path):
    assert infer.plan(a_spec(model, bids, tmp_path)).warnings == []
    (warning,) = infer.plan(
        a_spec(model, bids, tmp_path, compute={"models": 1024}), capacity=capacity_here(1000)
    ).warnings
    assert "GB of memory are needed and this machine has" in warning


def test_predictions_that_were_damaged_are_made_again_with_a_warning(model, bids, tmp_path, recwarn):
    spec = a_spec(model, bids, tmp_path, privacy={"pictures": "none"})
    run, _ = execute(spec)
    before = predictions(run)
    parts = sorted(run.glob("predictions/part-*.parquet"))  # one, or more on a machine that is slow
    for part in parts:
        part.write_bytes(b"garbage" * 100)
    assert infer.plan(spec).figures["sessions_to_do"] == 5
    run, events = execute(spec)
    assert [row["prob_AD"] for row in predictions(run)] == [row["prob_AD"] for row in before]
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert f"damaged predictions are made again: {', '.join(part.name for part in parts)}" in warnings
    assert [each.message for each in recwarn if "ray_remote_args" in str(each.message)] == []
    blocks = {block.title: block for block in results_from_json(json.loads((run / "results.json").read_text())).blocks}
    assert "The probabilities put sessions in an order" in blocks["Limits"].paragraphs[0]


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("BFP_IDENTIFIER_KEY", "a secret of this hospital")


def written(run):
    """What every file of a run holds, tables as text."""
    return {
        file: repr(pq.read_table(file).to_pylist()).encode() if file.suffix == ".parquet" else file.read_bytes()
        for file in run.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def named(tmp_path):
    """Two subjects called by names, the second one without a FLAIR and with a T2w that is broken."""
    folder = tmp_path / "clinic"
    for subject, modalities in (("janedoe", ALL), ("johndoe", ("T1w", "T2w"))):
        write_subject(folder, "7", modalities=modalities)
        (folder / "sub-7").rename(folder / f"sub-{subject}")
        for file in (folder / f"sub-{subject}" / "anat").iterdir():
            file.rename(file.with_name(file.name.replace("sub-7", f"sub-{subject}")))
    broken = folder / "sub-johndoe" / "anat" / "sub-johndoe_T2w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:5000])
    (folder / "sub-jimdoe" / "anat").mkdir(parents=True)
    (folder / "sub-jimdoe" / "anat" / "sub-jimdoe_T1w.nii.gz").write_bytes(b"")
    return folder


def test_hashed_identifiers_leave_no_name_in_any_file_of_the_run(model, named, tmp_path, secret):
    kept_names, _ = execute(a_spec(model, named, tmp_path, name="kept"))
    assert any(b"janedoe" in data for data in written(kept_names).values())
    run, events = execute(a_spec(model, named, tmp_path, privacy={"identifiers": "hash"}))
    files = written(run)
    assert len(files) > 5
    for name in (b"janedoe", b"johndoe", b"jimdoe"):
        assert [file for file, data in files.items() if name in data] == []
        assert name.decode() not in repr(events)
    assert [row["prob_AD"] for row in sorted(predictions(run), key=lambda row: row["prob_AD"])] == [
        row["prob_AD"] for row in sorted(predictions(kept_names), key=lambda row: row["prob_AD"])
    ]
    reasons = pq.read_table(run / "rejected" / "rejected.parquet")["reason"].to_pylist()
    assert sorted(reasons) == sorted(pq.read_table(kept_names / "rejected" / "rejected.parquet")["reason"].to_pylist())
    (rejected,) = pq.read_table(run / "rejected" / "rejected.parquet", filters=[("modality", "=", "T2w")]).to_pylist()
    assert rejected["subject"] in [row["subject"] for row in predictions(run)]
    assert infer.plan(a_spec(model, named, tmp_path, privacy={"identifiers": "hash"})).figures["sessions_to_do"] == 0


def test_a_failure_under_hashed_identifiers_names_nobody(model, named, tmp_path, secret, monkeypatch):
    spec = a_spec(model, named, tmp_path, privacy={"identifiers": "hash", "pictures": "none"})
    listed = infer.sessions_of

    def listed_before_a_scan_grew(*given):
        sessions = listed(*given)
        file = named / "sub-janedoe" / "anat" / "sub-janedoe_T2w.nii.gz"
        file.write_bytes(file.read_bytes() + b"more")
        return sessions

    monkeypatch.setattr(infer, "sessions_of", listed_before_a_scan_grew)
    with pytest.raises(JobFailed, match=r"withheld, since it names the session or a file") as failed:
        execute(spec)
    assert "janedoe" not in str(failed.value)


def test_hashing_without_a_key_is_refused_by_the_plan(model, bids, tmp_path, monkeypatch):
    monkeypatch.delenv("BFP_IDENTIFIER_KEY", raising=False)
    with pytest.raises(InputError, match="BFP_IDENTIFIER_KEY holds 0 characters, at least 16 are needed"):
        infer.plan(a_spec(model, bids, tmp_path, privacy={"identifiers": "hash"}))


def test_what_is_doubtful_about_a_scan_is_on_the_page_and_pictures_of_before_go_where_none_are_wanted(bids, tmp_path):
    for subject in ("02", "03", "04", "05"):
        shutil.rmtree(bids / f"sub-{subject}")
    file = bids / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    image = nib.load(file)
    image.set_sform(None, code=0)
    image.set_qform(None, code=0)
    nib.save(image, file)
    spec = a_spec(make_model(tmp_path / "model", outputs=OF_HAZARDS), bids, tmp_path)
    run, events = execute(spec)
    (why,) = [row[3] for row in blocks_of(run)["Sessions to look at"].rows]
    assert "T2w: the header says nothing of orientation" in why
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert "1 session has a scan about which there is doubt; see the page, Sessions to look at" in said
    assert (run / "pictures" / "sessions.png").exists()
    execute(a_spec(place(str(tmp_path / "model")), bids, tmp_path, privacy={"pictures": "none"}))
    assert not list(run.glob("pictures/*"))


def test_pictures_of_the_brain_alone_are_there_only_where_the_model_cuts_it_out(model, bids, tmp_path):
    spec = a_spec(model, bids, tmp_path, privacy={"pictures": "brain"})
    run, events = execute(spec)
    assert not (run / "pictures").exists()
    message = (
        "no pictures (privacy.pictures: brain): the model's stacks show the whole head (preprocessing.brain: none)"
    )
    assert message in [event["message"] for event in events if event["event"] == "warning"]
    assert message in infer.plan(spec).warnings

import json
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfp.drivers import infer
from bfp.drivers.inputs import recipe_of
from bfp.errors import InputError, Interrupted, JobFailed, Reason
from bfp.inference.kept import Kept
from bfp.inference.pipeline import Failure, prepare_row
from bfp.reports.blocks import results_from_json
from bfp.runs import Run
from bfp.specs import Infer
from bfp.specs.preprocessing import Preprocessing
from bfp.storage import place
from tests.inference.makers import ALL, make_model, preprocessing, write_subject

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
    assert "1 sessions have no FLAIR" in next(event["message"] for event in events if event["event"] == "warning")
    (rejected,) = pq.read_table(run / "rejected" / "rejected.parquet").to_pylist()
    assert (rejected["subject"], rejected["modality"], rejected["reason"]) == ("05", "T1w", "file ends early")
    results = results_from_json(json.loads((run / "results.json").read_text()))
    assert (results.figures["sessions"], results.figures["rejected"]) == (4, 1)
    assert results.blocks[0].title == "Predictions"
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


def test_a_stopped_run_keeps_what_it_has_and_goes_on(model, bids, tmp_path):
    spec = a_spec(model, bids, tmp_path, embedding=False, pictures=False)
    with pytest.raises(Interrupted, match="of 5 sessions; submit it again to go on"):
        execute(spec, stop=True)
    run, _ = execute(spec)
    assert [row["subject"] for row in predictions(run)] == ["01", "02", "03", "04"]
    assert "embedding" not in predictions(run)[0]
    assert not (run / "pictures").exists()


def test_too_many_rejected_scans_fail_the_run_but_not_those_that_nobody_asked_for():
    predictions = pa.table({"scans": [["a", "b", "c"], ["d"]]})
    rejected = pa.table({"reason": [str(Reason.TRUNCATED), str(Reason.UNWANTED), str(Reason.DUPLICATE)]})
    infer.check_rejected(Kept(predictions, rejected), 0.2)
    with pytest.raises(JobFailed, match=r"1 of 5 scans \(20.0%\) are rejected, more than max_rejected: 0.1"):
        infer.check_rejected(Kept(predictions, rejected), 0.1)


def test_sessions_that_were_not_done_fail_the_run_with_each_cause_once():
    infer.check_done(9, 9, [])
    with pytest.raises(JobFailed) as failed:
        infer.check_done(9, 5, ["no space left", "no space left"])
    lines = str(failed.value).splitlines()
    assert lines[0].startswith("4 of 9 sessions could not be predicted; the others are kept")
    assert [line.strip()[:20] for line in lines[1:]] == ["no space left", "2 lost their worker "]


def test_a_file_that_is_being_written_is_a_failure_and_not_a_rejected_scan(model, bids):
    (session, *_) = infer.sessions_of(a_spec(model, bids, bids).cohorts, Preprocessing.model_validate(preprocessing()))
    file = bids / "sub-01" / "anat" / "sub-01_T2w.nii.gz"
    file.write_bytes(file.read_bytes() + b"more")
    recipe = recipe_of(Preprocessing.model_validate(preprocessing()))
    row = {"session": pickle.dumps(("inputs", session))}
    found = pickle.loads(prepare_row(row, recipe=recipe, shown=ALL, scan_timeout_s=60)["ready"])
    assert isinstance(found, Failure)
    assert "it is being written to; submit again" in found.cause


def test_the_plan_counts_what_will_be_predicted(model, bids, tmp_path):
    planned = infer.plan(a_spec(model, bids, tmp_path))
    assert planned.figures["sessions"] == 5
    assert dict(planned.rows)["found"] == "5 sessions: 3 FLAIR, 5 T1w, 4 T2w"


def test_a_plan_without_a_model_or_for_other_stacks_is_refused(model, bids, tmp_path):
    with pytest.raises(InputError, match="no finished model there"):
        infer.plan(a_spec(place(str(tmp_path)), bids, tmp_path))
    other = make_model(tmp_path / "other")
    told = json.loads((other / "model.json").read())
    told["facts"]["imaging"] = 99
    (other / "model.json").write(json.dumps(told).encode())
    with pytest.raises(InputError, match="trained on stacks of imaging version 99, this bfp makes version"):
        infer.plan(a_spec(other, bids, tmp_path))
    assert not (tmp_path / "runs").exists()

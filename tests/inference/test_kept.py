import numpy as np

from bfp.cohorts.sessions import Key, LeftOut
from bfp.errors import Reason
from bfp.inference.kept import Predictions, predictions_schema, told_columns
from bfp.inference.outcomes import Outcome
from bfp.storage import place

SCHEMA = predictions_schema(told_columns("classification", ["CN", "AD"]), embedding=True)


def an_outcome(subject, *, rejected=0, row=True, version="", passing=False):
    key = Key("clinic", subject, "")
    told = {
        **key._asdict(),
        "predicted": "AD",
        "prob_CN": 0.25,
        "prob_AD": 0.75,
        "recalibrated_CN": 0.4,
        "recalibrated_AD": 0.6,
        "positive_at_90_specificity": True,
        "spread": 0.1,
        "distance": 1.1,
        "atypical": 0.6,
        "modalities": ["T1w"],
        "missing": [],
        "stacks": 20,
        "shift_mm": None,
        "foreground": 0.4,
        "warnings": [],
        "scans": [f"/{subject}_T1w.nii"],
        "embedding": np.ones(4, dtype=np.float32),
        "inputs": subject + version,
    }
    left_out = [LeftOut(key, "T2w", f"/{subject}_{n}.nii", Reason.TRUNCATED, "10 bytes") for n in range(rejected)]
    return Outcome(subject + version, told if row else None, left_out, None, passing)


def predictions(folder):
    return Predictions(place(str(folder)), schema=SCHEMA, model="abc", version="0.1")


def test_sessions_of_written_parts_are_done(tmp_path):
    kept = predictions(tmp_path)
    kept.add([an_outcome("01"), an_outcome("02", rejected=2)])
    kept.add([an_outcome("03", rejected=1, row=False)])
    assert kept.done() == {"01", "02", "03"}


def test_a_part_that_was_killed_before_its_predictions_is_not_done(tmp_path):
    kept = predictions(tmp_path)
    kept.add([an_outcome("01", rejected=1)])
    kept.add([an_outcome("02", rejected=1)])
    (part,) = [file for file in (tmp_path / "predictions").iterdir() if b"/02_T1w.nii" in file.read_bytes()]
    part.unlink()
    assert kept.done() == {"01"}
    assert kept.unite(["01", "02"], passing=[], left_out=[]).rejected["subject"].to_pylist() == ["01"]


def test_the_tables_hold_each_listed_session_once_in_order(tmp_path):
    kept = predictions(tmp_path)
    kept.add([an_outcome("03"), an_outcome("01", rejected=1)])
    kept.add([an_outcome("02", rejected=1, row=False)])
    nameless = LeftOut(Key("clinic", "", ""), "", "/who.nii", Reason.NAME, "the pattern is x")
    found = kept.unite(["01", "02", "03"], passing=[], left_out=[nameless])
    assert found.predictions["subject"].to_pylist() == ["01", "03"]
    assert found.rejected["uri"].to_pylist() == ["/who.nii", "/01_0.nii", "/02_0.nii"]
    assert found.predictions["model"].to_pylist() == ["abc", "abc"]
    with (place(str(tmp_path)) / "predictions" / "predictions.parquet").open_parquet() as written:
        assert written.read().equals(found.predictions)


def test_a_session_whose_files_changed_is_shown_as_last_predicted(tmp_path):
    kept = predictions(tmp_path)
    kept.add([an_outcome("01"), an_outcome("02")])
    kept.add([an_outcome("01", version="-rescanned")])
    found = kept.unite(["01-rescanned", "02"], passing=[], left_out=[])
    assert found.predictions["inputs"].to_pylist() == ["01-rescanned", "02"]


def test_a_session_that_may_be_done_better_the_next_time_is_in_the_tables_and_in_no_part(tmp_path):
    kept = predictions(tmp_path)
    kept.add([an_outcome("02")])
    found = kept.unite(["01", "02"], passing=[an_outcome("01", rejected=1, passing=True)], left_out=[])
    assert found.predictions["subject"].to_pylist() == ["01", "02"]
    assert found.rejected["subject"].to_pylist() == ["01"]
    assert kept.done() == {"02"}


def test_a_part_that_is_damaged_counts_for_nothing_and_is_made_again(tmp_path):
    kept = predictions(tmp_path)
    kept.add([an_outcome("01", rejected=1)])
    kept.add([an_outcome("02", rejected=1)])
    first, second = sorted(tmp_path.glob("predictions/part-*"))
    first.write_bytes(b"garbage" * 100)
    gone = "01" if b"/02_T1w.nii" in second.read_bytes() else "02"
    assert kept.done() == {"01", "02"} - {gone}
    assert kept.damaged() == [first.name]
    kept.discard(kept.damaged())
    kept.add([an_outcome(gone)])
    assert kept.damaged() == []
    assert kept.unite(["01", "02"], passing=[], left_out=[]).predictions["subject"].to_pylist() == ["01", "02"]

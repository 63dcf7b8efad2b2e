"""The command line of BIDS Apps, on a small cohort and in processes of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfp.cli.bids_app import write_derivative
from bfp.cli.columns import MEANINGS
from bfp.cli.jobs import Finished
from bfp.cohorts.derivatives import Masks
from bfp.cohorts.sessions import Key
from bfp.inference.kept import predictions_schema, segmentations_schema, told_columns
from bfp.models.linear import LinearHead
from bfp.models.outputs import Hazards, Numbers
from bfp.storage import place
from tests.cli.makers import bfp
from tests.imaging.makers import grid
from tests.inference.makers import OF_HAZARDS, OF_NUMBERS, make_model, write_subject
from tests.test_readme import run

A_RUN = cast(Finished, None)  # what is written follows from the tables alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("app")
    for subject in ("01", "02"):
        write_subject(made / "bids", subject)
    write_subject(made / "bids", "03", modalities=("T1w", "T2w"))
    make_model(made / "model")
    return made


def table(out: Path) -> list[dict[str, str]]:
    header, *lines = (out / "predictions.tsv").read_text().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_participants_that_are_asked_for_come_as_a_derivative_and_later_ones_beside_them(folder: Path) -> None:
    done = run("bfp bids-app bids out participant --participant-label 01 sub-03 --model model", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    out = folder / "out"
    assert [row["participant_id"] for row in table(out)] == ["sub-01", "sub-03"]
    first, second = table(out)
    assert (first["session_id"], first["missing"], second["missing"]) == ("n/a", "n/a", "FLAIR")
    assert second["warnings"].startswith("no FLAIR, which the model was trained with")
    assert float(first["prob_CN"]) + float(first["prob_AD"]) == pytest.approx(1)
    assert first["positive_at_90_specificity"] in ("true", "false")
    told = json.loads((out / "dataset_description.json").read_text())
    assert (told["DatasetType"], told["GeneratedBy"][0]["Name"]) == ("derivative", "bfp")
    columns = json.loads((out / "predictions.json").read_text())
    assert list(columns) == list(first)
    assert columns["spread"]["Description"] == MEANINGS["infer-predictions"]["spread"]

    done = run("bfp bids-app bids out participant --participant_label=02 --model model --json", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["sessions"] == 3
    assert [row["participant_id"] for row in table(out)] == ["sub-01", "sub-02", "sub-03"]

    make_model(folder / "other", outputs=OF_NUMBERS)
    done = run("bfp bids-app bids out participant --participant-label 02 --model other", folder)
    assert done.returncode == 2
    assert "out: holds predictions of another model" in done.stderr
    assert [row["participant_id"] for row in table(out)] == ["sub-01", "sub-02", "sub-03"]


@pytest.mark.parametrize(
    ("outputs", "column"), [(OF_NUMBERS, "predicted"), (OF_HAZARDS, "percentile")], ids=["number", "hazard"]
)
def test_the_columns_of_a_derivative_mean_what_the_kind_of_its_model_says(
    tmp_path: Path, outputs: Numbers | Hazards, column: str
) -> None:
    kind = "regression" if isinstance(outputs, Numbers) else "survival"
    head = LinearHead(np.zeros(2), np.ones(2), np.ones((1, 2)), np.zeros(1))
    row = {"cohort": "bids", "subject": "01", "session": "", **outputs.told(np.full((1, 2), 0.1), head, [head])}
    schema = predictions_schema(told_columns(kind), embedding=False)
    part = place(str(tmp_path / "out/runs/all/predictions/predictions.parquet"))
    part.write(b"")
    pq.write_table(pa.Table.from_pylist([row], schema), part.path)
    write_derivative(str(tmp_path / "out"), bids="bids", finished=A_RUN)
    columns = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert columns[column]["Description"] == MEANINGS[f"infer-predictions-{kind}"][column]
    assert list(columns) == list(table(tmp_path / "out")[0])


def test_masks_stand_where_bids_looks_for_them_and_the_table_says_where(tmp_path: Path) -> None:
    """As a run leaves them: below its derivatives, in the one cohort."""
    run, key, at = tmp_path / "out/runs/all", Key("bids", "01", ""), grid(shape=(4, 5, 6))
    masks = Masks(place(str(run / "derivatives")), "ball", ("ball",), "a ball")
    scan = f"{tmp_path}/bids/sub-01/anat/sub-01_T1w.nii.gz"
    mask = masks.write(key, scan, np.ones((4, 5, 6), np.uint8), header=None, grid=at)
    masks.describe([(key, scan)])
    row = {"cohort": "bids", "subject": "01", "session": "", "mask": mask, "space": scan, "ml_ball": 0.1}
    part = place(str(run / "predictions/predictions.parquet"))
    part.write(b"")
    pq.write_table(pa.Table.from_pylist([row], segmentations_schema(["ball"])), part.path)
    write_derivative(str(tmp_path / "out"), bids=f"{tmp_path}/bids", finished=A_RUN)
    (told,) = table(tmp_path / "out")
    assert told["mask"] == "sub-01/anat/sub-01_space-orig_desc-ball_dseg.nii.gz"
    copied = tmp_path / "out" / told["mask"]
    assert copied.read_bytes() == (run / "derivatives" / mask).read_bytes()
    assert json.loads(copied.with_name(copied.name.replace(".nii.gz", ".json")).read_text())["LabelMap"] == {"ball": 1}
    assert (tmp_path / "out" / "desc-ball_dseg.tsv").read_text().splitlines()[2] == "1\tball"
    described = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert described["DatasetLinks"] == {"source": f"file://{tmp_path}/bids"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("group", "--model", "model"), "group: no level of this app"),
        (("participant",), "no model: give --model, a finetune run or a model folder, or set BFP_MODEL"),
        (("participant", "02", "--model", "model"), "02: unexpected after the level; participants follow"),
        (("participant", "--participant-label", "09", "--model", "model"), "subjects: 09: in no cohort; there are 01"),
    ],
)
def test_what_a_bids_app_is_not_asked_for_is_refused_before_anything_is_written(
    folder: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("BFP_MODEL", raising=False)
    answer = bfp(capsys, "bids-app", "bids", "nothing", *arguments)
    assert answer.code == 2
    assert message in answer.err
    assert not (folder / "nothing").exists()

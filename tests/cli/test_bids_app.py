"""The command line of BIDS Apps, on a small cohort and in processes of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bfp.cli.columns import MEANINGS
from tests.cli.makers import bfp
from tests.inference.makers import make_model, write_subject
from tests.test_readme import run


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

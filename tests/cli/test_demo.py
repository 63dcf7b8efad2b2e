"""`bfp demo`: where its parts go, and the table that it ends with. The demo itself is run by `make demo`."""

from __future__ import annotations

from importlib.resources import files

import pytest

from bfp.cli.demo import BENCHMARK_JOBS, JOBS, Demonstrated, demo_text, places, precision
from bfp.cli.jobs import finished
from bfp.cli.output import write
from bfp.specs import load
from bfp.storage import Place
from tests.cli.makers import make_run

FIGURES = {
    "ingest": {"stacks": 1234, "scans": 200, "rejected": 2, "rejected_by_reason": "not a NIfTI file: 2"},
    "pretrain": {"loss_first": 9.0, "loss_last": 5.0, "tissue_r2_pretrained": 0.26}
    | {"tissue_r2_pretrained_low": 0.24, "tissue_r2_pretrained_high": 0.28},
    "finetune": {"auroc": 0.81, "auroc_low": 0.7, "auroc_high": 0.9},
    "infer": {"sessions": 8, "rejected": 2},
}


@pytest.mark.parametrize("name", [*JOBS, *BENCHMARK_JOBS])
def test_the_specs_of_the_demo_follow_its_folder(name, tmp_path):
    folder = tmp_path / "a folder, with a comma"
    spec = load(str(files("bfp.demo").joinpath("jobs", f"{name}.yaml")), overrides=places(name, str(folder)))
    paths = [value for value in str(spec).split("'") if value.startswith("/")]
    assert paths
    assert all(path.startswith(f"{folder}/") for path in paths)


@pytest.mark.parametrize(
    ("instructions", "chosen"), [({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"bf16": True}, "bf16")]
)
def test_pretraining_computes_bf16_only_where_the_machine_does(instructions, chosen, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: instructions)
    spec = load(str(files("bfp.demo").joinpath("jobs", "pretrain.yaml")), overrides=precision("pretrain"))
    assert spec.compute.precision == chosen
    assert precision("infer") == []


def test_the_demo_ends_with_a_table_and_the_reports(capsys, tmp_path):
    output = Place(str(tmp_path))
    jobs = {kind: finished(make_run(output, kind))._replace(figures=FIGURES[kind]) for kind in JOBS}
    write(demo_text(Demonstrated(jobs)))
    said = capsys.readouterr().out
    for part in ("1,234 from 200 scans", "2 (not a NIfTI file: 2)", "9.00 → 5.00", "0.26 [0.24, 0.28]", "8 sessions"):
        assert part in said
    assert said.count("report/index.html") == 4

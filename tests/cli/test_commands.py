"""What a user types and what comes back: text, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bfp import __version__, drivers
from bfp.cli.jobs import Finished, next_steps
from bfp.cli.runs import status_of
from bfp.runs import RunFolder
from bfp.storage import Place
from tests.cli.makers import bfp, make_run
from tests.store.makers import make_store
from tests.targets import makers as jobs


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def output(tmp_path) -> Place:
    return Place(str(tmp_path / "runs"))


def files(folder) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# specs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ingest", "pretrain", "finetune", "benchmark", "infer"])
def test_init_writes_a_spec_that_validate_accepts(kind, capsys):
    assert bfp(capsys, "init", kind).code == 0
    answer = bfp(capsys, "validate", f"{kind}.yaml")
    assert (answer.code, answer.out) == (0, f"{kind}.yaml: valid, {kind} my-run\n")


def test_init_writes_the_schema_that_its_spec_names(capsys, tmp_path):
    bfp(capsys, "init", "ingest", "jobs.yaml")
    named = (tmp_path / "jobs.yaml").read_text().partition("$schema=")[2].partition("\n")[0]
    assert json.loads((tmp_path / named).read_text())["$id"] == "ingest.schema.json"


def test_init_overwrites_nothing_and_knows_the_kinds(capsys, tmp_path):
    (tmp_path / "ingest.yaml").write_text("mine")
    answer = bfp(capsys, "init", "ingest")
    assert answer.code == 2
    assert "exists already" in answer.err
    assert (tmp_path / "ingest.yaml").read_text() == "mine"
    assert "the nearest is finetune" in bfp(capsys, "init", "finetun").err


def test_validate_shows_every_mistake_of_every_file_and_exits_with_2(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("kind: infer\nname: a\nmodle: m\ncohorts: [{name: a, bids: b}]\n")
    (tmp_path / "b.yaml").write_text("kind: infre\n")
    answer = bfp(capsys, "validate", "a.yaml", "b.yaml", "c.yaml")
    assert answer.code == 2
    assert answer.out == (
        "a.yaml:3  modle: m\n    no such field; the nearest is model\n"
        "b.yaml:1  kind: infre\n    one of ingest, pretrain, finetune, benchmark, infer; the nearest is infer\n"
        "c.yaml: no such file; `bfp init KIND` writes a spec to begin with\n"
    )
    told = bfp(capsys, "validate", "a.yaml", "--json").json
    assert told[0]["problems"] == [
        {"line": 3, "path": "modle", "found": "m", "expected": "no such field; the nearest is model"}
    ]


def test_schema_prints_one_kind_or_writes_all(capsys, tmp_path):
    assert bfp(capsys, "schema", "infer").json["title"] == "Infer"
    bfp(capsys, "schema", "--all", "published")
    assert len(files(tmp_path / "published")) == 5
    assert bfp(capsys, "schema").code == 2


@pytest.mark.parametrize("command", ["init ingest afile/x.yaml", "schema --all afile/schemas"])
def test_a_place_that_cannot_be_written_is_wrong_input(command, capsys, tmp_path):
    (tmp_path / "afile").write_text("mine")
    answer = bfp(capsys, *command.split())
    assert answer.code == 2
    assert "a file stands where a folder should be" in answer.err
    assert files(tmp_path) == [str(tmp_path / "afile")]


# submitting ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_driver(monkeypatch):
    monkeypatch.setattr(drivers, "plan", jobs.plan)
    monkeypatch.setattr(drivers, "execute", lambda spec, run, profile: jobs.execute(spec, run, mode="well", units=2))


def test_submit_shows_the_plan_runs_and_says_what_to_do_next(capsys, small_driver, ray_session, tmp_path):
    answer = bfp(capsys, "submit", jobs.write_spec(tmp_path))
    assert answer.code == 0
    assert "warning: a small job" in answer.err
    assert answer.out.startswith("done in ")
    for command in ("bfp show runs/small", "bfp report runs/small --open", "report: runs/small/report/index.html"):
        assert command in answer.out


def test_what_an_earlier_submission_took_is_told_apart(output):
    make_run(output)
    status = status_of(RunFolder(output / "brain"))
    (first, *_) = next_steps(Finished(status._replace(seconds=34.0, last_seconds=15.0), {}, output))
    assert first.startswith("done in 15 s (with what was done before, 34 s): 4 steps")
    (first, *_) = next_steps(Finished(status._replace(seconds=15.0, last_seconds=15.0), {}, output))
    assert first.startswith("done in 15 s: 4 steps")


def test_submit_as_json_prints_nothing_else(capsys, small_driver, ray_session, tmp_path):
    told = bfp(capsys, "submit", jobs.write_spec(tmp_path), "--name", "other", "--json").json
    assert told["status"]["outcome"] == "done"
    assert told["status"]["run"] == str(tmp_path / "runs" / "other")
    assert told["figures"] == {"sessions": 2, "rejected": 0}


def test_a_dry_run_shows_the_plan_and_writes_nothing(capsys, small_driver, tmp_path):
    spec = jobs.write_spec(tmp_path)
    before = files(tmp_path)
    assert "units" in bfp(capsys, "submit", spec, "--dry-run").out
    told = bfp(capsys, "submit", spec, "--dry-run", "--json", "--set", "seed=3").json
    assert (told["figures"], told["spec"]["seed"]) == ({"units": 200}, 3)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.yaml"], "nothing.yaml: no such file"),
        (["job.yaml", "--set", "sed=3"], "no such field; the nearest is seed"),
        (["job.yaml", "--set", "seed=13"], "model: nothing there"),
        (["job.yaml", "--set", "output=job.yaml"], "is a file; give a folder"),
        (["job.yaml", "--on", "cluster"], "--on cluster"),
        (["job.yaml", "--name", "two words"], "a name of up to 64 letters"),
        (["job.yaml", "--cpus", "0"], "--cpus"),
    ],
)
def test_wrong_input_is_one_message_exit_2_and_nothing_written(arguments, said, capsys, small_driver, tmp_path):
    jobs.write_spec(tmp_path)
    before = files(tmp_path)
    answer = bfp(capsys, "submit", *arguments)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert files(tmp_path) == before


def test_an_error_of_our_own_is_one_line_and_with_debug_a_traceback(capsys, small_driver, monkeypatch, tmp_path):
    monkeypatch.setattr(drivers, "plan", lambda spec, capacity, profile: {}["absent"])
    spec = jobs.write_spec(tmp_path)
    answer = bfp(capsys, "submit", spec)
    assert answer.code == 1
    assert answer.err == "bfp: an error of bfp's own: KeyError: 'absent'\n  --debug shows the whole traceback\n"
    assert "Traceback" in bfp(capsys, "submit", spec, "--debug").err


# looking -------------------------------------------------------------------------------------------------------------


def test_runs_lists_what_every_run_came_to(capsys, output):
    make_run(output, "first")
    make_run(output, "second", outcome="failed")
    answer = bfp(capsys, "runs")
    assert "loss 9.10 → 5.21" in answer.out
    assert "no good <at all>" in answer.out
    assert [run["outcome"] for run in bfp(capsys, "runs", "runs", "--json").json] == ["done", "failed"]


def test_show_renders_every_block(capsys, output):
    run = make_run(output)
    answer = bfp(capsys, "show", "runs/brain")
    for part in ("vit_small", "undefined", "One cohort.", "0.83 [0.76, 0.90]", "0.300 to 12.2, median 0.750"):
        assert part in answer.out
    assert "warning: one session lacks a T1w" in answer.out
    assert str(run.folder / "pictures" / "qc.png") in answer.out
    assert bfp(capsys, "show", "runs/brain", "--json").json["figures"]["steps"] == 4


def test_status_says_why_a_run_ended_and_how_to_go_on(capsys, output):
    make_run(output, outcome="interrupted")
    answer = bfp(capsys, "status", "runs/brain")
    assert "interrupted" in answer.out
    assert "3 steps stand" in answer.out
    assert "bfp submit runs/brain/spec.yaml" in answer.out


def test_a_run_that_is_not_there_names_the_nearest(capsys, output):
    make_run(output)
    for command in ("status", "show", "logs", "stop", "report"):
        answer = bfp(capsys, command, "runs/brian")
        assert answer.code == 2
        assert "the nearest is" in answer.err


def test_a_folder_that_holds_runs_names_them_and_not_itself(capsys, output, tmp_path):
    make_run(output)
    for folder in ("runs", tmp_path):
        answer = bfp(capsys, "status", folder)
        assert answer.code == 2
        assert f"the runs below it are {output}/brain" in answer.err
    (tmp_path / "empty").mkdir()
    assert "`bfp runs OUTPUT` lists" in bfp(capsys, "status", "empty").err


@pytest.mark.parametrize("file", ["spec.yaml", "results.json", "metrics.parquet", "lease.1.json"])
def test_a_damaged_file_of_a_run_is_named_with_exit_2_and_hides_no_other_run(file, capsys, output):
    make_run(output, "good")
    run = make_run(output, "spoilt")
    (run.folder / file).write(b"\xff\xfe\x80garbage")
    for command in ("show", "report") if file != "lease.1.json" else ("show", "status"):
        answer = bfp(capsys, command, "runs/spoilt")
        assert answer.code == 2
        assert f"spoilt/{file}: damaged, or not " in answer.err
    listed = {run["name"]: run for run in bfp(capsys, "runs", "runs", "--json").json}
    assert listed["good"]["outcome"] == "done"
    if file != "metrics.parquet":  # which a list of runs does not look into
        assert listed["spoilt"]["outcome"] == "damaged"
        assert file in listed["spoilt"]["said"]
        assert listed["spoilt"]["kind"] == "pretrain"


def test_a_run_called_as_its_kind_is_called_once(capsys, output):
    make_run(output, "pretrain")
    assert bfp(capsys, "show", "runs/pretrain").out.startswith("pretrain: done")


def test_logs_tell_the_events_in_order(capsys, output):
    make_run(output)
    lines = bfp(capsys, "logs", "runs/brain", "--follow").out.splitlines()
    assert "pretrain started by bfp 0.1" in lines[0]
    assert "training, 4/4 steps, loss 2.50" in lines[-3]
    assert "done after" in lines[-1]
    events = bfp(capsys, "logs", "runs/brain", "--json").out.splitlines()
    assert json.loads(events[-1])["outcome"] == "done"


def test_stop_refuses_a_run_that_nobody_runs(capsys, output):
    make_run(output)
    answer = bfp(capsys, "stop", "runs/brain")
    assert answer.code == 2
    assert "nobody runs it now (it is done)" in answer.err


def test_export_copies_the_model_whole_into_a_new_folder_only(capsys, output, tmp_path):
    make_run(output)
    make_run(output, "failed", outcome="failed")
    assert bfp(capsys, "export", "runs/brain", "taken").code == 0
    assert (tmp_path / "taken" / "encoder" / "model.safetensors").read_bytes() == b"weights"
    assert "has files in it" in bfp(capsys, "export", "runs/brain", "taken").err
    assert (
        "has no complete checkpoint to export (the run is failed)" in bfp(capsys, "export", "runs/failed", "other").err
    )


@pytest.mark.parametrize("name", ["encoder/model.safetensors", "model.json", "head.safetensors", "README.md"])
def test_export_names_what_a_model_has_lost(capsys, output, tmp_path, name):
    make_run(output)
    (output / "brain" / "model" / name).delete()
    answer = bfp(capsys, "export", "runs/brain", "in-part")
    assert answer.code == 2
    assert f"{name}: gone, so that the model is not whole" in answer.err.replace("\n", "")
    assert not (tmp_path / "in-part").exists()


def test_export_names_a_config_that_is_broken(capsys, output, tmp_path):
    make_run(output)
    (output / "brain" / "model" / "encoder" / "config.json").write(b"{")
    answer = bfp(capsys, "export", "runs/brain", "in-part")
    assert answer.code == 2
    assert "config.json: not the config of a timm model" in answer.err
    assert not (tmp_path / "in-part").exists()


def test_report_makes_the_page_again(capsys, output):
    run = make_run(output)
    answer = bfp(capsys, "report", "runs/brain")
    assert answer.out == "runs/brain/report/index.html\n"
    assert (run.folder / "report" / "index.html").exists()


def test_store_show_says_what_is_in_a_store(capsys, tmp_path):
    make_store(tmp_path / "store", sessions=3, size_px=28, seed=0)
    answer = bfp(capsys, "store", "show", "store")
    assert answer.code == 0
    assert "T1w" in answer.out
    assert bfp(capsys, "store", "show", "store", "--json").json["totals"]["sessions"] == 3
    assert "no slice store there" in bfp(capsys, "store", "show", "runs").err


def test_store_show_counts_label_maps_by_segmentation(capsys, tmp_path):
    make_store(tmp_path / "store", sessions=3, size_px=28, seed=0, segmentation="tissue")
    assert "label maps and brain masks" in bfp(capsys, "store", "show", "store").out
    told = bfp(capsys, "store", "show", "store", "--json").json["segmentations"]
    assert told == [
        {
            "cohort": "made",
            "segmentation": "tissue",
            "drawn_on": "T1w",
            "maps": 3,
            "used": 3,
            "doubtful": 0,
            "unused": [],
        }
    ]


def test_store_show_writes_pictures_where_it_is_asked_to(capsys, tmp_path):
    make_store(tmp_path / "store", sessions=3, size_px=28, seed=0)
    answer = bfp(capsys, "store", "show", "store", "--pictures", "looks")
    assert "picture: looks/stacks.png\npicture: looks/registration.png\n" in answer.out
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "looks").iterdir())


def test_store_check_says_what_is_damaged_and_exits_with_2(capsys, tmp_path):
    store = make_store(tmp_path / "store", sessions=3, size_px=28, seed=0)
    answer = bfp(capsys, "store", "check", "store")
    assert answer.code == 0
    assert answer.out.startswith(f"{store}, snapshot 1: 5 files of 3 commits, ")
    assert "whole: every file" in answer.out
    part = next((tmp_path / "store" / "stacks").iterdir())
    part.write_bytes(part.read_bytes() + b"x")
    answer = bfp(capsys, "store", "check", "store")
    assert answer.code == 2
    assert part.name[:12] in answer.out.replace("\n", "")
    assert "1 fault\n" in answer.out
    (fault,) = bfp(capsys, "store", "check", "store", "--json").json["faults"]
    assert fault["file"] == f"stacks/{part.name}"
    assert fault["remedy"] == "delete this file and submit its ingest again, which makes it anew"
    assert "has no snapshot 7" in bfp(capsys, "store", "check", "store", "--snapshot", 7).err


def test_store_prune_shows_first_and_removes_only_with_yes(capsys, tmp_path):
    make_store(tmp_path / "store", sessions=3, size_px=28, seed=0)
    make_store(tmp_path / "store", sessions=3, size_px=28, seed=1)
    before = files(tmp_path / "store")
    asked = ("store", "prune", "store", "--keep-snapshots", 1, "--older-than")
    answer = bfp(capsys, *asked, "1d")
    assert "nothing to remove" in answer.out
    answer = bfp(capsys, *asked, "0s")
    assert "nothing was removed; --yes removes it" in answer.out
    assert "snapshots" in answer.out
    assert files(tmp_path / "store") == before
    found = bfp(capsys, *asked, "0s", "--json").json
    assert (found["removed_files"], found["snapshots_kept"]) == (0, [2])
    answer = bfp(capsys, *asked, "0s", "--yes")
    assert f"removed {sum(row['files'] for row in found['found'])} files" in answer.out
    assert bfp(capsys, *asked, "0s").out.startswith("nothing to remove")
    assert bfp(capsys, "store", "check", "store").code == 0
    assert "no age; write 1d, 12h or 30m" in bfp(capsys, *asked, "soon").err


# the command line itself ---------------------------------------------------------------------------------------------


def test_a_misspelt_command_names_the_nearest_and_exits_with_2(capsys):
    answer = bfp(capsys, "submti", "a.yaml")
    assert answer.code == 2
    assert "Did you mean 'submit'?" in answer.err


def test_the_version_is_told(capsys):
    assert bfp(capsys, "--version").out == f"bfp {__version__}\n"


def test_no_colours_reach_a_file(capsys, output):
    make_run(output)
    assert "\x1b" not in bfp(capsys, "show", "runs/brain").out


def in_a_shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own, `bfp` in it put for this one's."""
    main = f"{sys.executable} -c 'from bfp.cli import main; main()'"
    return subprocess.run(command.replace("bfp", main, 1), shell=True, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["bfp show runs/brain", "bfp runs --json", "bfp logs runs/brain"])
def test_a_full_disk_behind_standard_output_is_one_line_and_exit_2(command, output):
    make_run(output)
    ended = in_a_shell(f"{command} >/dev/full")
    assert (ended.returncode, ended.stderr) == (2, "bfp: <stdout>: cannot write to it: No space left on device\n")


def test_a_closed_standard_output_is_no_error(output):
    make_run(output)
    ended = in_a_shell("bfp show runs/brain >&- <&-")
    assert (ended.returncode, ended.stderr) == (0, "")

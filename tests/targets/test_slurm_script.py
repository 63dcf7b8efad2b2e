"""The script of a job on SLURM, as text: what it asks for, what it is told, and that a shell takes it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bfp.specs import Spec, load
from bfp.specs.clusters import SlurmTarget
from bfp.targets import letter as letters
from bfp.targets.events import is_note
from bfp.targets.slurm import TOLD_TO_STOP
from bfp.targets.slurm_script import BODY, job_name, script, time_text
from tests.targets.makers import write_spec

PRELUDE = 'container="" gpus=0 cpus=1 requeue=1 SLURM_JOB_ID=7 shared_paths=() modules=() environment=/nowhere\n'


def settings(**fields: Any) -> SlurmTarget:
    return SlurmTarget.model_validate({"target": "slurm", **fields})


def spec_in(folder: Path, **fields: object) -> Spec:
    return load(write_spec(folder, **fields))


def script_of(spec: Spec, of: SlurmTarget, *, logs: str = "/data/logs") -> str:
    letter = letters.letter(spec, target="lab", settings=of, nodes=of.nodes)
    return script(letter, of, environment="/data/env", logs=logs)


def asked(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ").strip('"') for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_a_check_asks_for_one_node_for_minutes_and_does_not_come_back(tmp_path):
    of = settings(nodes=4, gpus_per_node=8, cpus_per_node=16, time_h=36.0, warning_s=1800)
    letter = replace(letters.letter(spec_in(tmp_path), target="lab", settings=of, nodes=4), check=True)
    text = script(letter, of, environment="/data/env", logs="/data/logs")
    options = asked(text)
    for option in (
        "--nodes=1",
        "--gpus-per-node=1",
        "--cpus-per-task=16",
        "--time=0-00:15:00",
        "--no-requeue",
        "--signal=B:USR1@60",
    ):
        assert option in options
    assert {"nodes=1", "gpus=1", "requeue=0"} <= set(text.splitlines())


def in_bash(code: str, *, prelude: str = PRELUDE, **environment: str) -> subprocess.CompletedProcess[str]:
    """Code behind what a job does, without doing it."""
    body = BODY.read_text().removesuffix("\nmain\n")
    given = {"PATH": "/usr/bin:/bin", "SLURMD_NODENAME": "n1", **environment}
    return subprocess.run(
        ["bash", "-c", f"{prelude}{body}\n{code}"], env=given, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_a_job_asks_for_what_its_profile_says(tmp_path):
    of = settings(
        partition="gpu",
        account="lab-1",
        qos="long",
        nodes=4,
        cpus_per_node=16,
        memory_gb=64.0,
        gpus_per_node=8,
        time_h=36.5,
        warning_s=600,
        requeue=False,
        options=["--constraint=a100"],
    )
    spec = spec_in(tmp_path)
    run = f"{tmp_path}/runs/small"
    name = job_name(run)
    letter = letters.letter(spec, target="lab", settings=of, nodes=4)
    assert asked(script_of(spec, of)) == [
        f"--job-name={name}",
        f"--comment=bfp {letter.digest} {run}",
        f"--output=/data/logs/{name}-%j.log",
        "--open-mode=append",
        "--dependency=singleton",
        "--partition=gpu",
        "--account=lab-1",
        "--qos=long",
        "--nodes=4",
        "--ntasks-per-node=1",
        "--cpus-per-task=16",
        "--mem=61035M",
        "--gpus-per-node=8",
        "--time=1-12:30:00",
        "--signal=B:USR1@600",
        "--no-requeue",
        "--export=HOME,USER,PATH",
        "--constraint=a100",
    ]


def test_what_a_profile_leaves_out_is_left_to_the_cluster(tmp_path):
    lines = asked(script_of(spec_in(tmp_path), settings()))
    assert not [line for line in lines if line.startswith(("--partition", "--account", "--qos", "--mem", "--gpus"))]
    assert "--requeue" in lines


@pytest.mark.parametrize(
    ("hours", "text"), [(0.001, "0-00:01:00"), (1.5, "0-01:30:00"), (24.0, "1-00:00:00"), (100.0, "4-04:00:00")]
)
def test_time_is_written_as_slurm_counts_it(hours, text):
    assert time_text(hours) == text


def test_one_run_has_one_name_and_no_other_has_it():
    assert job_name("/data/runs/a") == job_name("/data/runs/a")
    assert job_name("/data/runs/a") != job_name("/data/other/a")
    assert job_name("s3://b/runs/a").startswith("bfp-a-")


def test_a_driver_is_told_the_spec_word_for_word_whatever_stands_in_it(tmp_path):
    folder = tmp_path / 'it\'s $HOME; `id` "q" %j'
    folder.mkdir()
    spec = spec_in(folder)
    text = script_of(spec, settings(env={"WHERE": "a'b $c"}), logs=f"{folder}/logs")
    told = text.partition(BODY.read_text())[0]
    shown = subprocess.run(
        ["bash", "-c", f'{told}\nprintf "%s\\0" "$BFP_SPEC" "$WHERE" "$log"'],
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "RAY_ADDRESS": "elsewhere"},
        capture_output=True,
        text=True,
    )
    letter = letters.letter(spec, target="lab", settings=settings(), nodes=1)
    name = job_name(letter.run)
    assert shown.stdout.split("\0")[:3] == [
        letter.environment()["BFP_SPEC"],
        "a'b $c",
        f"{folder}/logs/{name}-7.log",
    ]
    assert f"{str(folder).replace('%', '%%')}/logs".replace('"', '\\"') in text.splitlines()[3]


def test_a_shell_takes_it_and_shellcheck_too(tmp_path):
    file = tmp_path / "job.sh"
    file.write_text(script_of(spec_in(tmp_path), settings(nodes=2, modules=["cuda/13.0"], secrets_file="~/s.env")))
    assert subprocess.run(["bash", "-n", str(file)], capture_output=True).stderr == b""
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck here; bash took it")
    said = subprocess.run(["shellcheck", "--exclude=SC2317", str(file)], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout


# secrets --------------------------------------------------------------------------------------------------------------


def secrets_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "secrets.env"
    file.write_text(text)
    file.chmod(mode)
    return file


def test_secrets_are_taken_word_for_word_and_run_nothing(tmp_path):
    text = "# ours\nKEY=a$b`id`\\c\n\nexport OTHER='with space'\r\nLAST=\"x=y\""
    file = secrets_file(tmp_path, text)
    shown = in_bash(f'read_secrets {file}; printf "%s|" "$KEY" "$OTHER" "$LAST"')
    assert shown.stdout == "a$b`id`\\c|with space|x=y|"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_secrets_that_others_may_read_stop_a_job_before_it_begins(mode, tmp_path):
    file = secrets_file(tmp_path, "KEY=hidden", mode)
    shown = in_bash(f"digest=0; read_secrets {file}; echo went on")
    assert f'{{"event": "refused", "message": "{file}: others may read or change this file' in shown.stdout
    assert "chmod 600" in shown.stdout
    assert shown.returncode == 2
    assert "went on" not in shown.stdout
    assert "hidden" not in shown.stdout + shown.stderr


def test_a_line_that_is_no_secret_is_named_by_its_number_alone(tmp_path):
    file = secrets_file(tmp_path, "KEY=a\nnot a line of hidden\n")
    shown = in_bash(f"digest=0; read_secrets {file}")
    assert f"{file}:2: not a line NAME=value" in shown.stdout
    assert "hidden" not in shown.stdout + shown.stderr


# ports and starts ----------------------------------------------------------------------------------------------------


def test_jobs_that_come_one_after_the_other_have_other_ports():
    first = int(in_bash("free_ports 0").stdout)
    assert first == int(in_bash("free_ports 0").stdout)
    found = [first]
    for number, node in ((7, 1), (8, 0), (8, 1), (100_007, 0)):
        found.append(int(in_bash(f"SLURM_JOB_ID={number}; free_ports {node}").stdout))
    assert len({port // 10 for port in found}) == len(found)
    assert all(10_000 <= port < 32_000 for port in found)


def test_ports_that_somebody_listens_on_are_passed_over():
    import socket

    first = int(in_bash("free_ports 0").stdout)
    with socket.create_server(("127.0.0.1", first + 6)):
        assert int(in_bash("free_ports 0").stdout) == first + 10
    with socket.create_server(("::1", first + 6), family=socket.AF_INET6):
        assert int(in_bash("free_ports 0").stdout) == first + 10


def progress(phase: str, done: int, total: int | None) -> str:
    shown = "null" if total is None else total
    return f'{{"time": "t", "event": "progress", "phase": "{phase}", "total": {shown}, "unit": "x", "done": {done}}}'


BEGINS = "bfp: job 7 of spec 0a1b begins on n1"


@pytest.mark.parametrize(
    ("lines", "idle"),
    [
        ([BEGINS], 0),
        ([BEGINS, progress("training", 5, 100), BEGINS, progress("training", 9, 100), BEGINS], 0),
        # of an ingest what is left is counted anew each time
        ([BEGINS, progress("preparing", 5, 100), BEGINS, progress("preparing", 1, 95), BEGINS], 0),
        ([BEGINS, BEGINS, BEGINS], 2),
        ([BEGINS, progress("training", 5, 100), BEGINS, progress("training", 5, 100), BEGINS], 1),
        ([BEGINS, progress("training", 5, 100), BEGINS, progress("training", 3, 100), BEGINS, BEGINS], 2),
        ([BEGINS, progress("listing", 5, None), BEGINS, progress("listing", 9, None), BEGINS], 2),
        ([BEGINS, BEGINS, progress("training", 1, 100), BEGINS], 0),
    ],
)
def test_starts_that_come_no_further_are_counted(lines, idle, tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(lines) + "\n")
    assert int(in_bash(f"log={log}; idle_starts").stdout) == idle


def test_after_three_starts_that_come_no_further_a_job_ends(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join([BEGINS] * 4) + "\n")
    shown = in_bash(f"log={log} digest=0a1b SLURM_JOB_NODELIST=n1; main")
    assert shown.returncode == 2
    assert "has started three times on end and come no further" in shown.stdout
    assert shown.stdout.endswith("bfp: job 7 of spec 0a1b ended with 2\n")


@pytest.mark.parametrize(
    ("told", "code", "shown", "goes_on"),
    [
        ("limit", 130, "JobState=RUNNING PreemptTime=None", True),
        ("limit", 137, "JobState=RUNNING PreemptTime=None", True),
        ("limit", 0, "JobState=RUNNING PreemptTime=None", False),
        ("limit", 1, "JobState=RUNNING PreemptTime=None", False),
        ("limit", 2, "JobState=RUNNING PreemptTime=None", False),
        ("stop", 130, "JobState=RUNNING PreemptTime=None", False),
        ("ended", 130, "JobState=CANCELLED PreemptTime=None", False),
        ("ended", 130, "JobState=RUNNING PreemptTime=2026-01-01T10:00:00", True),
        ("", 137, "JobState=RUNNING PreemptTime=None", False),
    ],
)
def test_a_job_goes_back_into_the_queue_when_its_time_is_over_or_others_go_before(told, code, shown, goes_on):
    code_of = f'scontrol() {{ echo "{shown}"; }}; told={told!r}; goes_on {code}; echo $?'
    assert in_bash(code_of).stdout == ("0\n" if goes_on else "1\n")
    assert in_bash(f"requeue=0; {code_of}").stdout == "1\n"


def test_a_stop_that_comes_on_the_way_back_into_the_queue_is_heard():
    back = """
        scontrol() { echo "JobState=RUNNING"; }
        digest=0a told=limit
        trap 'heard stop' USR2
        sleep 2 & step=$!
        (sleep 0.5; kill -USR2 $$) &
        finish 130"""
    shown = in_bash(back)
    assert shown.stdout.endswith("bfp: job 7 of spec 0a ended with 130\n")
    assert "goes on in the queue" not in shown.stdout
    assert "goes on in the queue" in in_bash(back.replace("kill -USR2 $$", "true")).stdout


@pytest.mark.parametrize(("told", "passed_s"), [("USR2", 700), ("USR1", 300)], ids=["stop", "limit"])
def test_a_driver_that_does_not_end_when_it_is_told_to_is_killed(told, passed_s, tmp_path):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/bash\ntrap '' TERM\nkill -" + told + " $PPID\nexec sleep 60\n")
    python.chmod(0o755)
    code = f"""
        start_head() {{ sleep 60 & ray=$!; echo "Local node IP: 127.0.0.1" >"$temp/ray.txt"; first=1; }}
        pause() {{ sleep 0.2; if [ -n "$told" ]; then SECONDS=$((SECONDS + {passed_s})); fi; }}
        scontrol() {{ echo "JobState=RUNNING"; }}
        log={tmp_path}/log; : >"$log"
        digest=0a nodes=1 warning_s=300 secrets_file="" SLURM_JOB_NODELIST=n1 SLURMD_NODENAME=n1
        environment={tmp_path}
        main"""
    began = time.monotonic()
    shown = in_bash(code)
    assert time.monotonic() - began < 40
    assert ("goes on in the queue" in shown.stdout) == (told == "USR1"), shown.stdout + shown.stderr
    assert any(is_note(line, TOLD_TO_STOP) for line in shown.stdout.splitlines()) == (told == "USR2")
    assert shown.returncode == 137


def test_a_container_gets_the_folders_that_it_needs(tmp_path):
    of = settings(container="/data/bfp.sif", shared_paths=["/data", "/scans"], gpus_per_node=1)
    told = script_of(spec_in(tmp_path), of).partition(BODY.read_text())[0]
    shown = in_bash(
        'make_room t; printf "%s " "${run[@]}"; cat "$temp/token"; stat -c " %a" "$temp/token"; end_ray',
        prelude=told + "\n",
        SLURM_JOB_ID="7",
    )
    words = shown.stdout.split()
    assert words[:3] == ["apptainer", "exec", "--bind"]
    assert words[3].startswith("/tmp/bfp-7-")
    assert words[4:] == ["--bind", "/data", "--bind", "/scans", "--nv", "/data/bfp.sif", "python", "t", "600"]
    assert not Path(words[3]).exists()


def test_paths_of_sockets_stay_short_whatever_the_folder_for_temporary_files(tmp_path):
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()
    code = 'make_room t; echo "$temp"; end_ray'
    assert in_bash(code, TMPDIR=str(deep)).stdout.startswith("/tmp/bfp-7-")


def test_a_folder_that_a_killed_job_has_left_goes_with_the_next_and_no_other(tmp_path):
    short = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    left, going, unknown = (short / f"bfp-{number}-abcdef" for number in (5, 6, 8))
    dead = subprocess.Popen(["true"])
    dead.wait()
    for folder, pid in ((left, dead.pid), (going, os.getpid()), (unknown, None)):
        folder.mkdir()
        if pid is not None:
            (folder / "shell").write_text(f"{pid}\n")
    try:
        assert in_bash("make_room t; end_ray", TMPDIR=str(short)).returncode == 0
        assert sorted(short.iterdir()) == [going, unknown]
    finally:
        shutil.rmtree(short)

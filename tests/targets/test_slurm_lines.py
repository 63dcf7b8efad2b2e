"""The lines of a job on SLURM while the controller does not answer. `squeue` is a stand-in, the log a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bfp.errors import InputError
from bfp.specs.clusters import SlurmTarget
from bfp.targets import slurm
from bfp.targets.slurm import Slurm
from bfp.targets.slurm_script import job_name, log_file

RUN = "/data/runs/small"

# It runs at the first look; then the controller is silent for so many times, while the job ends and is forgotten.
SQUEUE = """#!/bin/bash
echo >>{folder}/asked
asked=$(wc -l <{folder}/asked)
if [ "$asked" -eq 1 ]; then
    echo "7|RUNNING|None|bfp 0a1b {run}"
elif [ "$asked" -le {silent} ]; then
    echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
else
    [ -e {folder}/ended ] || echo "bfp: job 7 of spec 0a1b ended with 0" >>{log}
    touch {folder}/ended
fi
"""


def on(folder: Path, monkeypatch: pytest.MonkeyPatch, *, silent: int) -> tuple[Slurm, Path]:
    log = Path(log_file(RUN, "7", logs=str(folder)))
    assert log.name.startswith(job_name(RUN))
    log.write_text("bfp: job 7 of spec 0a1b begins on n1\none\ntwo\n")
    program = folder / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(SQUEUE.format(folder=folder, run=RUN, silent=silent, log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(slurm, "ASKED_EVERY_S", 0.0)
    monkeypatch.setattr(slurm, "LOOKED_EVERY_S", 0.01)
    monkeypatch.setattr(slurm, "PATIENCE", 5)
    return Slurm("lab", SlurmTarget.model_validate({"target": "slurm", "logs": str(folder)})), log


def test_a_controller_that_does_not_answer_for_a_while_ends_no_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, log = on(tmp_path, monkeypatch, silent=5)
    (job,) = target.jobs(RUN)
    assert job[:3] == ("7", "running", "")
    assert list(target.lines(job, follow=True)) == log.read_text().splitlines()
    assert target.jobs(RUN)[0].stage == "done"


def test_a_job_that_was_told_to_stop_ends_until_it_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, log = on(tmp_path, monkeypatch, silent=1)
    (job,) = target.jobs(RUN)
    begins, told = log.read_text(), '{"event": "note", "message": "told to stop: what stands is kept"}\n'
    for text, ends in ((begins, False), (begins + told + "three\n", True), (begins + told + begins, False)):
        log.write_text(text)
        assert target.ends(job) == ends


def test_one_that_stays_silent_is_given_up_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, _ = on(tmp_path, monkeypatch, silent=1000)
    (job,) = target.jobs(RUN)
    with pytest.raises(InputError, match="Unable to contact slurm controller"):
        list(target.lines(job, follow=True))

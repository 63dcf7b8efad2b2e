"""A run on a real SLURM of two virtual nodes: sent, signalled, stopped, killed, forgotten, and with its real Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from bfp.errors import InputError, JobFailed
from bfp.specs import load
from bfp.specs.clusters import SlurmTarget
from bfp.specs.profile import Profile
from bfp.targets import Local, Remote, resolve
from bfp.targets import letter as letters
from bfp.targets.cluster import OVER, Backend, Job
from bfp.targets.letter import Letter
from bfp.targets.slurm import Slurm
from bfp.targets.slurm_script import job_name
from tests.cohorts.makers import write_bids
from tests.drivers.test_ingest import spec_of
from tests.slurm import NODES, NoSlurm, slurm
from tests.targets.makers import write_spec
from tests.targets.slurm_stand_in import CHECKOUT, UNITS, make_environment

WITHIN_S = 300.0


@pytest.fixture(scope="module")
def cluster(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    patch = pytest.MonkeyPatch()
    patch.setattr("bfp.targets.slurm.ASKED_EVERY_S", 0.2)
    try:
        with slurm(shared, tmp_path_factory.mktemp("slurm")) as configuration:
            patch.setenv("SLURM_CONF", configuration)
            yield configuration
    except NoSlurm as error:
        pytest.skip(f"no SLURM here: {error}")
    finally:
        patch.undo()


class Trial:
    """A run of its own on that SLURM, with stand-ins for Ray and the driver."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / 'it\'s "here" 100%j'  # which `sbatch` has to take as it is
        self.folder.mkdir()
        self.environment = make_environment(folder / "env")
        self.slurm = self.of()
        self.run = f"{self.folder}/runs/small"

    def of(self, **changes: Any) -> Slurm:
        fields = {"nodes": NODES, "cpus_per_node": 1, "time_h": 1.0, "environment": str(self.environment), **changes}
        self.settings = SlurmTarget.model_validate({"target": "slurm", **fields})
        return Slurm("lab", self.settings)

    def letter(self, **fields: object) -> Letter:
        spec = load(write_spec(self.folder, **fields))
        return letters.letter(spec, target="lab", settings=self.settings, nodes=NODES)

    def send(self) -> Job:
        return self.slurm.send(self.letter(), attempt=1, listener=print)

    def job(self) -> Job:
        return self.slurm._ask(self.run)[-1]

    def log(self) -> str:
        return "".join(log.read_text() for log in sorted(Path(self.run, "slurm").glob("*.log")))

    def until(self, come: Callable[[], object]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not come():
            assert time.monotonic() < deadline, f"{self.job()}\n{self.log()}"
            time.sleep(0.2)

    def counts(self) -> bool:
        return '"done": 2,' in self.log() or '"done": 2}' in self.log()

    def over(self) -> Job:
        self.until(lambda: self.job().stage in OVER)
        return self.job()

    def restarts(self) -> int:
        shown = call("scontrol", "show", "job", self.job().id)
        return int(shown.partition("Restarts=")[2].split()[0])

    def left(self) -> list[str]:
        """What is still there of the job's processes and folders."""
        command = ["pgrep", "-f", f"stand-in.*{self.environment}"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.split()
        return found + [str(folder) for folder in Path("/tmp").glob(f"bfp-{self.job().id}-*")]


def call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def trial(cluster: str, tmp_path: Path) -> Iterator[Trial]:
    made = Trial(tmp_path)
    yield made
    subprocess.run(["scancel", f"--name={job_name(made.run)}"])


def test_a_job_goes_back_into_the_queue_at_the_warning_and_is_followed_to_its_end(trial):
    job = trial.send()
    assert job.digest == trial.letter().digest
    trial.until(trial.counts)
    call("scancel", "--signal=USR1", "--batch", job.id)  # as SLURM does, warning_s before the time limit
    trial.until(lambda: "may begin" in trial.job().said)
    call("scontrol", "update", f"jobid={job.id}", "starttime=now")  # which is two minutes from then
    said = list(trial.slurm.lines(job, follow=True))
    lines = [line for line in said if '"message": "it waits ' not in line]  # which its log does not hold
    assert trial.job() == Job(job.id, "done", "", 0, job.digest)
    assert trial.restarts() == 1
    assert f"bfp: job {job.id} of spec {job.digest} goes on in the queue" in lines
    assert lines[-1] == f"bfp: job {job.id} of spec {job.digest} ended with 0"
    done = [json.loads(line)["done"] for line in lines if '"progress"' in line]
    assert done == list(range(1, UNITS + 1))
    assert list(trial.slurm.lines(job, follow=False)) == lines
    trial.until(lambda: not trial.left())


def test_what_a_job_keeps_to_itself_is_in_no_command_line_and_no_log(trial, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-who-submits")
    secrets = trial.folder / "secrets.env"
    secrets.write_text("AWS_SECRET_ACCESS_KEY=of-the-file\n")
    secrets.chmod(0o600)
    trial.slurm = trial.of(secrets_file=str(secrets))
    trial.send()
    trial.until(trial.counts)
    trial.until(lambda: (trial.environment / "ray-commands").read_text().count("--num-cpus") == NODES)
    environment = json.loads((trial.environment / "environment.json").read_text())
    token = Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert environment["RAY_AUTH_MODE"] == "token"
    assert len(token) == 64
    assert environment["AWS_SECRET_ACCESS_KEY"] == "of-the-file"
    spoken = call("ps", "-eww", "-o", "args") + trial.log() + (trial.environment / "ray-commands").read_text()
    for secret in (token, "of-the-file", "of-who-submits"):
        assert secret not in spoken
    assert token not in environment.values()


def test_two_who_send_one_run_at_once_get_one_job(trial):
    trial.slurm = trial.of(options=["--hold"])
    letter, found = trial.letter(), []
    others = [Slurm("lab", trial.settings) for _ in range(4)]

    def send(of: Slurm) -> None:
        found.append(of.send(letter, attempt=1, listener=print))

    threads = [threading.Thread(target=send, args=(of,)) for of in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job.id for job in found}) == 1
    assert call("squeue", "-h", "--states=all", f"--name={job_name(trial.run)}", "-t", "PD", "-o", "%i").split() == [
        found[0].id
    ]


def test_a_job_that_waits_says_why_and_is_taken_out_of_the_queue_by_stop(trial):
    trial.slurm = trial.of(options=["--hold"])
    job = trial.send()
    assert (job.stage, job.said) == ("waiting", f"it waits until you let it go: scontrol release {job.id}")
    trial.slurm.stop(job)
    assert trial.over()[:3] == (job.id, "stopped", "it was cancelled; submit the same again to go on")
    assert list(trial.slurm.lines(job, follow=True)) == []


def test_more_than_the_partition_has_waits_for_ever_and_says_so(trial):
    trial.slurm = trial.of(nodes=NODES + 3)
    trial.send()
    trial.until(lambda: "so for ever" in trial.job().said)
    assert "see nodes and cpus_per_node" in trial.job().said


def test_a_run_that_is_stopped_saves_and_does_not_come_back(trial):
    job = trial.send()
    trial.until(trial.counts)
    trial.slurm.stop(job)
    found = trial.over()
    assert (found.stage, found.exit_code) == ("stopped", 130)
    assert found.said == "it was told to end, and saved what stands; submit the same again to go on"
    assert (trial.environment / "kept").exists()
    assert trial.restarts() == 0
    trial.until(lambda: not trial.left())


def test_what_is_sent_while_a_stopped_run_saves_begins_after_it_and_goes_on(trial):
    (trial.environment / "saves_s").write_text("4")
    remotes = [Remote("lab", trial.settings, Slurm("lab", trial.settings), file="bfp.toml") for _ in range(2)]
    spec, heard = load(write_spec(trial.folder)), []
    first = remotes[0].send(spec)
    trial.until(trial.counts)
    stopping = threading.Thread(target=remotes[1].stop, args=(spec.folder,))
    stopping.start()
    trial.until(lambda: trial.slurm.ends(trial.job()))
    second = remotes[0].send(spec, listener=heard.append)
    stopping.join()
    assert int(second.id) > int(first.id)
    assert heard[0]["message"] == f"job {first.id} was told to stop: waiting until it has saved"
    assert trial.over()[:2] == (second.id, "done")
    done = [json.loads(line)["done"] for line in trial.log().splitlines() if '"progress"' in line]
    assert done == list(range(1, UNITS + 1)), "each once, over both jobs"


def test_a_job_that_is_cancelled_past_us_saves_if_it_can_and_does_not_come_back(trial):
    job = trial.send()
    trial.until(trial.counts)
    call("scancel", job.id)
    found = trial.over()
    assert found.stage == "stopped"
    trial.until(lambda: not trial.left())
    assert (trial.environment / "kept").exists()
    assert trial.restarts() == 0


def test_a_driver_that_is_killed_is_told_and_the_next_job_goes_on(trial):
    job = trial.send()
    trial.until(trial.counts)
    os.kill(int((trial.environment / "driver.pid").read_text()), signal.SIGKILL)
    lines = list(trial.slurm.lines(job, follow=True))
    found = trial.job()
    assert (found.stage, found.exit_code) == ("failed", 137)
    assert "its driver was killed (exit code 137), as when memory runs out" in found.said
    assert any("the driver was ended from outside" in line for line in lines)
    again = trial.send()
    assert again.id != job.id
    assert [job.id for job in trial.slurm.jobs(trial.run)] == [job.id, again.id]


def rays(trial: Trial) -> list[str]:
    return subprocess.run(
        ["pgrep", "-f", f"stand-in-ray {trial.environment}"], capture_output=True, text=True
    ).stdout.split()


def test_ray_is_started_again_on_another_node_and_on_the_first_its_end_is_the_job_s(trial):
    trial.send()
    trial.until(trial.counts)
    trial.until(lambda: len(rays(trial)) == NODES)
    head, worker = map(int, rays(trial))
    os.kill(worker, signal.SIGKILL)
    trial.until(lambda: "Ray on node n2 has ended" in trial.log())
    trial.until(lambda: len(rays(trial)) == NODES)
    os.kill(head, signal.SIGKILL)
    found = trial.over()
    assert (found.stage, found.exit_code) == ("failed", 1)
    assert "Ray's head on n1 has ended, and the run with it: submit the same again to go on" in trial.log()
    trial.until(lambda: not trial.left())


class CameBack:
    """A cluster on which a job was put back into the queue, began again, and then failed without a word."""

    def jobs(self, run: str) -> list[Job]:
        return [Job("7", "failed", "its driver was killed")]

    def lines(self, job: Job, *, follow: bool) -> Iterator[str]:
        yield '{"event": "end", "outcome": "interrupted", "message": "stopped after step 3"}'
        yield '{"event": "start", "resumed": true}'


def test_a_run_that_fails_after_it_came_back_has_failed(tmp_path):
    settings = SlurmTarget.model_validate({"target": "slurm"})
    target = Remote("lab", settings, cast(Backend, CameBack()), file="bfp.toml")
    with pytest.raises(JobFailed, match="its driver was killed"):
        target.follow("/runs/a", Job("7", "running"), listener=lambda event: None)


def test_a_partition_that_is_not_there_is_told_with_the_remedy(trial):
    trial.slurm = trial.of(partition="gpus")
    with pytest.raises(
        InputError, match=r"\[lab\] partition: the cluster has none of this name; `sinfo -s` lists them"
    ):
        trial.send()


def test_away_from_a_login_node_the_message_says_where_to_go(trial, monkeypatch):
    monkeypatch.setenv("PATH", str(trial.folder))
    with pytest.raises(InputError, match="--on lab: sbatch is not on this machine: run it on a login node"):
        trial.send()


def test_a_run_on_object_storage_needs_a_folder_for_the_job_s_log(trial):
    with pytest.raises(InputError, match=r"\[lab\] logs: missing; the run's folder is s3://b/runs/small"):
        trial.slurm.manifest(trial.letter(output="s3://b/runs"))


def test_what_slurm_has_forgotten_is_told_by_the_last_line_of_its_log(trial):
    logs = Path(trial.run, "slurm")
    logs.mkdir(parents=True)
    for number, last in (
        (900_001, "ended with 0"),
        (900_002, "ended with 130"),
        (900_003, "ended with 1"),
        (900_004, "goes on in the queue"),
        (900_005, "begins on n1"),
    ):
        text = f"bfp: job {number} of spec 0a1b begins on n1\nwords\nbfp: job {number} of spec 0a1b {last}\n"
        (logs / f"{job_name(trial.run)}-{number}.log").write_text(text)
    found = trial.slurm.jobs(trial.run)
    assert [(job.stage, job.exit_code, job.digest) for job in found] == [
        ("done", 0, "0a1b"),
        ("stopped", 130, "0a1b"),
        ("failed", 1, "0a1b"),
        ("stopped", None, "0a1b"),
        ("stopped", None, "0a1b"),
    ]
    assert list(trial.slurm.lines(found[0], follow=True))[1] == "words"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.long
def test_an_ingest_on_two_nodes_makes_the_same_store_as_on_this_machine(cluster, ray_session, tmp_path):
    dataset = write_bids(tmp_path / "bids", subjects=4)
    told = {
        "target": "slurm",
        "nodes": NODES,
        "cpus_per_node": 1,
        "shared_paths": [str(tmp_path)],
        "env": {"PYTHONPATH": f"{CHECKOUT}/platform"},
    }
    profile = Profile("bfp.toml", clusters={"lab": SlurmTarget.model_validate(told)})
    there, here = (spec_of(tmp_path / name, dataset, name=name) for name in ("there", "here"))
    target, heard = resolve("lab", profile=profile), []
    assert isinstance(target, Remote)
    target.plan(there)
    job = target.send(there)
    done = target.follow(there.folder, job, listener=heard.append)
    with Local() as local:
        local.submit(here, listener=lambda event: None)
    assert contents(tmp_path / "there" / "store") == contents(tmp_path / "here" / "store")
    assert done["status"]["outcome"] == "done"
    assert [event["event"] for event in heard][-1] == "end"
    assert target.job(there.folder) == Job(job.id, "done", "", 0, job.digest)


def test_doctor_is_told_what_fits_and_what_does_not(trial):
    trial.slurm = trial.of(environment=sys.prefix)
    assert {check.verdict for check in trial.slurm.checks()} == {"ok"}
    secrets = trial.folder / "secrets.env"
    secrets.write_text("")
    trial.slurm = trial.of(cpus_per_node=64, secrets_file=str(secrets), environment=str(trial.folder))
    found = {check.point: check for check in trial.slurm.checks()}
    assert found["nodes"].text == f"0 of {NODES} have what is asked for, {NODES} wanted"
    assert found["environment"].verdict == "fail"
    assert found["secrets"].remedy.startswith(f"chmod 600 {secrets}")
    trial.slurm = trial.of(partition="gpus")
    assert "partition" in next(check for check in trial.slurm.checks() if check.point == "job").remedy

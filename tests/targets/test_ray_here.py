"""Ray inside this process: what it is told, what it leaves behind, and when it does not start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bfp.errors import JobFailed
from bfp.targets import ray_here

START = """
from bfp.targets import Local, local
local.start_ray = lambda *, cpus: None
Local(cpus=1)._start_ray()
from ray._private import auto_init_hook
assert not auto_init_hook.enable_auto_connect
"""


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch) -> Path:
    """Where the folders of Ray's logs lie while a test goes on."""
    monkeypatch.setattr(ray_here, "FOLDERS", str(tmp_path))
    return tmp_path


def test_a_thread_left_over_from_a_stopped_run_cannot_start_ray_again():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    subprocess.run([sys.executable, "-c", START], check=True, env=environment)


def test_a_ray_that_does_not_start_is_told_with_its_logs_and_stopped(folders, monkeypatch):
    import ray

    def times_out(**settings: object) -> None:
        around = Path(str(settings["_temp_dir"])).parent
        assert around.stat().st_mode & 0o777 == 0o700  # Ray opens its own folder to everybody
        raise Exception("The current node timed out during startup.\nThis could happen because…")

    stopped = []
    monkeypatch.setattr(ray, "init", times_out)
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(True))
    with pytest.raises(JobFailed, match=r"timed out during startup.*may be busy, so try again") as failed:
        ray_here.start_ray(cpus=1)
    (logs,) = folders.iterdir()
    assert str(logs) in str(failed.value)
    assert "This could happen" not in str(failed.value)
    assert len(stopped) == ray_here.STARTS
    assert not (logs / "owner").exists()  # else the next start would remove what the message names


def test_a_ray_that_a_busy_machine_kept_from_starting_is_started_again(folders, monkeypatch):
    import ray

    starts = []

    def starts_at_last(**settings: object) -> None:
        starts.append(settings["_temp_dir"])
        if len(starts) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", starts_at_last)
    logs = ray_here.start_ray(cpus=1)
    assert starts == [f"{logs}/ray"] * 2
    assert (Path(logs) / "owner").exists()  # else the next start would take it for an orphan's

"""The lines of a job on a Ray cluster whose connection breaks or falls silent: each is heard once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from bfp.specs.clusters import RayTarget
from bfp.targets import ray_jobs
from bfp.targets.cluster import Job
from bfp.targets.ray_jobs import RayJobs

LOG = "one\ntwo\u2028half\nthree\nfour"


class Client:
    """Of a job that is over once its log was asked for `tails` times; each time it gives so many letters more."""

    def __init__(self, *letters: int, silent: bool = False) -> None:
        self.letters, self.silent = list(letters), silent

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield LOG[: self.letters.pop(0)]
        if self.silent:
            await asyncio.sleep(60)

    def list_jobs(self) -> list[Any]:
        status = SimpleNamespace(value="RUNNING" if self.letters else "SUCCEEDED")
        return [SimpleNamespace(submission_id="job", status=status, message="", driver_exit_code=0, metadata={})]

    def get_job_logs(self, job: str) -> str:
        return LOG


@pytest.mark.parametrize(
    "client", [Client(len(LOG)), Client(5, 9, 21), Client(5, len(LOG), silent=True)], ids=["whole", "broken", "silent"]
)
def test_each_line_is_heard_once_whatever_becomes_of_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "QUIET_S", 0.2)
    cluster = RayJobs("lab", RayTarget.model_validate({"target": "ray", "address": "http://lab:8265"}))
    cluster._client = client
    assert list(cluster.lines(Job("job", "running"), follow=True)) == LOG.split("\n")

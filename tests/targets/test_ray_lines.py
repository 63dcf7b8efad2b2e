"""The lines of a job on a Ray cluster whose connection breaks or falls silent: each is heard once."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from bfp.errors import InputError
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


class Session:
    """What a connection is, which takes a moment to close."""

    async def __aenter__(self) -> None:
        """It is open."""

    async def __aexit__(self, *error: object) -> None:
        await asyncio.sleep(0)


class Going(Client):
    """Of a job that goes on, and says nothing more for now."""

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        async with Session():
            yield "one\n"
            yield "two\n"
            await asyncio.sleep(60)


@pytest.mark.parametrize("after", [1, None], ids=["a refusal", "Ctrl-C"])
def test_whoever_stops_listening_leaves_nothing_open(after: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    monkeypatch.setattr(asyncio.BaseEventLoop, "call_exception_handler", lambda self, context: said.append(context))
    if after is None:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()

    def listen() -> None:
        for number, _ in enumerate(on(Going()).lines(Job("job", "running"), follow=True), 1):
            if number == after:
                raise InputError("refused")

    with pytest.raises(InputError if after else KeyboardInterrupt):
        listen()
    gc.collect()
    assert said == []


@pytest.mark.parametrize(("text", "told"), [("required", "asks for a token (401)"), ("failed", "does not take (403)")])
def test_the_job_client_s_own_word_on_a_token_is_told_as_every_other(text: str, told: str) -> None:
    from ray.exceptions import AuthenticationError

    client = Going()
    client.list_jobs = lambda: raising(AuthenticationError(f"Authentication {text}: use --debug"))  # type: ignore[method-assign]
    with pytest.raises(InputError) as caught:
        on(client).jobs("/data/runs/small")
    assert all(word in str(caught.value) for word in told.split(" (")), caught.value
    assert "--debug" not in str(caught.value)


def raising(error: Exception) -> Any:
    raise error


def test_a_job_whose_driver_has_said_that_it_stops_ends() -> None:
    client = Going()
    job = Job("job", "running")
    assert not on(client).ends(job)
    client.get_job_logs = lambda job: '{"event": "note", "message": "stopping; what stands is kept"}\n'  # type: ignore[method-assign]
    assert on(client).ends(job)


def on(client: Client) -> RayJobs:
    cluster = RayJobs("lab", RayTarget.model_validate({"target": "ray", "address": "http://lab:8265"}))
    cluster._client = client
    return cluster


@pytest.mark.parametrize(
    "client", [Client(len(LOG)), Client(5, 9, 21), Client(5, len(LOG), silent=True)], ids=["whole", "broken", "silent"]
)
def test_each_line_is_heard_once_whatever_becomes_of_the_connection(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "QUIET_S", 0.2)
    assert list(on(client).lines(Job("job", "running"), follow=True)) == LOG.split("\n")

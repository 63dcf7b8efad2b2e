"""What a Ray dashboard answers, or does not: read whole, and told in plain words. The server here is a stand-in."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from bfp.errors import InputError
from bfp.specs.clusters import RayTarget
from bfp.targets import ray_jobs
from bfp.targets.ray_jobs import RayJobs

SILENT_S = 40.0
TOLD_AT_MOST = 100  # nodes, unless who asks sets a limit, as Ray's state API does


@contextmanager
def dashboard(*, nodes: int = 0, status: int = 200, silent: bool = False) -> Iterator[str]:
    over = threading.Event()

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if silent:
                over.wait(SILENT_S)
                return
            limit = int(parse_qs(urlsplit(self.path).query).get("limit", [TOLD_AT_MOST])[0])
            each = {"resources_total": {"CPU": 4.0, "GPU": 1.0, "memory": 8e9}}
            body = json.dumps({"data": {"result": {"result": [each] * min(limit, nodes)}}}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def of(address: str, **fields: Any) -> RayJobs:
    return RayJobs("lab", RayTarget.model_validate({"target": "ray", "address": address, **fields}))


def test_a_cluster_of_more_than_a_hundred_nodes_is_counted_whole() -> None:
    with dashboard(nodes=250) as address:
        found = of(address).capacity()
    assert (found.cpus, found.gpus, round(found.memory_gb)) == (1000, 250, 2000)


def test_a_token_that_a_proxy_does_not_take_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TOKEN", "hidden-one")
    with dashboard(status=401) as address, pytest.raises(InputError) as caught:
        of(address, token={"env": "LAB_TOKEN"}).capacity()
    assert "does not take the token that was sent (401)" in str(caught.value)
    assert "hidden-one" not in str(caught.value)


@pytest.mark.parametrize("ask", [lambda jobs: jobs.capacity(), lambda jobs: jobs.jobs("/data/runs/a")])
def test_a_dashboard_that_takes_a_request_and_never_answers_is_given_up(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(ray_jobs, "ANSWER_S", 0.5)
    began = time.monotonic()
    with dashboard(silent=True) as address:
        with pytest.raises(InputError, match="the cluster lab does not answer"):
            ask(of(address))
        assert time.monotonic() - began < SILENT_S / 2

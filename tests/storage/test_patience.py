from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from bfp.errors import StorageError
from bfp.storage import Place, patience, repeats
from bfp.storage.patience import Exhausted, may_pass, patiently


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that are waited, on a clock that only they move; the store called known has answered before."""
    waited: list[float] = []
    patiently(lambda: None, store="known")
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(waited))
    monkeypatch.setattr(patience.time, "sleep", waited.append)
    return waited


class Away:
    """A store that fails so many times before it answers."""

    def __init__(self, times: float, error: Exception) -> None:
        self.left, self.error = times, error

    def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "answer"


def test_waits_grow_and_are_drawn(waits: list[float]) -> None:
    before = repeats()
    assert patiently(Away(7, ConnectionResetError("gone")), store="known") == "answer"
    assert repeats() - before == 7
    for tries, wait_s in enumerate(waits):
        mean = min(patience.LONGEST_WAIT_S, patience.FIRST_WAIT_S * 2**tries)
        assert mean / 2 <= wait_s <= 1.5 * mean
    assert len({wait_s / 2**tries for tries, wait_s in enumerate(waits)}) == 7


def test_patience_with_a_store_that_answered_before_ends_within_its_bound(waits: list[float]) -> None:
    with pytest.raises(Exhausted, match=r"^gone \(tried \d+ times in \d+ s\)$"):
        patiently(Away(float("inf"), ConnectionResetError("gone")), store="known")
    assert patience.PATIENCE_S - 1.5 * patience.LONGEST_WAIT_S < sum(waits) <= patience.PATIENCE_S


def test_a_store_that_was_never_heard_of_is_given_up_soon(waits: list[float]) -> None:
    with pytest.raises(Exhausted):
        patiently(Away(float("inf"), ConnectionRefusedError("nobody there")), store="mistyped")
    assert sum(waits) <= patience.FIRST_CONTACT_S


def test_a_store_that_only_ever_said_that_it_is_busy_was_heard_of(waits: list[float]) -> None:
    busy = ClientError({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "GetObject")
    with pytest.raises(Exhausted, match="the store answers 503 SlowDown"):
        patiently(Away(float("inf"), busy), store="busy")
    assert sum(waits) > patience.PATIENCE_S - 1.5 * patience.LONGEST_WAIT_S


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), OSError(28, "full"), ValueError("x")])
def test_what_does_not_pass_is_raised_at_once(error: Exception, waits: list[float]) -> None:
    with pytest.raises(type(error)):
        patiently(Away(1, error), store="known")
    assert waits == []


@pytest.mark.parametrize(
    ("said", "passes"),
    [
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached", True),
        ("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body.", True),
        ("AWS Error SLOW_DOWN during GetObject operation: reduce your request rate", True),
        ("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body.", False),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
    ],
)
def test_pyarrow_s_failures_are_told_apart_by_their_text(said: str, passes: bool) -> None:
    assert may_pass(OSError(said)) is passes


def test_ctrl_c_breaks_a_wait_off(monkeypatch: pytest.MonkeyPatch) -> None:
    patiently(lambda: None, store="known")
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 10.0)
    began = time.monotonic()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        patiently(Away(float("inf"), TimeoutError()), store="known")
    assert time.monotonic() - began < 3


def test_a_disk_is_asked_once(tmp_path: Path, waits: list[float]) -> None:
    with pytest.raises(StorageError, match="nothing is there"):
        Place(str(tmp_path / "absent")).read()
    assert waits == []

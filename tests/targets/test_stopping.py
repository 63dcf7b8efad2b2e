"""Signals while a run goes on: real ones, to this process."""

from __future__ import annotations

import os
import signal
import time

import pytest

from bfp.runs import Run
from bfp.storage import Place
from bfp.targets import stopping
from bfp.targets.stopping import StopOnSignal


def a_run(tmp_path) -> Run:
    return Run(Place(f"{tmp_path}/run"), spec_yaml="kind: infer\n", kind="infer", version="0")


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_the_first_signal_asks_and_tells_the_second_breaks_off(number, tmp_path):
    run, told = a_run(tmp_path), []
    with StopOnSignal(run, tell=told.append):
        os.kill(os.getpid(), number)
        assert run.stopping
        os.kill(os.getpid(), number)  # at once: the same, to a process and then to its group
        assert len(told) == 1
        time.sleep(stopping.SAME_S)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # further ones are ignored
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_driver_that_does_not_listen_is_broken_off_after_a_while(tmp_path):
    with StopOnSignal(a_run(tmp_path), tell=lambda text: None, grace_s=0.1):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5)


def test_a_run_that_stops_in_time_is_not_broken_off_later(tmp_path):
    with StopOnSignal(a_run(tmp_path), tell=lambda text: None, grace_s=0.1):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)


def test_once_the_driver_is_done_signals_break_nothing_off(tmp_path):
    run = a_run(tmp_path)
    with StopOnSignal(run, tell=lambda text: None, grace_s=0.1) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        signals.settle()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)
    assert run.stopping


def test_without_a_bound_a_run_is_waited_for(tmp_path):
    with StopOnSignal(a_run(tmp_path), tell=lambda text: None, grace_s=None):
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_on_a_cluster_signals_after_the_first_change_nothing(tmp_path):
    """Ray's stop and the hook of the pod each send one, seconds apart."""
    run, told = a_run(tmp_path), []
    with StopOnSignal(run, tell=told.append, grace_s=None, once=True):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(2 * stopping.SAME_S)
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stopping
    assert told == ["stopping; what stands is kept"]

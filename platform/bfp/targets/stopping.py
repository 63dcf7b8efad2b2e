"""Ctrl-C and SIGTERM while a run goes on.

The first asks the run to stop: its driver looks between units of work, keeps what stands and raises Interrupted. If
it has not done so after the grace that its kind has, or at a second Ctrl-C, whatever it waits for is broken off: the
run resumes from what was committed or saved before. Further ones are ignored, so that the end is not broken off as
well; so are those within SAME_S of the first, which are the same to a user (`timeout` signals a process and its group).
On a cluster nobody presses a key twice, and each of those who stop a job sends a signal: there the first one counts.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

from bfp.runs import Run

GRACE_S = 30.0
SAME_S = 0.5
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPING = "stopping; what stands is kept"


class StopOnSignal:
    """While it is entered, signals stop the run.

    `tell` says so to the user; it must not write to the run, since a signal may come in the middle of a write. grace_s:
    None waits for as long as it takes: a step of pretraining and its checkpoint have no upper bound. once: whether
    signals after the first change nothing.

    Raises KeyboardInterrupt in the main thread when the run is broken off.
    """

    def __init__(
        self, run: Run, *, tell: Callable[[str], None], grace_s: float | None = GRACE_S, once: bool = False
    ) -> None:
        self._run = run
        self._once = once
        self._tell = tell
        self._grace_s = grace_s
        self._first_s = 0.0

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
        self.arm()
        return self

    def arm(self) -> None:
        """Take the signals; again after `ray.init`, which takes SIGTERM for itself."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGALRM, self._break_off)

    def settle(self) -> None:
        """Nothing is left to break off: from here on signals are noted and the end takes its course."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in SIGNALS:
            signal.signal(number, lambda *_: self._run.ask_to_stop())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._first_s and (self._once or time.monotonic() - self._first_s < SAME_S):
            return
        if self._run.stopping:
            self._break_off(number, frame)
        self._first_s = time.monotonic()
        self._run.ask_to_stop()
        self._tell(STOPPING + ("" if self._once else ". Ctrl-C again stops at once"))
        signal.setitimer(signal.ITIMER_REAL, self._grace_s or 0)

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._run.ask_to_stop()
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        raise KeyboardInterrupt

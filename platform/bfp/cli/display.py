"""A run as it goes on: phase, bar, rate, time left and the last figures.

The display is a listener of the run's events. On a terminal one line is alive at the bottom and what is over scrolls
up; elsewhere (a log file, CI) plain lines say the same, progress no more often than every PLAIN_EVERY_S.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bfp.cli.output import console
from bfp.reports.numbers import duration_text, number_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

PLAIN_EVERY_S = 10.0
RATE_WINDOW_S = 30.0
OWN_FIELDS = {"time", "event", "phase", "done", "total", "unit"}


class Progress:
    """What is known of the phase that is going on. `now` is a clock in seconds, given so that tests can turn it."""

    def __init__(self, phase: str, *, total: int | None, unit: str, now: float) -> None:
        self.phase = phase
        self.total = total
        self.unit = unit
        self.done: int | None = None
        self.figures: dict[str, Any] = {}
        self._began = now
        self._seen: deque[tuple[float, int]] = deque()

    def hear(self, event: Mapping[str, Any], *, now: float) -> None:
        """Take in a progress event."""
        self.done = event["done"]
        self.figures |= {name: value for name, value in event.items() if name not in OWN_FIELDS}
        self._seen.append((now, event["done"]))
        while now - self._seen[0][0] > RATE_WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    def rate(self) -> float | None:
        """Units a second over the last while; None before there are two sightings.

        The first sighting only starts the clock: what an earlier submission did counts as nobody's work.
        """
        (first_at, first), (last_at, last) = (self._seen[0], self._seen[-1]) if self._seen else ((0.0, 0), (0.0, 0))
        return (last - first) / (last_at - first_at) if last_at > first_at and last > first else None

    def left_s(self) -> float | None:
        """Seconds to the end of the phase at this rate."""
        rate = self.rate()
        if rate is None or self.total is None or self.done is None:
            return None
        return max(0, self.total - self.done) / rate

    def seconds(self, now: float) -> float:
        return now - self._began

    def words(self) -> list[str]:
        """ "12/40 shards", "1.3/s", "21 s left", "loss 3.21": what is known, in this order."""
        words = []
        if self.done is not None:
            of = f"/{self.total:,}" if self.total is not None else ""
            words.append(f"{self.done:,}{of} {self.unit}".rstrip())
        if (rate := self.rate()) is not None:
            words.append(f"{number_text(rate)}/s")
        if left := self.left_s():
            words.append(f"{duration_text(left)} left")
        words += [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in self.figures.items()]
        return words


class Display:
    """Listens to a run from `with Display()` to its end."""

    def __init__(self) -> None:
        self._console = console(stderr=True)
        self._progress: Progress | None = None
        self._plain_at = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.live import Live
            from rich.spinner import Spinner

            self._spinner = Spinner("line")
            self._live = Live(
                console=self._console,
                get_renderable=self._line,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        now = time.monotonic()
        match event["event"]:
            case "phase":
                self._close_phase(now)
                self._progress = Progress(event["phase"], total=event["total"], unit=event["unit"], now=now)
                self._plain_at = now
                if self._live is None:
                    self._say(f"{event['phase']} …")
            case "progress" if self._progress is not None:
                self._progress.hear(event, now=now)
                if self._live is None and now - self._plain_at >= PLAIN_EVERY_S:
                    self._plain_at = now
                    self._say(", ".join([self._progress.phase, *self._progress.words()]))
            case "warning":
                self._say(f"warning: {event['message']}", style="yellow")
            case "note":
                self._say(event["message"])
            case "end":
                self._close_phase(now)

    def _close_phase(self, now: float) -> None:
        over, self._progress = self._progress, None
        if over is not None:
            self._say(", ".join([f"{over.phase}: {duration_text(over.seconds(now))}", *over.words()[:1]]))

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(f"  {text}", style=style, markup=False, soft_wrap=True)

    def _line(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if self._progress is None:
            return Text("")
        line = Table.grid(padding=(0, 1))
        cells: list[RenderableType] = [self._spinner, Text(self._progress.phase, style="bold")]
        if self._progress.total and self._progress.done is not None:
            cells.append(ProgressBar(total=self._progress.total, completed=self._progress.done, width=24))
        line.add_row(*cells, Text(" · ".join(self._progress.words()), overflow="ellipsis", no_wrap=True))
        return line


def event_line(event: Mapping[str, Any]) -> str:
    """An event of a run on one line, for `bfp logs`."""
    match event["event"]:
        case "phase":
            said = f"{event['phase']}" + (f": {event['total']} {event['unit']}" if event["total"] is not None else "")
        case "progress":
            heard = Progress(event["phase"], total=event["total"], unit=event["unit"], now=0.0)
            heard.hear(event, now=0.0)
            said = ", ".join([event["phase"], *heard.words()])
        case "start":
            said = f"{event['kind']} {'resumed' if event['resumed'] else 'started'} by bfp {event['version']}"
        case "end":
            said = f"{event['outcome']} after {duration_text(event['seconds'])}"
        case _:
            said = f"{event['event']}: {event['message']}"
    return f"{event['time']}  {said}"


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else number_text(value)

"""The board between a pretraining's workers and its driver: an actor, a process that imports what stands here.

Without torch, so that the board stands before the workers do, and takes no time from them.
"""

from __future__ import annotations

from typing import NamedTuple

from bfp.errors import BfpError


class News(NamedTuple):
    """What has come to the board since it was last read.

    figures: (steps done, figures by name), in order. starts: the step that each start of the workers began from. notes:
    what the user should know. saving: the last step of which a checkpoint is all but complete. finished: the steps done
    when the workers last ended by themselves, None while they work. failure: what ends the run. working: whether there
    are workers that train, who hear a wish to stop; there are none while they start, or wait for a node.
    """

    figures: list[tuple[int, dict[str, float]]]
    starts: list[int]
    notes: list[str]
    saving: int
    finished: int | None
    failure: BfpError | None
    working: bool


class Board:
    """An actor between the workers and the driver."""

    def __init__(self) -> None:
        self._news = News([], [], [], 0, None, None, False)
        self._kept = 0
        self._stopping = False

    def begin(self) -> None:
        """Workers are asked for, once more where those of before were told to end."""
        self._news = self._news._replace(finished=None, working=False)

    def started(self, step: int) -> None:
        self._news.starts.append(step)
        self._news = self._news._replace(finished=None, working=True)

    def lost(self) -> None:
        """A worker has died, and Ray Train ends the others."""
        self._news = self._news._replace(working=False)

    def note(self, text: str) -> None:
        self._news.notes.append(text)

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._news.figures.append((step, figures))

    def saving(self, step: int) -> None:
        self._news = self._news._replace(saving=step)

    def keep(self, step: int) -> None:
        """The run has kept all news up to the step."""
        self._kept = step

    def kept(self) -> int:
        return self._kept

    def finished(self, step: int) -> None:
        self._news = self._news._replace(finished=step)

    def failed(self, error: BfpError) -> None:
        self._news = self._news._replace(failure=error)

    def is_over(self) -> bool:
        """Whether workers that start have nothing left to do: the run has failed, or was to stop and has."""
        return self._news.failure is not None or (self._stopping and self._news.finished is not None)

    def stop(self) -> None:
        self._stopping = True

    def stopping(self) -> bool:
        return self._stopping

    def take(self) -> News:
        """The news, which are then no longer new."""
        taken, self._news = self._news, self._news._replace(figures=[], starts=[], notes=[])
        return taken

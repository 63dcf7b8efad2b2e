"""Text and JSON: two renderings of one result.

What a command found goes to standard output, as text for people or, with --json, as one JSON document. What happens
on the way (the live display, warnings) goes to standard error, so that a script reads only results.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from bfp.errors import StorageError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from bfp.runs import Event
    from bfp.storage import Place

FILE_WIDTH = 160  # characters, where there is no terminal to ask
LONG_WORD = 12  # characters: a longer one, such as a path, may be broken where the screen is narrow

Result = TypeVar("Result")


def console(*, stderr: bool = False) -> Console:
    """A console that knows the terminal's width and colours; no colours with NO_COLOR or in a file."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, width=None if terminal else FILE_WIDTH)


def show(result: Result, *, as_json: bool, text: Callable[[Result], Iterable[RenderableType]]) -> None:
    """Print a result: as JSON, or as the lines and tables that `text` makes of it."""
    write([json.dumps(plain(result), indent=2, ensure_ascii=False)] if as_json else text(result))


def plain(value: Any) -> Any:
    """Tuples with names and dataclasses become objects, places their URI."""
    from bfp.storage import Place

    if isinstance(value, Place):
        return str(value)
    if hasattr(value, "_asdict"):
        return {name: plain(entry) for name, entry in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def write(lines: Iterable[RenderableType], *, stderr: bool = False) -> None:
    """Print plain text as it is, so that commands in it can be copied whole, and tables fitted to the width.

    Raises StorageError where standard output leads to a disk that is full.
    """
    stream = sys.stderr if stderr else sys.stdout
    for line in lines:
        with _printing(stream):
            if isinstance(line, str):
                stream.write(f"{line}\n")
                stream.flush()
            else:
                console(stderr=stderr).print(line)


def write_note(event: Event) -> None:
    """What is waited for before there is a display: a listener, on standard error."""
    if event["event"] == "note":
        write([f"  {event['message']}"], stderr=True)


@contextmanager
def _printing(stream: TextIO) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # whoever read has seen enough, as `head` has: the command ends without a word
        raise
    except OSError as error:
        # What could not be written would be tried once more, and fail, as Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise StorageError(f"{stream.name}: cannot write to it: {error.strerror}") from error


def grid(rows: Iterable[Sequence[str]]) -> Table:
    """Rows in aligned columns without lines, two spaces in."""
    from rich.table import Table

    table = Table.grid(padding=(0, 3))
    for number, row in enumerate(rows):
        if number == 0:
            for _ in row:
                table.add_column(overflow="fold")
        table.add_row(*(_literal(cell) for cell in row))
    return _indented(table)


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()
) -> RenderableType:
    """A titled table; the columns whose number stands in `right` are set to the right.

    Where the screen is too narrow for its columns, a list of the rows, each with its cells one below the other.
    """
    from rich import box
    from rich.table import Table

    rows = list(rows)
    texts = [[name, *(row[number] for row in rows)] for number, name in enumerate(columns)]
    words = [max((len(word) for text in column for word in text.split()), default=0) for column in texts]
    if sum(min(width, LONG_WORD) + 3 for width in words) > console().width:
        return _listed(title, columns, rows)
    made = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(
            _literal(column),
            justify="right" if number in set(right) else "left",
            overflow="fold",
            no_wrap=max(map(len, texts[number])) == words[number] <= LONG_WORD,
        )
    for row in rows:
        made.add_row(*(_literal(cell) for cell in row))
    return made


def _listed(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    heading = [Text(f"\n{title}", style="bold")] if title else []
    return Group(*heading, *(Group("", grid(zip(columns, row, strict=True))) for row in rows))


def shown(place: Place) -> str:
    """A place as a user would type it: relative where that is shorter, quoted where a shell needs it."""
    text = str(place)
    if place.is_local:
        text = min(text, os.path.relpath(text), key=len)
    return shlex.quote(text)


def _literal(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def _indented(renderable: Any) -> Any:
    from rich.padding import Padding

    return Padding.indent(renderable, 2)

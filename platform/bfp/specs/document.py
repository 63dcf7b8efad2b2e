"""A spec as a document: safe YAML, read into plain values that know their lines.

What people write is read strictly, and by the rules of YAML 1.2's core schema, not 1.1's: only `true` and `false` are
booleans (`no` is Norway), `12:30` and `1_000` are text, `1e-3` is a number. Tags, anchors, aliases and repeated keys
are mistakes; size and depth are bounded before anything is built.

A path is the way to a value, ("cohorts", 0, "bids"), written `cohorts[0].bids`.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from bfp.errors import Problem, SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
SHOWN_CHARACTERS = 60  # of a value in a message

Path = tuple[str | int, ...]
Event = Any  # one of PyYAML's, whose type stubs give them no fields

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's where PyYAML was built with it: 10 times as fast
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]{1,40}")
_HEX_OR_OCTAL = re.compile(r"0x[0-9a-fA-F]{1,40}|0o[0-7]{1,40}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_PLAIN = re.compile(r"[A-Za-z0-9_./~(<][^,\[\]{}#]*")  # text that needs no quotes, on one line, in a flow
_SPECIAL_FLOAT = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}


class Mark(NamedTuple):
    """Where a key, or an item of a list, begins: both from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """value: None, bool, int, float, str, and lists and dicts (keys are text) of these.

    marks: where each path begins; written: each single value as the user wrote it; assigned: the paths that `--set`
    gave; problems: what is wrong with it as a document, which hides nothing else: `unread` are the paths whose value
    could not be taken. toml: whether people write it as TOML, and read so what is said of it.
    """

    file: str
    value: Any
    marks: dict[Path, Mark] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    unread: set[Path] = field(default_factory=set)
    assigned: frozenset[Path] = frozenset()
    toml: bool = False

    def shown(self, path: Path) -> str | None:
        """The value at a path, as the user wrote it, cut short; None where nothing stands."""
        if path in self.written:
            return _shorten(self.written[path])
        return _shorten(flow(value_at(self.value, path))) if holds(self.value, path) else None


def parse(text: str, *, file: str) -> Document:
    """Read one YAML document. Raises SpecError for what is no YAML, or not one mapping of bounded size and depth."""
    if len(text.encode()) > MAX_BYTES:
        raise SpecError(file, [Problem(None, "", None, f"larger than {MAX_BYTES >> 20} MiB: not a spec")])
    reading = _Reading(file)
    try:
        events = yaml.parse(text, Loader=_Loader)
        value = reading.document(events)
    except yaml.reader.ReaderError as error:
        problem = Problem(
            text.count("\n", 0, error.position) + 1, "", None, f"not text that YAML allows: {error.reason}"
        )
        raise SpecError(file, [problem]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise SpecError(file, [*reading.problems, Problem(line, "", None, f"not YAML: {said}")]) from error
    return Document(file, value, reading.marks, reading.written, reading.problems, reading.unread)


def override(document: Document, assignment: str) -> Document:
    """The document with one value replaced, as `--set train.epochs=3` asks; the value is read as YAML.

    Raises SpecError where the assignment has no such form or its path leads through a single value.
    """
    dotted, equals, text = assignment.partition("=")
    path = _parse_path(dotted)
    if not equals or not path:
        raise SpecError("--set", [Problem(None, "", assignment, "expected FIELD=VALUE, such as train.epochs=3")])
    if text.strip():
        reading = _Reading("--set")
        try:
            given = reading.document(yaml.parse(text, Loader=_Loader))
        except yaml.YAMLError as error:
            raise SpecError("--set", [Problem(None, dotted, text, "not YAML; put the value in quotes")]) from error
        if reading.problems:
            raise SpecError("--set", [Problem(None, dotted, text, reading.problems[0].expected)])
    else:
        given = None
    value = copy.deepcopy(document.value)
    holder = value
    for depth, part in enumerate(path[:-1], start=1):
        if isinstance(part, str) and isinstance(holder, dict) and holder.get(part) is None:
            holder[part] = {}
        try:
            holder = holder[part]
        except (KeyError, IndexError, TypeError) as error:
            where = dotted_path(path[:depth])
            raise SpecError(
                "--set", [Problem(None, dotted, text, f"the spec has no {where} to set a field of")]
            ) from error
    try:
        holder[path[-1]] = given
    except (IndexError, TypeError) as error:
        raise SpecError("--set", [Problem(None, dotted, text, f"{dotted_path(path[:-1])} has no fields")]) from error
    inside = {known for known in {*document.marks, *document.written, *document.unread} if known[: len(path)] == path}
    return Document(
        document.file,
        value,
        {known: mark for known, mark in document.marks.items() if known not in inside},
        {known: word for known, word in document.written.items() if known not in inside} | {path: text},
        document.problems,
        document.unread - inside,
        document.assigned | {path},
    )


def dotted_path(path: Path) -> str:
    """("cohorts", 0, "bids") as `cohorts[0].bids`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def value_at(value: Any, path: Path) -> Any:
    """The value that a path leads to. Raises KeyError, IndexError or TypeError where it leads nowhere."""
    for part in path:
        value = value[part]
    return value


def holds(value: Any, path: Path) -> bool:
    """Whether a path leads to a value."""
    try:
        value_at(value, path)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def flow(value: Any) -> str:
    """A plain value as YAML on one line, the way people write it: `{name: a, bids: data/a}`."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(str(key))}: {flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(entry) for entry in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return _quoted(value) if isinstance(value, str) else str(value)


def resolve(text: str) -> Any:
    """What a plain (unquoted) scalar means in YAML 1.2's core schema."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text)
    if _HEX_OR_OCTAL.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(_SPECIAL_FLOAT[text.lower()]) if text.lower() in _SPECIAL_FLOAT else text


class _Reading:
    """One pass over the events of libyaml: values, marks and mistakes."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[Path, Mark] = {}
        self.written: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self.unread: set[Path] = set()

    def document(self, events: Iterator[Event]) -> Any:
        value: Any = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                value = self._node(next(events), events, ())
                break
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._complain(event, (), "a second document begins here; a file holds one spec")
                break
        return value

    def _node(self, event: Event, events: Iterator[Event], path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            line = _mark(event).line
            raise SpecError(self.file, [Problem(line, "", None, f"nested more than {MAX_DEPTH} deep: not a spec")])
        if isinstance(event, yaml.AliasEvent):
            self._complain(event, path, f"aliases (*{event.anchor}) are not read; write the value out")
            return None
        if event.anchor is not None:
            self._complain(
                event, path, f"anchors (&{event.anchor}) are not read; write the value out where it is needed"
            )
        if event.tag is not None:
            self._complain(
                event,
                path,
                f"tags ({event.tag.replace('tag:yaml.org,2002:', '!!')}) are not read; write the plain value",
            )
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(events, path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(events, path)
        quote = event.style if event.style in ("'", '"') else ""
        self.written[path] = f"{quote}{event.value}{quote}"
        return event.value if event.style else resolve(event.value)

    def _mapping(self, events: Iterator[Event], path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None or event.anchor is not None:
                self._complain(event, path, "a key must be plain text")
                if not isinstance(event, yaml.ScalarEvent):
                    _Reading(self.file)._node(event, events, path)
                _Reading(self.file)._node(next(events), events, path)
                continue
            here = (*path, event.value)
            if event.value in found:
                first = self.marks[here].line
                problem = f"written twice, first in line {first}; keep one of the two"
                self.problems.append(Problem(_mark(event).line, dotted_path(here), None, problem))
                _Reading(self.file)._node(next(events), events, here)
                continue
            self.marks[here] = _mark(event)
            found[event.value] = self._node(next(events), events, here)
        return found

    def _sequence(self, events: Iterator[Event], path: Path) -> list[Any]:
        found: list[Any] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            here = (*path, len(found))
            self.marks[here] = _mark(event)
            found.append(self._node(event, events, here))
        return found

    def _complain(self, event: Event, path: Path, expected: str) -> None:
        self.unread.add(path)
        self.problems.append(Problem(_mark(event).line, dotted_path(path), None, expected))


def _mark(event: Event) -> Mark:
    return Mark(event.start_mark.line + 1, event.start_mark.column + 1)


def _parse_path(dotted: str) -> Path:
    """`cohorts[0].bids` as ("cohorts", 0, "bids"); () for what has no such form."""
    if not re.fullmatch(r"[^.\[\]]+(\[[0-9]{1,6}\]|\.[^.\[\]]+)*", dotted):
        return ()
    return tuple(int(item) if item else key for item, key in re.findall(r"\[([0-9]+)\]|([^.\[\]]+)", dotted))


def _quoted(text: str) -> str:
    """Text as a YAML scalar, quoted only where it must be."""
    if not text.isprintable():
        escaped = [char if char.isprintable() else f"\\U{ord(char):08x}" for char in text]
        return '"' + "".join(f"\\{char}" if char in '"\\' else char for char in escaped) + '"'
    plain = _PLAIN.fullmatch(text) and ": " not in text and not text.endswith((":", " "))
    return text if plain and isinstance(resolve(text), str) else "'" + text.replace("'", "''") + "'"


def _shorten(text: str) -> str:
    """On one line, without the user and password of a URI."""
    line = re.sub(r"://[^/\s]*@", "://…@", " ".join(text.split()))
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"

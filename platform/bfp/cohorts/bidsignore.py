"""`.bidsignore`: what of a folder is not part of the BIDS dataset, one pattern a line, as in `.gitignore`.

`*` and `?` stay within one folder, `**` spans any number of them, `[a-c]` is one of these letters; a pattern with a
slash before its end is relative to the root, one without holds at any depth; with a slash at its end it names a folder;
`!` takes back what an earlier line ignored; of several lines the last one holds (https://git-scm.com/docs/gitignore).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from bfp.errors import InputError
from bfp.storage import Place


class Rule(NamedTuple):
    """One line: the paths, relative to the root, that it speaks of. ignores: False for a line that begins with `!`."""

    line: str
    paths: re.Pattern[str]
    ignores: bool


def read_bidsignore(file: Place) -> list[Rule]:
    """The rules of a dataset; none where it has no such file.

    Raises InputError where the file is no text, or a line no pattern.
    """
    if not file.exists():
        return []
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not a text file in UTF-8 (byte {error.start}); save it as one") from error
    rules = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if line.strip("/!") and not line.startswith("#"):
            try:
                rules.append(_rule(line))
            except re.error as error:
                raise InputError(f"{file}:{number}: {line}: not a pattern as in .gitignore: {error}") from error
    return rules


def ignored_by(rules: Iterable[Rule], path: str) -> str:
    """The line that ignores a path, relative to the root; "" where none does."""
    found = ""
    for rule in rules:
        if rule.paths.fullmatch(path):
            found = rule.line if rule.ignores else ""
    return found


def _rule(line: str) -> Rule:
    pattern = line.removeprefix("!")
    anchored = "/" in pattern.rstrip("/")
    expression = _expression(pattern.strip("/"))
    start = "" if anchored else "(?:.*/)?"
    below = "/.*" if pattern.endswith("/") else "(?:/.*)?"
    return Rule(line, re.compile(f"{start}{expression}{below}", re.DOTALL), not line.startswith("!"))


def _expression(pattern: str) -> str:
    pieces = {"**/": "(?:[^/]+/)*", "/**": "/.*", "**": "[^/]*", "*": "[^/]*", "?": "[^/]"}
    letters = re.compile(r"\[([!^]?)([^]]+)\]")
    tokens = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?|\[[!^]?[^]]+\])", pattern)
    expression = ""
    for token in tokens:
        if found := letters.fullmatch(token):
            inside = found[2].replace("\\", r"\\")
            expression += f"[{'^' if found[1] else ''}{inside}]"
        else:
            expression += pieces.get(token, re.escape(token))
    return expression

"""Words with numbers in them, one way for all messages. What figures and intervals look like: `reports.numbers`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

SOME = 5


def counted(count: int, one: str, several: str | None = None) -> str:
    """1 session, 1,204 sessions; several: where an added s does not make it."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def some_of(names: Iterable[object], *, most: int = SOME) -> str:
    """a, b, c, d, e, …"""
    texts = [str(name) for name in names]
    return ", ".join(texts[:most]) + ", …" * (len(texts) > most)


def bytes_text(size: float) -> str:
    """12.3 MB, 1,204.0 MB, 12.1 GB."""
    return f"{size / 1e6:,.1f} MB" if size < 10e9 else f"{size / 1e9:,.1f} GB"


def toml_list(words: Sequence[str]) -> str:
    """Words as a list in TOML."""
    return toml(list(words))


def toml(value: object) -> str:
    """A value as TOML: text, numbers, booleans and lists are as in JSON, groups are inline tables."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_toml_key(key)} = {toml(inner)}" for key, inner in value.items())
        return f"{{{inside}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)

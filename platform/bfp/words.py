"""Words with numbers in them, one way for all messages. What figures and intervals look like: `reports.numbers`."""

from __future__ import annotations

import json
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
    """Words as a list in TOML, which is one in JSON."""
    return json.dumps(list(words), ensure_ascii=False)

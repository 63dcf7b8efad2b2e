"""Which local paths a resolved spec names: what has to be there for whoever runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bfp.specs.document import Path, dotted_path
from bfp.specs.kinds import Spec

_NO_PATHS = {"pattern"}  # a regular expression may begin with a slash


def local_paths(spec: Spec) -> dict[str, str]:
    """The paths by the dotted names of their fields: `cohorts[0].bids`, `encoder`. URIs are none, but for file:///…"""
    return {dotted_path(path): found for path, found in _walk((), spec.model_dump(mode="json", by_alias=True))}


def _walk(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _NO_PATHS:
                yield from _walk((*path, name), inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk((*path, number), inner)
    elif isinstance(value, str):
        # An encoder is written timm:<name>@<file> or meta:<file>; every other path stands by itself.
        named = value.partition("@")[2] if value.startswith("timm:") else value.removeprefix("meta:")
        named = named.removeprefix("file://")
        if named.startswith("/"):
            yield path, named

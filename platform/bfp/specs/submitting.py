"""Submitting a name again: which fields of its spec may change, and which differences make it another run.

Three sorts of fields (DESIGN, "Submitting the same name again"): those that only say how it is run may change freely;
some may grow, which extends the run; every other difference is refused and shown. Of `compute`, gradient_accumulation
is of the last sort: KoLeo and batch norm see a micro-batch, so that it changes what is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bfp.specs.document import flow
from bfp.specs.kinds import Spec

FREE = {
    "output",  # the folder was found under it, whatever path led there
    "max_rejected",
    "pictures",
    "privacy.pictures",
    "preprocessing.preset",  # the fields that it sets are compared
    "probe.every",
    "probe.on_worse",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.log_every",
}


class Difference(NamedTuple):
    """A field that may not change: its dotted path, its value in the run and in the new spec, as YAML."""

    path: str
    old: str
    new: str


def differences(old: Spec, new: Spec) -> list[Difference]:
    """The differences that make `new` another run than `old`'s; none where it resumes or extends it."""
    if old.kind != new.kind:
        return [Difference("kind", old.kind, new.kind)]
    found = _compare("", old.model_dump(mode="json", by_alias=True), new.model_dump(mode="json", by_alias=True))
    growing = _GROWING[new.kind]
    return [
        Difference(path, flow(before), flow(after))
        for path, before, after in found
        if not (path in growing and growing[path](before, after))
    ]


def _compare(path: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if old == new or _is_free(path):
        return []
    same_fields = isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys()
    if not same_fields or path in ("task", "external", "encoders"):
        return [(path, old, new)]
    return [entry for key in old for entry in _compare(f"{path}.{key}".lstrip("."), old[key], new[key])]


def _is_free(path: str) -> bool:
    return path in FREE or (path.startswith("compute.") and path != "compute.gradient_accumulation")


def _longer(old: float, new: float) -> bool:
    return new > old


def _more(old: list[Any] | None, new: list[Any] | None) -> bool:
    return old is not None and new is not None and all(entry in new for entry in old)


def _more_named(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(new.get(name) == entry for name, entry in old.items())


_GROWING: dict[str, dict[str, Callable[[Any, Any], bool]]] = {
    "ingest": {"cohorts": _more},
    "pretrain": {"train.epochs": _longer},
    "finetune": {},
    "benchmark": {
        "external": _more_named,
        "encoders": _more_named,
        "tasks": _more,
        "label_fractions": _more,
        "modalities": _more,
        "seeds": _longer,
    },
    "infer": {"cohorts": _more, "subjects": _more},
}

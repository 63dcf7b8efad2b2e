"""What `bfp init` writes: a spec with every field, what it means, and its default.

The file is generated from the models, so that it can neither forget a field nor describe another; it is a valid spec
as it stands. A field without a default shows the first of its examples and is marked as required.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bfp.errors import InputError
from bfp.specs.document import flow
from bfp.specs.kinds import KINDS, Spec
from bfp.specs.preprocessing_presets import PREPROCESSING_PRESETS
from bfp.specs.presets import LENGTHS, SSL_PRESETS

WIDTH = 110
_PRESETS = {"pretrain": ("ssl", SSL_PRESETS), "ingest": ("preprocessing", PREPROCESSING_PRESETS)}


def template(kind: str, *, preset: str | None = None, schema: str) -> str:
    """A spec of this kind as commented YAML. `schema` is the path or id that its first line gives to editors.

    Raises InputError for a preset that the kind does not have.
    """
    spec = _example(kind, preset)
    lines = [
        f"# yaml-language-server: $schema={schema}",
        "",
        *comment(
            f"{type(spec).__doc__} Every field stands here with its default; those marked “required” have none.", ""
        ),
        "",
        *_fields(spec, indent="", spaced=True),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _example(kind: str, preset: str | None) -> Spec:
    model: Any = KINDS[kind]
    values: dict[str, Any] = {"kind": kind}
    values |= {
        field.alias or name: field.examples[0]
        for name, field in model.model_fields.items()
        if field.is_required() and field.examples
    }
    if preset is not None:
        if kind not in _PRESETS:
            raise InputError(f"--preset {preset}: only {' and '.join(_PRESETS)} have presets")
        field, presets = _PRESETS[kind]
        if preset not in presets:
            raise InputError(f"--preset {preset}: expected one of {', '.join(presets)}")
        values[field] = {"preset": preset}
        if kind == "pretrain" and preset in LENGTHS:
            values["train"] = dict(LENGTHS[preset])
    example: Spec = model.model_validate(values)
    return example


def _fields(model: BaseModel, *, indent: str, spaced: bool = False) -> Iterator[str]:
    """The lines of a model's fields: each field's meaning as comments, then its name and value."""
    for name, field in type(model).model_fields.items():
        yield from comment(meaning(field), indent)
        yield from _entry(f"{indent}{field.alias or name}:", getattr(model, name), indent)
        if spaced:
            yield ""


def _entry(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield head
        yield from _fields(value, indent=indent + "  ")
    elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
        yield head
        for item in value:
            first, *rest = _fields(item, indent=indent + "    ")
            yield f"{indent}  -"
            yield first
            yield from rest
    else:
        yield f"{head} {flow(value)}"


def meaning(field: FieldInfo) -> str:
    """A field's description, choices, bounds and examples as sentences; "" for a tag, which explains itself."""
    if not field.description:
        return ""
    required = field.is_required() and bool(field.examples)
    sentences = [("(required) " if required else "") + field.description.rstrip(".")]
    if len(choices := _choices(field)) > 1:
        sentences.append(f"One of: {', '.join(choices)}")
    if bounds := _bounds(field):
        sentences.append(bounds)
    if examples := (field.examples or [])[required:]:
        sentences.append(f"Such as {' or '.join(flow(example) for example in examples)}")
    return ". ".join(sentences) + "."


def _choices(field: FieldInfo) -> list[str]:
    return [str(value) for value in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []


def _bounds(field: FieldInfo) -> str:
    """The bounds of a number in words, from the field itself or from the numbers of a pair or a list."""
    inside = [entry for part in get_args(field.annotation) for entry in getattr(part, "__metadata__", ())]
    found: dict[str, int | float] = {}
    for entry in [*field.metadata, *inside]:
        for constraint in [entry, *getattr(entry, "metadata", [])]:
            found |= {name: getattr(constraint, name) for name in _BOUND_WORDS if hasattr(constraint, name)}
    spelt = ", ".join(f"{words} {found[name]}" for name, words in _BOUND_WORDS.items() if name in found)
    return spelt[:1].upper() + spelt[1:]


_BOUND_WORDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def comment(text: str, indent: str) -> list[str]:
    wrapped = textwrap.wrap(
        " ".join(text.split()), WIDTH - len(indent) - 2, break_on_hyphens=False, break_long_words=False
    )
    return [f"{indent}# {line}" for line in wrapped]

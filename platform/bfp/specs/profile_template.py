"""What `bfp init profile` writes: a bfp.toml with every target, every field and its meaning.

Generated from the models as specs are (`template`), and valid as it stands. What has no default stands with its
example; what is null by default stands as a comment, since TOML has no null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from bfp.specs.clusters import CLUSTERS
from bfp.specs.target import LocalTarget
from bfp.specs.template import comment, meaning
from bfp.words import toml


def profile_template() -> str:
    """A bfp.toml, as commented TOML."""
    lines = [
        *comment(
            "The targets of `bfp submit --on NAME`: a table each, of whatever name. Keep those that you have, beside "
            "your specs or in ~/.config/bfp, and leave out what is right by default.",
            "",
        ),
        "",
    ]
    for name, model in {"local": LocalTarget, **CLUSTERS}.items():
        lines += [*comment(str(model.__doc__), ""), f"[{name}]"]
        if name != "local":
            lines.append(f"target = {json.dumps(name)}")
        values = {} if name == "local" else {"target": name}
        for field, given in model.model_fields.items():
            if given.is_required() and given.examples:
                values[field] = given.examples[0]
        lines += _toml_fields(model.model_validate(values), name)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _toml_fields(model: BaseModel, table: str) -> Iterator[str]:
    """The lines of a table: its values first, then the tables below it, as TOML wants them."""
    below = []
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if name == "target":
            continue
        if isinstance(value, BaseModel) or (isinstance(value, dict) and any(_is_group(v) for v in value.values())):
            below.append((name, field, value))
            continue
        yield from comment(meaning(field), "")
        if value is None:
            yield f"# {name} = {toml(field.examples[0]) if field.examples else '…'}"
        else:
            yield f"{name} = {toml(value)}"
    for name, field, value in below:
        groups = {name: value} if isinstance(value, BaseModel) else {f"{name}.{key}": v for key, v in value.items()}
        for number, (path, group) in enumerate(groups.items()):
            yield ""
            yield from comment(meaning(field), "") if number == 0 else ()
            yield f"[{table}.{path}]"
            yield from _toml_fields(group, f"{table}.{path}")


def _is_group(value: Any) -> bool:
    return isinstance(value, BaseModel)

"""Specs on the command line: written by `init`, checked by `validate`, described by `schema`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bfp.errors import InputError, Problem, SpecError
from bfp.specs import KINDS, load
from bfp.specs.schema import file_name, schema_text
from bfp.specs.template import template
from bfp.storage import place

PROFILE_KIND = "profile"  # what `init` calls bfp.toml, and `validate` any file of TOML
SCHEMA_FOLDER = ".bfp"  # beside a spec that `init` wrote: what its first line names, for editors


class CheckedSpec(NamedTuple):
    """A spec file and what is wrong with it; `said` is the message, "" for a valid one."""

    file: str
    valid: bool
    kind: str
    name: str
    problems: list[Problem]
    said: str


def write_template(kind: str, file: Path, *, preset: str | None) -> Iterator[str]:
    """Write a spec to begin with, and its schema for editors; say where."""
    if file.exists():
        raise InputError(f"{file}: exists already; name another file, as in `bfp init {kind} my-{file.name}`")
    if kind == PROFILE_KIND:
        from bfp.specs.profile_template import profile_template

        place(str(file)).write(profile_template().encode())
        yield f"wrote {file}"
        yield f"  keep the targets that you have, then: bfp validate {file}, and bfp doctor --on NAME"
        return
    _check_kind(kind)
    schema = Path(SCHEMA_FOLDER) / file_name(kind)
    text = template(kind, preset=preset, schema=schema.as_posix())
    place(str(file.parent / schema)).write(schema_text(kind).encode())
    place(str(file)).write(text.encode())
    yield f"wrote {file} (and {file.parent / schema}, by which editors complete it)"
    yield f"  fill in what is marked as required, then: bfp validate {file}"


def check_specs(files: Iterable[str], *, overrides: list[str]) -> list[CheckedSpec]:
    """Check each file by itself."""
    return [_check(file, overrides) for file in files]


def check_text(checked: list[CheckedSpec]) -> Iterator[str]:
    for found in checked:
        yield f"{found.file}: valid, {found.kind} {found.name}" if found.valid else found.said


def schema_lines(kind: str | None, folder: Path | None) -> Iterator[str]:
    """The schema of a kind as text, or the names of the files that all were written to."""
    if (kind is None) == (folder is None):
        raise InputError("bfp schema: name a kind to print, or --all FOLDER to write every kind's")
    if folder is not None:
        for each in KINDS:
            place(str(folder / file_name(each))).write(schema_text(each).encode())
            yield str(folder / file_name(each))
    elif kind is not None:
        _check_kind(kind)
        yield schema_text(kind).rstrip()


def _check(file: str, overrides: list[str]) -> CheckedSpec:
    try:
        if file.endswith(".toml"):
            from bfp.specs.profile import LOCAL, read_profile

            targets = ", ".join([LOCAL, *read_profile(Path(file)).clusters])
            return CheckedSpec(file, True, PROFILE_KIND, f"of {targets}", [], "")
        spec = load(file, overrides=overrides)
    except InputError as error:
        problems = error.problems if isinstance(error, SpecError) else []
        return CheckedSpec(file, False, "", "", problems, str(error))
    return CheckedSpec(file, True, spec.kind, spec.name, [], "")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, [*KINDS, PROFILE_KIND], n=1)
        raise InputError(
            f"no kind is called {kind!r}; one of {', '.join(KINDS)}" + (f"; the nearest is {near[0]}" if near else "")
        )

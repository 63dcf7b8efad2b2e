"""A spec as a file: `load` reads YAML into a typed spec or tells every mistake at once; `dump` writes it back.

A loaded spec is resolved: defaults filled in, relative paths absolute. What `dump` writes loads to an equal spec from
any folder, so it stands in the run's folder as what was asked.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from bfp.errors import InputError, Problem, SpecError
from bfp.specs import document
from bfp.specs.fields import Folders
from bfp.specs.kinds import KINDS, Spec
from bfp.specs.problems import check, kind_problem


def load(path: str | Path, *, overrides: Sequence[str] = (), name: str | None = None) -> Spec:
    """The spec in a YAML file, with `--set` overrides ("train.epochs=3") and `--name` applied.

    Raises InputError when there is no such file, SpecError with every mistake in it.
    """
    text = read_text(Path(path))
    folder = os.path.dirname(os.path.abspath(path))
    if name is not None:
        overrides = [*overrides, f"name={document.flow(name)}"]
    return loads(text, file=str(path), spec_folder=folder, overrides=overrides)


def loads(text: str, *, file: str, spec_folder: str | None = None, overrides: Sequence[str] = ()) -> Spec:
    """The spec in a YAML text; `file` is what messages call it, `spec_folder` where its `Shipped` paths start."""
    found = document.parse(text, file=file)
    for assignment in overrides:
        found = document.override(found, assignment)
    kind = found.value.get("kind") if isinstance(found.value, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise SpecError(file, [*found.problems, kind_problem(found, KINDS)])
    working = os.getcwd()
    spec, problems = check(found, KINDS[kind], Folders(spec=spec_folder or working, working=working))
    if problems:
        raise SpecError(file, problems)
    resolved: Spec = spec
    return resolved


def dump(spec: Spec) -> str:
    """The resolved spec as YAML."""
    return yaml.dump(
        spec.model_dump(mode="json", by_alias=True), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `document.resolve` would not read back as the same text (PyYAML resolves by YAML 1.1)."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = '"' if not text.isprintable() else None if document.resolve(text) == text else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.ignore_aliases = lambda self, data: True  # type: ignore[method-assign]


def read_text(path: Path) -> str:
    """What a person wrote into a file. Raises InputError where it is none, or larger than a spec."""
    try:
        if path.stat().st_size > document.MAX_BYTES:
            raise SpecError(
                str(path), [Problem(None, "", None, f"larger than {document.MAX_BYTES >> 20} MiB: not a spec")]
            )
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder; name the YAML file of the job") from None
    except UnicodeDecodeError as error:
        raise SpecError(str(path), [Problem(None, "", None, f"not UTF-8 text (byte {error.start})")]) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _nearest_file(path: Path) -> str:
    beside = {file.stem: file for file in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
    near = difflib.get_close_matches(path.stem, beside, n=1)
    return f"; the nearest is {beside[near[0]]}" if near else "; `bfp init KIND` writes a spec to begin with"

"""The profile, `bfp.toml`: what a machine has that a spec never names.

It stands beside the spec or in the user's config folder, and the first of the two that is there is the profile. A table
is a target with its settings; so far there is `local`, this machine.

    [local]
    brain_program = ["mri_synthstrip", "-i", "{scan}", "-m", "{mask}"]
    mlflow = "https://mlflow.example.org"
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints, ValidationInfo

from bfp.errors import Problem, SpecError
from bfp.specs.document import Document
from bfp.specs.fields import Folders, Strict, absolute
from bfp.specs.files import read_text
from bfp.specs.problems import check

PROFILE = "bfp.toml"
EXAMPLE = ("mri_synthstrip", "-i", "{scan}", "-m", "{mask}")


def _of_a_mask(command: list[str], info: ValidationInfo) -> list[str]:
    lacking = [word for word in ("{scan}", "{mask}") if not any(word in other for other in command[1:])]
    if lacking:
        raise ValueError(f"lacks {' and '.join(lacking)} behind the program's name, as in {toml_list(EXAMPLE)}")
    program = os.path.expanduser(command[0])
    if os.sep in program and isinstance(info.context, Folders):
        program = absolute(program, info.context.spec)
    return [program, *command[1:]]


def _of_mlflow(uri: str, info: ValidationInfo) -> str:
    found = urlsplit(uri)
    if "@" in found.netloc:
        raise ValueError(
            "no user or password may stand here: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN"
        )
    if "://" in uri:
        return uri
    return f"file://{absolute(uri, info.context.spec)}" if isinstance(info.context, Folders) else uri


class LocalTarget(Strict):
    """This machine."""

    brain_program: (
        Annotated[
            list[Annotated[str, StringConstraints(min_length=1)]], Field(min_length=1), AfterValidator(_of_a_mask)
        ]
        | None
    ) = Field(
        None,
        description="The command of `preprocessing.brain: program`, word for word and without a shell: a program (on "
        "PATH, or its path, from this file's folder) and its arguments. {scan}: the .nii.gz file that it reads. "
        "{mask}: the one that it has to write, on the scan, in which every voxel that is not 0 is brain.",
        examples=[list(EXAMPLE)],
    )
    mlflow: Annotated[str, StringConstraints(min_length=1), AfterValidator(_of_mlflow)] | None = Field(
        None,
        description="Where the figures and the spec of every run go besides its folder: an MLflow tracking server, or "
        "a folder (from this file's). An extra: pip install 'bfp[mlflow]'.",
        examples=["https://mlflow.example.org", "mlruns"],
    )


class Tables(Strict):
    """All that a bfp.toml holds."""

    local: LocalTarget = Field(default_factory=LocalTarget, description="The target `local`: this machine.")


class Profile(NamedTuple):
    """file: where it stands, or, where there is none, the places in which it was looked for."""

    file: str
    local: LocalTarget


NO_PROFILE = Profile(PROFILE, LocalTarget())


def profile_for(spec_file: str | Path) -> Profile:
    """The profile for a spec; without one, that of a machine that has nothing to say.

    Raises InputError where it cannot be read, SpecError with every mistake in it.
    """
    own = os.environ.get("XDG_CONFIG_HOME", "")
    config = own if os.path.isabs(own) else os.path.expanduser("~/.config")  # relative ones do not count, says XDG
    places = [Path(os.path.abspath(spec_file)).parent / PROFILE, Path(config) / "bfp" / PROFILE]
    for file in places:
        if os.path.isfile(file):
            return Profile(str(file), _read(file).local)
    return Profile(" or ".join(map(str, places)), LocalTarget())


def toml_list(words: Sequence[str]) -> str:
    """Words as a list in TOML, which is one in JSON."""
    return json.dumps(list(words), ensure_ascii=False)


def _read(file: Path) -> Tables:
    try:
        value: dict[str, Any] = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line ([0-9]+)", str(error))
        problem = Problem(int(line[1]) if line else None, "", None, f"not TOML: {error}")
        raise SpecError(str(file), [problem]) from error
    found, problems = check(Document(str(file), value), Tables, Folders(spec=str(file.parent), working=os.getcwd()))
    if problems:
        raise SpecError(str(file), problems)
    tables: Tables = found
    return tables

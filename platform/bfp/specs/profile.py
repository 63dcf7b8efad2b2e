"""The profile, `bfp.toml`: the targets that a group has, and what stands there that a spec never names.

It stands beside the spec, in the working directory or in the user's config folder: the first that is there. A table
is a target, picked by its name with `--on`: `local` is this machine, and every other one says what it is.

    [local]
    brain_program = ["mri_synthstrip", "-i", "{scan}", "-m", "{mask}"]

    [lab]
    target = "slurm"
    partition = "gpu"

`clusters` has the fields of each.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bfp.errors import InputError, Problem, SpecError
from bfp.specs.clusters import CLUSTERS, Cluster
from bfp.specs.document import Document
from bfp.specs.fields import NAME_PATTERN, PATTERNS_IN_WORDS, Folders
from bfp.specs.files import read_text
from bfp.specs.problems import check
from bfp.specs.target import SECRET, SECRET_VALUE, LocalTarget

PROFILE = "bfp.toml"
LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Profile:
    """file: where it stands, or, where there is none, the places in which it was looked for.

    local: what the machines that the job runs on have, as the table of this name says: for a driver on a cluster that
    is the cluster's. here: whether they are this very machine, so that their programs can be looked for.
    """

    file: str = PROFILE
    table: str = LOCAL
    local: LocalTarget = field(default_factory=LocalTarget)
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    here: bool = True

    def cluster(self, name: str) -> Cluster:
        """The cluster of this name. Raises InputError, with the nearest one, where there is none."""
        if name in self.clusters:
            return self.clusters[name]
        near = difflib.get_close_matches(name, [LOCAL, *self.clusters], n=1)
        known = f"{self.file} has {', '.join([LOCAL, *self.clusters])}" if self.clusters else f"none in {self.file}"
        hint = f"the nearest is {near[0]}" if near else "`bfp init profile` writes one to begin with"
        hint += "; the profile beside a spec is read, else that of the working directory"
        raise InputError(f"--on {name}: no target has this name ({known}); {hint}")


NO_PROFILE = Profile()


def profile_for(spec_file: str | Path) -> Profile:
    """The profile for a spec; without one, that of a machine that has nothing to say.

    Raises InputError where it cannot be read, SpecError with every mistake in it.
    """
    own = os.environ.get("XDG_CONFIG_HOME", "")
    config = own if os.path.isabs(own) else os.path.expanduser("~/.config")  # relative ones do not count, says XDG
    places = [Path(os.path.abspath(spec_file)).parent / PROFILE, Path.cwd() / PROFILE, Path(config) / "bfp" / PROFILE]
    places = list(dict.fromkeys(places))
    for file in places:
        if os.path.isfile(file):
            return read_profile(file)
    return Profile(" or ".join(map(str, places)))


def read_profile(file: Path) -> Profile:
    """The profile in a file. Raises InputError where it cannot be read, SpecError with every mistake in it."""
    try:
        tables: dict[str, Any] = tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line ([0-9]+)", str(error))
        problem = Problem(int(line[1]) if line else None, "", None, f"not TOML: {error}")
        raise SpecError(str(file), [problem]) from error
    targets: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, table in tables.items():
        targets[name], found = _target(name, table, file)
        problems += map(_hidden, found)
    if problems:
        raise SpecError(str(file), problems)
    return Profile(str(file), LOCAL, targets.pop(LOCAL, LocalTarget()), targets)


def _target(name: str, table: Any, file: Path) -> tuple[Any, list[Problem]]:
    """A table as its target, or what is wrong with it."""
    shown = Document(str(file), {name: table}).shown((name,))
    if not isinstance(table, dict):
        return None, [Problem(None, name, shown, "no table; a target is one: [local] or [NAME]")]
    if not re.fullmatch(NAME_PATTERN, name):
        return None, [Problem(None, name, shown, PATTERNS_IN_WORDS[NAME_PATTERN])]
    model: type[LocalTarget] | None = LocalTarget
    if name != LOCAL:
        model = CLUSTERS.get(table["target"]) if isinstance(table.get("target"), str) else None
    if model is None:
        kinds = f"one of {', '.join(CLUSTERS)}"
        if "target" in table:
            return None, [Problem(None, f"{name}.target", str(table["target"]), kinds)]
        near = "; this machine's table is called local" if difflib.get_close_matches(name, [LOCAL], n=1) else ""
        return None, [Problem(None, f"{name}.target", None, f"missing; {kinds}{near}")]
    folders = Folders(spec=str(file.absolute().parent), working=os.getcwd())
    found, problems = check(Document(str(file), table, toml=True), model, folders)
    return found, [Problem(None, f"{name}.{entry.path}", entry.found, entry.expected) for entry in problems]


def _hidden(entry: Problem) -> Problem:
    """Without a value that may be a secret: one of `env` or a token, or that is called like one or looks like one."""
    shown = f"{entry.path} {entry.found or ''}"
    secret = ".env" in entry.path or SECRET.search(shown) or SECRET_VALUE.search(shown)
    return replace(entry, found=None) if secret else entry

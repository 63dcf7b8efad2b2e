"""`bfp doctor --on NAME`: under which point it says what it has found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bfp.cli.doctor import examine_cluster
from bfp.errors import InputError
from bfp.specs import load
from bfp.targets.cluster import Check, Job
from tests.targets import makers
from tests.targets.test_remote import Script, on


class Away(Script):
    """A cluster that does not answer."""

    def checks(self) -> Iterator[Check]:
        yield Check("found", "ok", "by its name")
        raise InputError("the cluster lab does not answer")


class Shy(Script):
    """One that has answered, and takes no job."""

    def jobs(self, run: str) -> list[Job]:
        raise InputError("no partition")


def points(found: list[Check]) -> list[tuple[str, str]]:
    return [(check.point, check.verdict) for check in found]


def test_without_a_spec_doctor_says_what_one_would_add() -> None:
    found = examine_cluster(on(Script()), None)
    assert points(found) == [("reachable", "ok"), ("plan there", "ok")]
    assert found[-1].text.startswith("not asked for: `bfp doctor SPEC --on lab` looks at versions there")
    assert points(examine_cluster(on(Away()), None)) == [("found", "ok"), ("cluster", "fail")]


def test_what_is_wrong_with_a_spec_is_not_said_of_the_cluster(tmp_path: Path) -> None:
    spec = load(makers.write_spec(tmp_path))
    found = examine_cluster(on(Script()), spec)  # its paths are this machine's alone
    assert points(found) == [("reachable", "ok"), ("plan here", "fail")]
    elsewhere = load(
        makers.write_spec(tmp_path, output="/nowhere/runs", model="/nowhere/m"),
        overrides=["cohorts=[{name: a, bids: /nowhere/b}]"],
    )
    found = examine_cluster(on(Shy(), shared_paths=["/nowhere"]), elsewhere)
    assert points(found) == [("reachable", "ok"), ("plan here", "ok"), ("cluster", "fail")]

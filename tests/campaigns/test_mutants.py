"""A slice of `mutants`: a few of every mutation in this process, and one batch in a process of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bfp.errors import Reason
from bfp.storage import Place
from tests.campaigns.mutants import (
    MODALITIES,
    Task,
    Told,
    files_below,
    ingest,
    judge,
    make,
    outermost,
    run_batch,
    strays,
)
from tests.campaigns.mutations import MUTATIONS, SHAPE, SPACING_MM, STACKS, Seed, seeds
from tests.cohorts.makers import write_scan

EACH = 4


@pytest.fixture(scope="module")
def among() -> list[Seed]:
    return seeds()


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_damaged_file_ends_in_stacks_or_in_a_true_reason(mutation: str, among: list[Seed], tmp_path: Path) -> None:
    numbers = range(1, EACH + 1)  # those of ten are registered, which takes time
    tasks = {number: make(tmp_path / "cohort", mutation, number=number, seed=1, among=among) for number in numbers}
    tasks[0] = Task(0, "T1w", MODALITIES, frozenset({STACKS}))  # a cohort without any good scan is an error
    write_scan(tmp_path / "cohort/0/T1w/good.nii", shape=SHAPE, spacing_mm=SPACING_MM)
    told: list[Told] = []
    ingest(tmp_path / "cohort", Place(f"{tmp_path}/store"), tasks, told.append)
    assert sorted(each.number for each in told) == sorted(tasks)
    assert [wrong for each in told if (wrong := judge(each, tasks[each.number]))] == []


def test_a_batch_in_a_process_of_its_own_keeps_every_promise(among: list[Seed], tmp_path: Path) -> None:
    tally = run_batch(tmp_path, "bits of the gzip", numbers=range(5), seed=1, among=among)
    assert tally.broken == []
    assert tally.outcomes.total() == 5
    assert tally.slowest_wall_s > 0
    assert {"cwd", "tmp"} <= {each.name for each in tmp_path.iterdir()}, "where the process works is looked at too"


def test_the_seeds_are_good_scans(among: list[Seed], tmp_path: Path) -> None:
    assert len(among) >= 8
    for number, seed in enumerate(among):
        for name, data in seed.files().items():
            file = tmp_path / str(number) / "T1w" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    recipe = replace(MODALITIES, volumes="mean")
    tasks = {number: Task(number, "T1w", recipe, frozenset({STACKS})) for number in range(len(among))}
    told: list[Told] = []
    ingest(tmp_path, Place(f"{tmp_path}/store"), tasks, told.append)
    assert [each.outcome for each in told] == [STACKS] * len(among)


def test_an_untrue_reason_a_lost_neighbour_and_a_slow_scan_are_broken_promises() -> None:
    task = Task(0, "T1w", MODALITIES, frozenset({Reason.TRUNCATED}))
    assert judge(Told(0, Reason.TRUNCATED, (STACKS,), 0.1, 9.0), task) == ""
    assert "became 'stacks'; true would be" in judge(Told(0, STACKS, (), 0.1, 0.1), task)
    assert "the good scan beside it" in judge(Told(0, Reason.TRUNCATED, (Reason.EMPTY,), 0.1, 0.1), task)
    assert "3.0 s of CPU" in judge(Told(0, Reason.TRUNCATED, (), 3.0, 3.0), task)


def test_a_file_outside_the_store_is_found_wherever_a_batch_may_have_put_it(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*"abcdef")
    for name in ("cohort/1/T1w/x.nii", "store/stacks/x"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"")
    before = files_below(outermost(folder))
    assert strays(folder, before) == []
    (folder / "store/stacks/y").write_bytes(b"")
    assert strays(folder, before) == []
    for name in ("store-x", "../x", "../../../../../../x", "cohort/1/T1w/y"):
        (folder / name).write_bytes(b"")
    assert strays(folder, before) == ["a/b/c/d/e/f/cohort/1/T1w/y", "a/b/c/d/e/f/store-x", "a/b/c/d/e/x", "x"]

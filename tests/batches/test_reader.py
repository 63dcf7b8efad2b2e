"""Reading the plan: the right pixels, the same batches for any number of workers and after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bfp.batches.plan import BatchPlan, by_row_group, units_of, window_at
from bfp.batches.reader import AHEAD_BATCHES, AHEAD_STEPS, read
from bfp.errors import InputError
from bfp.store.pages import Packed
from bfp.store.reader import SliceStore, StackFile, pixels_of
from bfp.store.where import select
from tests.store.makers import MadeSession, make_store

SESSIONS = [
    MadeSession("a", "s1", stacks=23),
    MadeSession("a", "s2", stacks=9, present=(True, False, True)),
    MadeSession("b", "s1", stacks=31),
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[SliceStore]:
    folder: Path = tmp_path_factory.mktemp("stores")
    one = make_store(folder / "one", sessions=SESSIONS, size_px=28)
    two = make_store(folder / "two", sessions=3, size_px=28, seed=1)
    return [SliceStore.open(one), SliceStore.open(two)]


def plan_of(stores: list[SliceStore], *, batch_size: int = 8, balance: float = 0.0) -> BatchPlan:
    units = units_of([store.stack_index() for store in stores])
    return BatchPlan(units, batch_size=batch_size, seed=4, window=11, balance=balance)


def test_every_stack_of_a_pass_has_its_own_pixels(stores: list[SliceStore]) -> None:
    plan = plan_of(stores)
    pixels = np.concatenate(
        [pixels_of(s.read_row_group(f, g)) for s in stores for f in s.stack_files() for g in range(len(f.row_groups))]
    )
    seen = set()
    for step, batch in enumerate(islice(read(stores, plan), plan.pass_steps)):
        windows = [window_at(plan, lane=lane, step=step) for lane in range(8)]
        stacks = [int(window.stacks[step - window.begin]) for window in windows]
        assert batch.dtype == torch.uint8
        assert np.array_equal(batch.numpy(), pixels[stacks])
        seen |= set(stacks)
    assert len(seen) == plan.pass_steps * 8


@pytest.mark.parametrize(("workers", "balance"), [(1, 0.0), (2, 0.0), (4, 0.0), (4, 0.7)])
def test_batches_are_the_same_for_any_number_of_workers_and_after_a_restart(
    stores: list[SliceStore], workers: int, balance: float
) -> None:
    plan = plan_of(stores, balance=balance)
    whole = list(islice(read(stores, plan), 30))
    shares = [islice(read(stores, plan, rank=rank, workers=workers, start_step=7), 23) for rank in range(workers)]
    for expected, parts in zip(whole[7:], zip(*shares, strict=True), strict=True):
        assert torch.equal(expected, torch.cat(parts))


def test_a_lane_reads_each_row_group_once(stores: list[SliceStore], monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[StackFile, int]] = []

    def counted(store: SliceStore, file: StackFile, group: int) -> Packed | np.ndarray:
        reads.append((file, group))
        return read_packed(store, file, group)

    read_packed = SliceStore.read_packed
    monkeypatch.setattr(SliceStore, "read_packed", counted)
    plan = plan_of(stores, batch_size=1)
    batches = read(stores, plan)
    for _ in range(plan.pass_steps - AHEAD_STEPS - AHEAD_BATCHES - 1):
        next(batches)
    batches.close()
    assert len(reads) == len(set(reads)) > plan.pass_steps / 16


def test_only_the_wanted_stacks_are_read(stores: list[SliceStore]) -> None:
    index = select(stores[0].stack_index(), subjects=["s1"], cohorts=["b"])
    index = index.filter(np.arange(len(index)) % 3 == 0)
    plan = BatchPlan(units_of([index]), batch_size=2, seed=0)
    wanted = {(row["file"], row["row_group"], row["row"]) for row in index.to_pylist()}
    files = stores[0].stack_files()
    pixels = {pixels_of(stores[0].read_row_group(files[f], g))[r].tobytes() for f, g, r in wanted}
    for batch in islice(read(stores[:1], plan), 2 * plan.pass_steps):
        assert all(stack.numpy().tobytes() in pixels for stack in batch)


def test_the_order_of_an_index_changes_nothing(stores: list[SliceStore]) -> None:
    index = stores[0].stack_index()
    shuffled = index.take(np.random.default_rng(0).permutation(len(index)))
    one, other = units_of([index]), units_of([shuffled])
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("file", "group", "rows", "first"))


def test_the_same_stacks_in_other_files_are_learned_from_in_the_same_order(tmp_path: Path) -> None:
    def batches(sessions_per_shard: int) -> list[bytes]:
        folder = tmp_path / str(sessions_per_shard)
        store = SliceStore.open(make_store(folder, sessions=9, sessions_per_shard=sessions_per_shard))
        return [batch.numpy().tobytes() for batch in islice(read([store], plan_of([store])), 20)]

    assert batches(1) == batches(3)


def test_row_groups_part_an_index_in_whatever_order_it_stands(stores: list[SliceStore]) -> None:
    index = stores[0].stack_index()
    order = np.random.default_rng(0).permutation(len(index))[:40]
    columns = [index[name].to_numpy()[order] for name in ("file", "row_group", "row")]
    parts = by_row_group(index.take(order))
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    places = [[tuple(int(column[at]) for column in columns) for at in part] for part in parts]
    together = [place for part in places for place in part]
    assert together == sorted(together)
    assert len({places_of[0][:2] for places_of in places}) == len(places)
    assert all(place[:2] == places_of[0][:2] for places_of in places for place in places_of)
    assert by_row_group(index.slice(0, 0)) == []


def test_a_reader_that_is_closed_leaves_no_thread_behind(stores: list[SliceStore]) -> None:
    import threading

    batches: Iterator[Tensor] = read(stores, plan_of(stores))
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_stores_of_two_sizes_are_refused(stores: list[SliceStore], tmp_path: Path) -> None:
    other = SliceStore.open(make_store(tmp_path / "store", sessions=2, size_px=56))
    with pytest.raises(InputError, match="28, 28, 56 pixels"):
        next(read([*stores, other], plan_of([*stores, other])))


def test_a_batch_that_does_not_split_is_refused(stores: list[SliceStore]) -> None:
    with pytest.raises(InputError, match="a batch of 8 does not split among 3 workers"):
        next(read(stores, plan_of(stores), workers=3))

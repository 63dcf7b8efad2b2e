"""The planned order: every stack once a pass, the same for whoever reads it, and mixed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bfp.batches.plan import BatchPlan, Units, units_of, window_at
from bfp.errors import InputError


def units_with(rows: list[int]) -> Units:
    """One unit for each number of rows, each a row group of its own."""
    group = np.repeat(np.arange(len(rows)), rows)
    row = np.concatenate([np.arange(count) for count in rows])
    session = dict.fromkeys(("cohort", "subject", "session"), np.full(len(group), "a"))
    return units_of([pa.table({**session, "file": np.zeros_like(group), "row_group": group, "row": row})])


def lane(plan: BatchPlan, number: int, *, start: int, steps: int) -> list[int]:
    stacks: list[int] = []
    while len(stacks) < steps:
        window = window_at(plan, lane=number, step=start + len(stacks))
        stacks += window.stacks[start + len(stacks) - window.begin :].tolist()
    return stacks[:steps]


def batches(plan: BatchPlan, *, start: int, steps: int) -> np.ndarray:
    return np.array([lane(plan, number, start=start, steps=steps) for number in range(plan.batch_size)]).T


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.integers(1, 17), min_size=1, max_size=30),
    batch_size=st.integers(1, 12),
    window=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_pass_shows_no_stack_twice_and_leaves_out_fewer_than_a_batch(
    rows: list[int], batch_size: int, window: int, seed: int
) -> None:
    units = units_with(rows)
    if units.stacks < batch_size:
        return
    plan = BatchPlan(units, batch_size=batch_size, seed=seed, window=window)
    for number in range(2):
        shown = batches(plan, start=number * plan.pass_steps, steps=plan.pass_steps).ravel()
        assert len(set(shown)) == len(shown) > units.stacks - batch_size


@settings(deadline=None, max_examples=60)
@given(start=st.integers(0, 200), steps=st.integers(1, 40), window=st.integers(1, 40))
def test_the_order_from_any_step_on_is_that_of_the_whole(start: int, steps: int, window: int) -> None:
    plan = BatchPlan(units_with([16, 9, 16, 3, 16, 16, 7]), batch_size=4, seed=3, window=window)
    whole = batches(plan, start=0, steps=start + steps)
    assert np.array_equal(batches(plan, start=start, steps=steps), whole[start:])


def test_each_stack_is_read_from_the_row_group_that_holds_it() -> None:
    units = units_with([5, 16, 1, 8])
    plan = BatchPlan(units, batch_size=3, seed=1, window=7)
    for number in range(3):
        for step in range(2 * plan.pass_steps):
            window = window_at(plan, lane=number, step=step)
            assert (
                (units.first[window.units] <= window.stacks) & (window.stacks < units.first[window.units + 1])
            ).all()


def test_seeds_and_passes_give_different_orders() -> None:
    units = units_with([16] * 8)
    one, other = (BatchPlan(units, batch_size=4, seed=seed) for seed in (0, 1))
    first = batches(one, start=0, steps=one.pass_steps)
    assert not np.array_equal(first, batches(other, start=0, steps=one.pass_steps))
    assert not np.array_equal(first, batches(one, start=one.pass_steps, steps=one.pass_steps))


def test_neighbouring_slices_rarely_meet_in_a_batch() -> None:
    """A batch of 32 from 60 sessions of 32 stacks: at random 7.8 of the 32 share a session with an earlier one."""
    plan = BatchPlan(units_with([16] * 120), batch_size=32, seed=0)
    session = batches(plan, start=0, steps=plan.pass_steps) // 32
    repeated = [32 - len(set(row)) for row in session]
    assert np.mean(repeated) < 8.5


def test_lanes_open_their_windows_at_different_steps() -> None:
    plan = BatchPlan(units_with([16] * 80), batch_size=16, seed=0)
    opened = [window_at(plan, lane=number, step=0).stacks.size for number in range(16)]
    assert len(set(opened)) == 16


def test_fewer_stacks_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="has 10 stacks for training, fewer than one batch of 16"):
        BatchPlan(units_with([8, 2]), batch_size=16, seed=0)

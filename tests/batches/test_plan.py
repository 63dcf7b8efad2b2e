"""The planned order: every stack once a pass, the same for whoever reads it, and mixed."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bfp.batches.plan import BatchPlan, Units, units_of, window_at
from bfp.errors import InputError


def units_with(rows: list[int], *, sessions: list[int] | None = None, cohorts: list[int] | None = None) -> Units:
    """One unit for each number of rows, each a row group of its own; sessions, cohorts: whose each is, by number."""
    group = np.repeat(np.arange(len(rows)), rows)
    row = np.concatenate([np.arange(count) for count in rows])
    session, cohort = (
        [f"{number:03d}" for number in np.repeat(whose or [0] * len(rows), rows)] for whose in (sessions, cohorts)
    )
    names = {"cohort": cohort, "subject": session, "session": [""] * len(group)}
    return units_of([pa.table({**names, "file": np.zeros_like(group), "row_group": group, "row": row})])


@st.composite
def stores(draw: st.DrawFn, *, cohorts: int = 3) -> Units:
    """Sessions of one to five units, each in one of a few cohorts."""
    made = draw(st.lists(st.lists(st.integers(1, 17), min_size=1, max_size=5), min_size=1, max_size=12))
    whose = draw(st.lists(st.integers(0, cohorts - 1), min_size=len(made), max_size=len(made)))
    sessions = [number for number, rows in enumerate(made) for _ in rows]
    return units_with(
        [count for rows in made for count in rows],
        sessions=sessions,
        cohorts=[whose[number] for number in sessions],
    )


def of_units(units: Units, whose: np.ndarray) -> np.ndarray:
    """For each stack what is said for each unit."""
    return np.repeat(whose, np.diff(units.first))


def most_of_one(whose: np.ndarray) -> int:
    """The most places of a batch, a row of `whose`, that have the same."""
    return max(int(np.bincount(row).max()) for row in whose)


def lane(plan: BatchPlan, number: int, *, start: int, steps: int) -> list[int]:
    stacks: list[int] = []
    while len(stacks) < steps:
        window = window_at(plan, lane=number, step=start + len(stacks))
        stacks += window.stacks[start + len(stacks) - window.begin :].tolist()
    return stacks[:steps]


def batches(plan: BatchPlan, *, start: int, steps: int) -> np.ndarray:
    return np.array([lane(plan, number, start=start, steps=steps) for number in range(plan.batch_size)]).T


BALANCE = st.sampled_from([0.0, 0.3, 1.0])


@settings(deadline=None, max_examples=60)
@given(units=stores(), batch_size=st.integers(1, 12), window=st.integers(1, 40), seed=st.integers(0, 2**31 - 1))
def test_a_pass_shows_no_stack_twice_and_leaves_out_fewer_than_a_batch(
    units: Units, batch_size: int, window: int, seed: int
) -> None:
    assume(units.stacks >= batch_size)
    plan = BatchPlan(units, batch_size=batch_size, seed=seed, window=window)
    for number in range(2):
        shown = batches(plan, start=number * plan.pass_steps, steps=plan.pass_steps).ravel()
        assert len(set(shown)) == len(shown) > units.stacks - batch_size


@settings(deadline=None, max_examples=60)
@given(
    units=stores(),
    batch_size=st.integers(1, 12),
    window=st.integers(1, 40),
    seed=st.integers(0, 99),
    balance=BALANCE,
    more=st.integers(0, 2),
)
def test_no_batch_has_more_stacks_of_a_session_than_was_asked_for_down_to_the_least(
    units: Units, batch_size: int, window: int, seed: int, balance: float, more: int
) -> None:
    assume(units.stacks >= batch_size)
    told = {"units": units, "batch_size": batch_size, "seed": seed, "balance": balance, "window": window}
    plan = BatchPlan(**told)
    least = plan.least_of_a_session
    for kept in (plan, BatchPlan(**told, stacks_per_session=least + more)):
        session = of_units(units, units.session)[batches(kept, start=0, steps=3 * kept.pass_steps)]
        assert most_of_one(session) <= kept.most_of_a_session
    assert kept.most_of_a_session <= least + more
    if least > 1:
        with pytest.raises(InputError, match=f"the smallest that can be kept is {least}, or"):
            BatchPlan(**told, stacks_per_session=least - 1)


def test_the_least_is_what_no_order_could_undercut() -> None:
    """Two sessions of 48 and one of 4 in batches of 4: 25 steps, of which some have two of the same."""
    units = units_with([16] * 6 + [4], sessions=[0, 0, 0, 1, 1, 1, 2])
    plan = BatchPlan(units, batch_size=4, seed=0, stacks_per_session=2)
    assert (plan.pass_steps, plan.least_of_a_session) == (25, 2)
    assert most_of_one(of_units(units, units.session)[batches(plan, start=0, steps=100)]) == 2


def test_a_store_of_usual_sessions_has_no_two_stacks_of_one_in_a_batch_unless_more_are_let_in() -> None:
    units = units_with([16] * 240, sessions=[number // 4 for number in range(240)])
    session = of_units(units, units.session)
    plan = BatchPlan(units, batch_size=16, seed=0)
    assert plan.most_of_a_session == 1
    assert most_of_one(session[batches(plan, start=0, steps=plan.pass_steps)]) == 1
    assert BatchPlan(units, batch_size=16, seed=0, stacks_per_session=2).parts < plan.parts


def test_a_session_in_two_stores_is_one() -> None:
    index = pa.table(
        {
            **dict.fromkeys(("cohort", "subject", "session"), ["a"] * 20),
            **dict.fromkeys(("file", "row_group"), [0] * 20),
            "row": range(20),
        }
    )
    both = units_of([index, index])
    assert both.source.tolist() == [0, 1]
    assert both.session[0] == both.session[1]
    assert BatchPlan(both, batch_size=4, seed=0).least_of_a_session == 4


@settings(deadline=None, max_examples=60)
@given(units=stores(), batch_size=st.integers(1, 12), balance=BALANCE, passes=st.integers(1, 6))
def test_a_cohort_has_its_share_of_each_pass_and_shows_its_stacks_equally_often(
    units: Units, batch_size: int, balance: float, passes: int
) -> None:
    assume(units.stacks >= batch_size)
    plan = BatchPlan(units, batch_size=batch_size, seed=5, balance=balance)
    shown = batches(plan, start=0, steps=passes * plan.pass_steps)
    left_out = units.stacks % batch_size
    cohort = of_units(units, units.cohort)
    sizes = np.bincount(cohort)
    expected = sizes ** (1 - balance) / (sizes ** (1 - balance)).sum() * units.stacks
    for part in shown.reshape(passes, -1):
        assert (np.abs(np.bincount(cohort[part], minlength=len(sizes)) - expected) <= left_out + 1).all()
    assert [cohort.share for cohort in plan.cohorts.values()] == pytest.approx(
        expected / units.stacks, abs=1 / units.stacks
    )
    if not left_out:
        times = np.bincount(shown.ravel(), minlength=units.stacks)
        assert all(np.ptp(times[cohort == number]) <= 1 for number in range(len(sizes)))


def test_a_small_cohort_comes_back_in_another_order() -> None:
    """Two sessions of 16 beside 32 of another cohort: half of the stream are these 32 stacks, 8 or 9 times each."""
    units = units_with([16] * 34, sessions=list(range(34)), cohorts=[0] * 2 + [1] * 32)
    plan = BatchPlan(units, batch_size=4, seed=0, balance=1.0)
    shown = batches(plan, start=0, steps=plan.pass_steps).ravel()
    assert set(np.bincount(shown, minlength=units.stacks)[:32]) == {8, 9}
    small = shown[shown < 32]
    assert len({tuple(small[start : start + 8]) for start in range(0, 256, 8)}) == 32


def test_a_large_cohort_that_is_shown_in_part_shows_another_part_each_time() -> None:
    """At most half of its 48 sessions fit into a pass; what two passes show in two rounds has half in common."""
    units = units_with([16] * 49, sessions=list(range(49)), cohorts=[0] + [1] * 48)
    plan = BatchPlan(units, batch_size=4, seed=0, balance=1.0)
    first, _, third = np.split(batches(plan, start=0, steps=3 * plan.pass_steps).ravel(), 3)
    large = {stack for stack in first if stack >= 16}
    assert 0.3 < len(large.intersection(third)) / len(large) < 0.7


@settings(deadline=None, max_examples=60)
@given(start=st.integers(0, 200), steps=st.integers(1, 40), window=st.integers(1, 40), balance=BALANCE)
def test_the_order_from_any_step_on_is_that_of_the_whole(start: int, steps: int, window: int, balance: float) -> None:
    units = units_with([16, 9, 16, 3, 16, 16, 7], sessions=[0, 0, 1, 1, 2, 3, 3], cohorts=[0, 0, 0, 0, 0, 1, 1])
    told = {"units": units, "batch_size": 4, "seed": 3, "balance": balance, "window": window}
    whole = batches(BatchPlan(**told), start=0, steps=start + steps)
    assert np.array_equal(batches(BatchPlan(**told), start=start, steps=steps), whole[start:])


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


def test_lanes_open_their_windows_at_different_steps() -> None:
    plan = BatchPlan(units_with([16] * 80), batch_size=16, seed=0)
    opened = [window_at(plan, lane=number, step=0).stacks.size for number in range(16)]
    assert len(set(opened)) == 16


def test_fewer_stacks_than_a_batch_are_refused() -> None:
    with pytest.raises(InputError, match="has 10 stacks for training, fewer than one batch of 16"):
        BatchPlan(units_with([8, 2]), batch_size=16, seed=0)

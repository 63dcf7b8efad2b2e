"""The order of training: which stack stands at which place of which batch, as a pure function of seed and step.

The unit of reading is a row group: some ten neighbouring slices of one session, compressed together. Reading one for
a single stack would waste the rest, and reading them in turn would put near-duplicates into one batch. So:

- a pass goes once through all stacks. It begins by putting the sessions into a random order, end to end;
- each of the B places in the global batch is a lane: it owns 1/B of that row of stacks and gives one stack a step;
- the steps of a pass are cut into a few parts, and a lane's stacks with them. Within a part the lane's row groups come
  in random order, and a few at a time, a window, give their stacks in random order. The lanes' windows begin at
  different steps, so that reading is spread evenly.

Lanes and not workers are the unit: whoever holds a lane, its stacks are the same, and so are the batches for any number
of workers and after any restart. Of each pass fewer than B stacks are left out, other ones each time. At a pass's end
all lanes end together.

How often a session stands in one batch follows: in as many lanes as have it in the same part of the steps. A session
that lies within one lane is there once; one that lies across the border of two has its stacks at the end of the one and
at the start of the other, which are different parts. In numbers: with parts of T of the L steps, a session of n stacks
reaches over k + 1 lanes in the same part from n = k · L - T + 2 on, so that T ≤ k · L - n + 1 keeps k. Even parts of
one step keep the least that there can be, ⌈n / L⌉; longer ones mix better.

With `balance`, a cohort of N stacks has a share of the pass in proportion to N ^ (1 - balance): 0 shows each stack once
in a pass, 1 as many stacks of each cohort. A pass still has as many steps. Each cohort is then gone through in rounds
of its own, each in another order, and a pass takes up where the one before left off: over any length of training the
stacks of one cohort are seen equally often, within one, but for those that are left out.

Letters: B lanes, L steps of a pass, T steps of a part, R stacks in all, U units (row groups).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bfp.errors import InputError

SESSION = ("cohort", "subject", "session")
WINDOW = 32  # stacks: two to four row groups, from different sessions; memory is about B times as much


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """The row groups that hold wanted stacks.

    source, file, group: int (U,), where unit u lies: which store, which of its files, which row group.
    session, cohort: int (U,), whose it is, counted over all stores; cohorts: their names.
    rows: int (R,), the wanted rows, counted within their row groups, unit after unit; unit u's are
    rows[first[u] : first[u + 1]]. The place of a stack in `rows` is its number in the whole program.
    """

    source: np.ndarray
    file: np.ndarray
    group: np.ndarray
    session: np.ndarray
    cohort: np.ndarray
    cohorts: tuple[str, ...]
    rows: np.ndarray
    first: np.ndarray

    @property
    def stacks(self) -> int:
        """R"""
        return len(self.rows)


def units_of(indices: Sequence[pa.Table]) -> Units:
    """The units of one or more stores, from the part of each store's `stack_index` that is wanted, in any order.

    They are in order of their sessions, not of the files: these are named by where the scans lie and when they were
    written, and the same scans elsewhere shall be learned from in the same order.
    """
    columns = ("file", "row_group", "row")
    by_session = [(name, "ascending") for name in (*SESSION, *columns)]
    indices = [index.select([*SESSION, *columns]) for index in indices]
    indices = [index.take(pc.sort_indices(index, sort_keys=by_session)) for index in indices]
    parts = [np.stack([index[name].to_numpy() for name in columns]).astype(np.int64) for index in indices]
    source = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    file, group, row = np.concatenate(parts, axis=1)
    at = np.flatnonzero(np.diff(np.stack([source, file, group]), axis=1, prepend=-1).any(axis=0))
    identity = pa.concat_tables([index.select(SESSION) for index in indices]).take(at)
    codes = [identity[name].combine_chunks().dictionary_encode(null_encoding="encode") for name in SESSION]
    numbers = [code.indices.to_numpy().astype(np.int64) for code in codes]
    _, session = np.unique(np.ravel_multi_index(numbers, [len(code.dictionary) for code in codes]), return_inverse=True)
    return Units(
        source=source[at],
        file=file[at],
        group=group[at],
        session=session,
        cohort=numbers[0],
        cohorts=tuple(codes[0].dictionary.to_pylist()),
        rows=row,
        first=np.append(at, len(row)),
    )


def by_row_group(index: pa.Table) -> list[np.ndarray]:
    """The rows of a store's index that lie in each row group, as numbers into it, all in the order of the store."""
    file, group, row = (index[name].to_numpy() for name in ("file", "row_group", "row"))
    order = np.lexsort((row, group, file))
    starts = np.flatnonzero(np.diff([file[order], group[order]], axis=1, prepend=-1).any(axis=0))
    return np.split(order, starts)[1:]


@dataclass(frozen=True, slots=True, eq=False)
class BatchPlan:
    """Everything that the order depends on.

    stacks_per_session: the most stacks of one session in a batch; None for as few as leave parts of half a pass.
    balance: 0 to 1, how far cohorts of different sizes come to equal shares.

    Raises InputError where the stacks do not fill one batch, or a batch cannot do with so few stacks of a session.
    """

    units: Units
    batch_size: int
    seed: int
    stacks_per_session: int | None = None
    balance: float = 0.0
    window: int = WINDOW

    def __post_init__(self) -> None:
        if self.units.stacks < self.batch_size:
            raise InputError(
                f"the store has {self.units.stacks} stacks for training, fewer than one batch of {self.batch_size}; "
                "lower train.batch_size, widen `where`, or ingest more"
            )
        if self.stacks_per_session is not None and self.stacks_per_session < self.least_of_a_session:
            raise InputError(
                f"train.stacks_per_session: {self.stacks_per_session}: a pass has {self.pass_steps:,} steps, and up to "
                f"{_shares(self).largest_session:,} stacks of one session; the smallest that can be kept is "
                f"{self.least_of_a_session}, or fewer with a smaller train.batch_size"
            )

    @property
    def pass_steps(self) -> int:
        """L, the steps of one pass over the stacks."""
        return self.units.stacks // self.batch_size

    @property
    def least_of_a_session(self) -> int:
        """The smallest `stacks_per_session` that can be kept."""
        return -(-_shares(self).largest_session // self.pass_steps)

    @property
    def most_of_a_session(self) -> int:
        """How many stacks of one session a batch has at the most."""
        if self.stacks_per_session is not None:
            return min(self.stacks_per_session, self.batch_size)
        half = -(-self.pass_steps // 2)
        return min(-(-(_shares(self).largest_session - 1 + half) // self.pass_steps), self.batch_size)

    @property
    def parts(self) -> int:
        """Into how many parts the steps of a pass are cut so that this holds; each has T steps, or one fewer."""
        if self.most_of_a_session == self.batch_size:
            return 1
        longest = self.most_of_a_session * self.pass_steps - _shares(self).largest_session + 1
        return -(-self.pass_steps // min(self.pass_steps, longest))

    @property
    def cohorts(self) -> dict[str, CohortShare]:
        """How much of each cohort the stream of stacks has, by its name."""
        held, taken, _ = _shares(self)
        parts = zip(held.tolist(), (taken / taken.sum()).tolist(), strict=True)
        return {name: CohortShare(*part) for name, part in zip(self.units.cohorts, parts, strict=True)}


class CohortShare(NamedTuple):
    """stacks: how many there are of a cohort; share: of the stream, 0 to 1."""

    stacks: int
    share: float


class Window(NamedTuple):
    """Consecutive steps of one lane, [begin, begin + len(stacks)), counted from step 0 of training.

    stacks: int64 (steps,), their numbers in `Units.rows`; units: int64 (steps,), the row groups that they lie in.
    """

    begin: int
    stacks: np.ndarray
    units: np.ndarray


def window_at(plan: BatchPlan, *, lane: int, step: int) -> Window:
    """The window in which a lane is at a step."""
    number, offset = divmod(step, plan.pass_steps)
    sequence = _sequence(plan, number)
    part = int(np.searchsorted(sequence.parts, offset, side="right")) - 1
    start, stop = sequence.parts[part : part + 2].tolist()
    # The first window's steps, which puts the lanes out of phase.
    head = plan.window - lane * plan.window // plan.batch_size
    index = max(0, -(-(offset - start - head + 1) // plan.window))
    begin = start + (head + (index - 1) * plan.window if index else 0)
    end = min(start + head + index * plan.window, stop)

    places = np.arange(begin, end) + lane * plan.pass_steps  # in the pass's row of stacks
    places = np.random.default_rng([plan.seed, number, begin, lane]).permutation(places)
    at = np.searchsorted(sequence.ends, places, side="right")
    return Window(
        begin=number * plan.pass_steps + begin,
        stacks=sequence.pieces.last[at] - (sequence.ends[at] - places),
        units=sequence.pieces.units[at],
    )


# a pass ---------------------------------------------------------------------------------------------------------------


class _Pieces(NamedTuple):
    """Units or parts of them: which unit, and which of `Units.rows`, [first, last); int (n,) each."""

    units: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def at(self, chosen: np.ndarray) -> _Pieces:
        return _Pieces(self.units[chosen], self.first[chosen], self.last[chosen])

    def ends(self) -> np.ndarray:
        """Where each ends, were they laid end to end."""
        return np.cumsum(self.last - self.first)

    def cut(self, places: np.ndarray) -> _Pieces:
        """The same, laid end to end and cut at these places, from the first of them to the last; rising."""
        ends = self.ends()
        new = np.unique(np.concatenate([ends, places]))
        new = new[(new >= places[0]) & (new <= places[-1])]
        source = np.searchsorted(ends, new[1:])
        last = self.last[source] - (ends[source] - new[1:])
        return _Pieces(self.units[source], last - np.diff(new), last)


class _Sequence(NamedTuple):
    """A pass's order: pieces end to end, lane after lane, and where each ends.

    parts: the steps at which the parts of the pass begin, and L.
    """

    pieces: _Pieces
    ends: np.ndarray
    parts: np.ndarray


@lru_cache(maxsize=4)
def _sequence(plan: BatchPlan, number: int) -> _Sequence:
    shares = _shares(plan)
    taken = [_of_cohort(plan, cohort, number) for cohort in range(len(shares.taken))]
    pieces = _Pieces(*(np.concatenate(column) for column in zip(*taken, strict=True)))
    random = np.random.default_rng([plan.seed, number])
    session = random.permutation(plan.units.session.max() + 1)[plan.units.session[pieces.units]]
    pieces = pieces.at(np.argsort(session, kind="stable"))

    parts = np.arange(plan.parts + 1) * plan.pass_steps // plan.parts
    begins = (np.arange(plan.batch_size)[:, None] * plan.pass_steps + parts[:-1]).ravel()  # of each lane's parts
    pieces = pieces.cut(np.append(begins, plan.batch_size * plan.pass_steps))
    part = np.searchsorted(begins, pieces.ends(), side="left")
    pieces = pieces.at(np.lexsort((random.random(len(part)), part)))
    return _Sequence(pieces, pieces.ends(), parts)


class _Shares(NamedTuple):
    """held, taken: int (cohorts,), the stacks that a cohort has and those of it in a pass.

    largest_session: the most stacks of one session in a pass.
    """

    held: np.ndarray
    taken: np.ndarray
    largest_session: int


@lru_cache(maxsize=4)
def _shares(plan: BatchPlan) -> _Shares:
    units = plan.units
    rows = np.diff(units.first)
    held = np.bincount(units.cohort, rows).astype(np.int64)
    weights = held ** (1 - plan.balance)
    taken = np.diff(np.floor(np.cumsum(weights / weights.sum()) * units.stacks + 0.5).astype(np.int64), prepend=0)
    # A pass begins at a multiple of the common divisor in a round, and may touch one round more than it has stacks for.
    rounds = -(-(held - np.gcd(held, taken) + taken) // held)
    largest = int((np.bincount(units.session, rows) * rounds[_cohort_of_session(units)]).max())
    return _Shares(held, taken, min(largest, plan.batch_size * plan.pass_steps))


def _cohort_of_session(units: Units) -> np.ndarray:
    found = np.zeros(units.session.max() + 1, np.int64)
    found[units.session] = units.cohort
    return found


def _of_cohort(plan: BatchPlan, cohort: int, number: int) -> _Pieces:
    """What a pass takes of a cohort, in no order that counts: of its endless rounds, each in another order, so many
    stacks from where the pass before left off."""
    units, shares = plan.units, _shares(plan)
    held, taken = int(shares.held[cohort]), int(shares.taken[cohort])
    own = np.flatnonzero(units.cohort == cohort)
    whole = _Pieces(own, units.first[own], units.first[own + 1])

    def of_round(number: int, begin: int, end: int) -> _Pieces:
        order = np.random.default_rng([plan.seed, cohort, number]).permutation(len(own))
        return whole.at(order).cut(np.array([begin, end]))

    first, begin = divmod(number * taken, held)
    last, end = divmod((number + 1) * taken, held)
    if first == last:
        return of_round(first, begin, end)
    found = [whole.at(np.tile(np.arange(len(own)), last - first - (begin > 0)))]
    if begin:
        found.append(of_round(first, begin, held))
    if end:
        found.append(of_round(last, 0, end))
    return _Pieces(*(np.concatenate(column) for column in zip(*found, strict=True)))

"""Held-out subjects: told by name alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bfp.batches.held_out import held_out, is_held_out

NAMES = [f"sub{number}" for number in range(2000)]


def test_about_the_share_that_was_asked_for_is_held_out() -> None:
    for share in (0.1, 0.25, 0.5):
        assert abs(np.mean([held_out("a", name, share=share) for name in NAMES]) - share) < 0.03


def test_a_larger_share_keeps_who_was_held_out_before() -> None:
    assert all(held_out("a", name, share=0.4) for name in NAMES if held_out("a", name, share=0.2))


def test_subjects_of_two_cohorts_with_one_name_are_told_apart() -> None:
    one, other = ([held_out(cohort, name, share=0.5) for name in NAMES] for cohort in ("a", "b"))
    assert one != other
    rows = pa.table({"cohort": ["a"] * 2000 + ["b"] * 2000, "subject": NAMES * 2})
    assert is_held_out(rows, share=0.5).tolist() == one + other

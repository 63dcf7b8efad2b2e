"""A slice of the campaign: `python -m tests.campaigns.prune` is the whole of it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.campaigns.prune import DONE, run


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_an_ingest_that_is_done_left_a_whole_snapshot_whatever_is_pruned_meanwhile(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    at = f"{request.getfixturevalue('s3_bucket')}/pruned-{os.getpid()}" if where == "s3" else f"{tmp_path}/store"
    found: Counter[str] = Counter()
    for seed in range(1, 4):  # on a busy machine prunes can come in the way of all ingests of one round
        outcomes, wrong = run(tmp_path, at, times=3, seed=seed, held_up_s=0.1)
        assert [each for each in wrong if each.startswith("BROKEN")] == []
        found.update(outcomes)
        if found[DONE] and found["files removed"]:
            return
    pytest.fail(f"no ingest was done, or no file removed: {dict(found)}")

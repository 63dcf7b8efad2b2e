"""A slice of the campaign: `python -m tests.campaigns.race` is the whole of it."""

from __future__ import annotations

import os
from pathlib import Path

from bfp.storage import Place, place
from tests.campaigns.race import run


def test_of_processes_that_race_for_a_shard_and_a_snapshot_one_wins_and_all_agree(tmp_path: Path) -> None:
    faults, wins = run(place(str(tmp_path)), racers=4, rounds=10)
    assert faults == []
    assert wins.total() == 5


def test_on_object_storage_one_wins_and_all_agree(s3_bucket: str) -> None:
    faults, wins = run(Place(f"{s3_bucket}/race-{os.getpid()}"), racers=4, rounds=4)
    assert faults == []
    assert wins.total() == 2

"""What the benchmark of a whole ingest makes of a run's events."""

from __future__ import annotations

import pytest

from tests.benchmarks.job import rate_of

# two workers, shards of 16 scans: the first two end together, after 20 s of starting
EVENTS = [
    {"event": "phase", "phase": "preparing", "total": 64},
    *(
        {"event": "progress", "phase": "preparing", "done": 16 * done, "shards": f"{done} of 5", "time": time}
        for done, time in ((1, "2026-11-01T10:00:20"), (2, "2026-11-01T10:00:20.5"), (4, "2026-11-01T10:00:28.5"))
    ),
    {"event": "progress", "phase": "describing", "done": 99, "time": "2026-11-01T10:01:00"},
]


def test_the_first_shard_of_each_worker_does_not_count() -> None:
    assert rate_of(EVENTS, workers=2) == 32 / 8
    assert rate_of(EVENTS, workers=1) == 48 / 8.5
    with pytest.raises(ValueError, match="too few shards to tell the rate of 4 workers"):
        rate_of(EVENTS, workers=4)

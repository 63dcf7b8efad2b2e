"""What the benchmark of a whole ingest makes of a run's events."""

from __future__ import annotations

from tests.benchmarks.job import rate_of

# two workers, shards of 16 scans: the first two end together, after 20 s of starting
EVENTS = [
    {"event": "phase", "phase": "preparing", "total": 256},
    *(
        {"event": "progress", "phase": "preparing", "done": 16 * done, "shards": f"{done} of 16", "time": time}
        for done, time in ((1, "2026-11-01T10:00:20"), (2, "2026-11-01T10:00:20.5"), (16, "2026-11-01T10:01:00.5"))
    ),
    {"event": "progress", "phase": "describing", "done": 99, "time": "2026-11-01T10:02:00"},
]


def test_the_first_shard_of_each_worker_does_not_count() -> None:
    assert rate_of(EVENTS, workers=2) == 14 * 16 / 40
    assert rate_of(EVENTS, workers=1) == 15 * 16 / 40.5


def test_a_run_of_few_shards_tells_no_rate() -> None:
    assert rate_of(EVENTS, workers=3) is None
    assert rate_of(EVENTS[:1], workers=1) is None

"""Cohorts: from where scans lie to what is prepared together: BIDS dataset, table or glob -> scans, sessions, shards.

    discover(source, wanted=…)  one flat listing -> sessions, each with its scans and what was left out and why
    plan_shards(sessions, …)    sessions -> shards, the units of commit, retry and resume

Subject and session labels are those of BIDS without their prefix ("01", not "sub-01"); a cohort without visits has the
session "". A subject is unique within its cohort only: people are told apart by (cohort, subject).

Several scans of one modality in one session are never mixed nor guessed at: one is taken by a stated rule (each
source says its own), and the others are left out as duplicates that name the rule. Where its file turns out to be of no
use, the next by the rule takes its place.

Discovery is light: it imports neither numpy nor pyarrow, so that a dry run is quick. What opens the scans is
`cohorts.prepare`, which nothing here imports.
"""

from __future__ import annotations

from bfp.cohorts.discovery import Source, discover
from bfp.cohorts.sessions import LabelMap, LeftOut, Scan, SegmentationSource, Session
from bfp.cohorts.shards import Shard, plan_shards

__all__ = ["LabelMap", "LeftOut", "Scan", "SegmentationSource", "Session", "Shard", "Source", "discover", "plan_shards"]

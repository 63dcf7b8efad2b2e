"""Shards: which sessions are prepared and committed together, decided by the sessions alone.

Sessions stand in the order of their keys, and a shard ends after a session whose key's hash says so: a subject that
comes or goes moves the ends of no shard but its own. A shard's name is the hash of all that its files follow from:
the scans, their duplicates and label maps (URI, size, etag), what was left out, the preprocessing, the version of
`imaging`, and that of what converts DICOM. Labels are not part of it: they change, and pixels do not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from bfp.cohorts.dicom import Series, converter
from bfp.cohorts.sessions import Key, Session
from bfp.storage import Entry

LONGEST = 4
"""A shard ends at this many times the mean at the latest (2 % of shards would be longer), which bounds its memory."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Whole sessions of one cohort, and the name of their commit."""

    name: str
    cohort: str
    sessions: tuple[Session, ...]

    @property
    def scans(self) -> int:
        return sum(len(session.scans) for session in self.sessions)


def plan_shards(sessions: Iterable[Session], *, mean_sessions: int, preprocessing: str, version: int) -> list[Shard]:
    """The shards of these sessions, of `mean_sessions` sessions on average, none across two cohorts.

    preprocessing: the fingerprint of what is done to the scans. version: of the code that does it.
    """
    ordered = sorted(sessions, key=lambda session: session.key)
    return [
        Shard(_name(group, preprocessing=preprocessing, version=version), cohort, tuple(group))
        for cohort, own in groupby(ordered, key=lambda session: session.key.cohort)
        for group in _groups(own, mean_sessions)
    ]


def _groups(sessions: Iterable[Session], mean_sessions: int) -> Iterator[list[Session]]:
    group: list[Session] = []
    for session in sessions:
        group.append(session)
        if _ends_after(session.key, mean_sessions) or len(group) == LONGEST * mean_sessions:
            yield group
            group = []
    if group:
        yield group


def _ends_after(key: Key, mean_sessions: int) -> bool:
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") % mean_sessions == 0


def _name(sessions: list[Session], *, preprocessing: str, version: int) -> str:
    inputs = [
        [
            session.key,
            [[scan.modality, *_files(scan.files), *scan.warnings] for scan in session.scans],
            [
                [*_files(each.files), each.name, each.drawn_on, each.chosen, each.refused, each.warnings, each.inside]
                for each in session.label_maps
            ],
            [[row.modality, row.uri, row.reason, row.detail] for row in session.left_out],
            # nothing where there are none, so that the shards of most sessions are called as they were before
            *([[_files(scan.files) for scan in session.spares]] if session.spares else []),
            *([converter()] if any(isinstance(scan.file, Series) for scan in session.scans) else []),
        ]
        for session in sessions
    ]
    content = json.dumps([inputs, preprocessing, version], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _files(files: Iterable[Entry]) -> list[str | int]:
    return [fact for file in files for fact in (file.place.uri, file.size, file.etag)]

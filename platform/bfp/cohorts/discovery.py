"""Discovery: what a spec says of a cohort -> its sessions, whatever the cohort is made of.

What holds for every source stands here: labels from a file of their own, and an error that says what was looked for
and what was found where a cohort has no scan at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from bfp.cohorts import bids, glob, table
from bfp.cohorts.labels import read_labels
from bfp.cohorts.sessions import SegmentationSource, Session
from bfp.errors import InputError
from bfp.storage import Place
from bfp.words import counted


@dataclass(frozen=True, slots=True)
class Source:
    """One cohort as plain values.

    at: the BIDS dataset's root, the table's file, or the glob. pattern: with a glob, what tells subject and modality.
    dicom: of a table or glob, whether its scans are DICOM series, which go by their folders.
    modalities: the cohort's own names and the BIDS suffixes they stand for. prefer: of BIDS, the entities of the scans
    that are taken before others. labels: a CSV or TSV file, or None for what the source itself carries.
    """

    name: str
    kind: Literal["bids", "table", "glob"]
    at: Place
    pattern: str = ""
    dicom: bool = False
    modalities: Mapping[str, str] = field(default_factory=dict)
    segmentations: tuple[SegmentationSource, ...] = ()
    prefer: Mapping[str, str | None] = field(default_factory=dict)
    labels: Place | None = None


def discover(source: Source, *, wanted: Collection[str]) -> list[Session]:
    """The sessions of one cohort, sorted by key, from one flat listing.

    wanted: the modalities that will be used; scans of others are left out.
    Raises InputError where the cohort cannot be listed or holds no scan.
    """
    match source.kind:
        case "bids":
            sessions = bids.sessions(
                source.at,
                cohort=source.name,
                wanted=wanted,
                modalities=source.modalities,
                segmentations=source.segmentations,
                prefer=source.prefer,
                with_labels=source.labels is None,
            )
        case "table":
            sessions = table.sessions(
                source.at,
                cohort=source.name,
                wanted=wanted,
                modalities=source.modalities,
                segmentations=source.segmentations,
                dicom=source.dicom,
            )
        case "glob":
            sessions = glob.sessions(
                source.at,
                pattern=source.pattern,
                cohort=source.name,
                wanted=wanted,
                modalities=source.modalities,
                dicom=source.dicom,
            )
    if not any(session.scans for session in sessions):
        raise InputError(_nothing_to_do(source, sessions, wanted))
    if source.labels is not None:
        labels = read_labels(source.labels)
        labels.check_speaks_of([source.name])
        sessions = [replace(session, labels=dict(sorted(labels.of(session.key).items()))) for session in sessions]
    return sorted(sessions, key=lambda session: session.key)


def _nothing_to_do(source: Source, sessions: list[Session], wanted: Collection[str]) -> str:
    left_out = [row for session in sessions for row in session.left_out]
    message = f"cohort {source.name}: no scan of {', '.join(wanted)} in {source.at}"
    if not left_out:
        return f"{message}: nothing there looks like a scan"
    first = left_out[0]
    files = counted(len(left_out), "file was", "files were")
    message += f": {files} found and left out, the first because: {first.reason}: {first.detail} ({first.uri})"
    if any(row.modality and row.modality not in wanted for row in left_out):
        message += "; map the cohort's own names with `modalities: {THEIRS: T1w}`"
    return message

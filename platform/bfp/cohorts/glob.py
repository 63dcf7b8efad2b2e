"""Globs: files whose names tell subject, modality and, if any, session by a regular expression.

`*` and `?` stay within one folder, `**` spans any number of them (https://docs.python.org/3/library/glob.html);
brackets stand for themselves. The pattern is searched in the whole URI. A file that the glob finds and the pattern does
not understand is left out. Of several scans of one modality in a session the first by name is taken. Of a pair the glob
and the pattern may find either half.

Of DICOM files the glob finds any of a series, and the pattern is searched in the URI of their folder, ended by a slash.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping

from bfp.cohorts.dicom import series_in
from bfp.cohorts.pairs import files_of, is_half
from bfp.cohorts.sessions import Candidate, Key, LeftOut, Session, session_of
from bfp.errors import InputError, Reason
from bfp.storage import Entry, Place
from bfp.words import counted

RULE = "the first by name"
_LITERAL = re.compile(r"[][{}]")  # what a shell would take for a wildcard


def sessions(
    glob: Place,
    *,
    pattern: str,
    cohort: str,
    wanted: Collection[str],
    modalities: Mapping[str, str],
    dicom: bool = False,
) -> list[Session]:
    """The sessions of the files that the glob finds; dicom: of the series that these are of.

    Raises InputError where it finds none.
    """
    root, matches = listing_root(glob), glob_expression(glob.uri)
    expression = re.compile(pattern)
    scans: dict[Key, list[Candidate]] = defaultdict(list)
    strangers: list[Entry] = []
    halves: dict[Place, Entry] = {}
    for file in series_in(root.files(), matches) if dicom else root.files():
        if is_half(file.place):
            halves[file.place] = file
        if not dicom and not matches.fullmatch(file.place.uri):
            continue
        found = expression.search(f"{file.place}/" if dicom else file.place.uri)
        if found is None or not found["subject"] or not found["modality"]:
            strangers.append(file)
            continue
        session = found.groupdict().get("session") or ""
        key = Key(cohort, found["subject"].removeprefix("sub-"), session.removeprefix("ses-"))
        scans[key].append(Candidate(modalities.get(found["modality"], found["modality"]), file))
    if not scans and not strangers:
        literal = bool(_LITERAL.search(glob.uri))
        hint = "; brackets and braces stand for themselves: the wildcards are *, ? and **" * literal
        listed = counted(sum(1 for _ in root.files()), "file")
        raise InputError(f"cohort {cohort}: {glob} finds nothing in the {listed} below {root}{hint}")
    if not dicom:
        scans = {key: _paired(candidates, halves) for key, candidates in scans.items()}
    paired = {file for own in scans.values() for each in own if each.voxels for file in (each.file, each.voxels)}
    nobody = Key(cohort, "", "")
    left_out = [
        LeftOut(nobody, "", file.place.uri, Reason.NAME, f"the pattern is {pattern}")
        for file in strangers
        if file not in paired
    ]
    if left_out:
        scans.setdefault(nobody, [])
    return [
        session_of(key, own, wanted=wanted, rule=RULE, left_out=left_out if key == nobody else ())
        for key, own in scans.items()
    ]


def _paired(candidates: list[Candidate], halves: Mapping[Place, Entry]) -> list[Candidate]:
    """The candidates with pairs put together, each of them once."""
    distinct = {(each.modality, files_of(each.file, halves.get)): None for each in candidates}
    return [Candidate(modality, files.file, voxels=files.voxels) for modality, files in distinct]


def listing_root(glob: Place) -> Place:
    """The folder to list: everything before the first part with a wildcard, or the file's own folder."""
    parts = glob.uri.split("/")
    fixed = next((index for index, part in enumerate(parts) if re.search(r"[*?]", part)), len(parts) - 1)
    return Place("/".join(parts[:fixed]) or "/")


def glob_expression(glob: str) -> re.Pattern[str]:
    """The regular expression of the URIs that a glob finds."""
    pieces = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?)", glob)
    return re.compile("".join(pieces.get(token, re.escape(token)) for token in tokens), re.DOTALL)

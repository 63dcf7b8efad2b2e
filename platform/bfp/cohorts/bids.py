"""BIDS datasets: scans by the names that the standard gives them (https://bids-specification.readthedocs.io).

    sub-01/[ses-a/]anat/sub-01[_ses-a][_acq-…][_run-…]_T1w.nii.gz       a scan
    participants.tsv   sub-01/sub-01_sessions.tsv                       labels of subjects and of their sessions
    derivatives/…/sub-01[_ses-a][_…]_label-lesion_mask.nii.gz           a label map, where the spec names its suffix
    .bidsignore        what is not part of the dataset: no scan is taken from there

Scans are the files of `anat`; other data types (func, dwi, fmap, …), `sourcedata`, `code` and hidden folders are not
looked at, and those of `derivatives` are label maps alone: processed scans are a dataset of their own, whose root is
`derivatives/<pipeline>`. A label map that the spec names is taken whatever `.bidsignore` says, which is often how a
dataset keeps one from the validator.

Of several scans of one modality one is taken by RULE, unless the spec prefers others by the entities in their names.
With a contrast agent, or as a phase image, a scan shows something else than its suffix says: it is taken where there is
no other, and a warning stands with it. Of several label maps one is taken by MAP_RULE; one whose `space-` is not that
of its scan, or whose `run-` is another, is refused, since it was drawn on other voxels.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bfp.cohorts.bidsignore import Rule, ignored_by, read_bidsignore
from bfp.cohorts.labels import READS_AT_ONCE, Labels, read_labels
from bfp.cohorts.sessions import Candidate, Key, LabelMap, LeftOut, SegmentationSource, Session, chosen, session_of
from bfp.errors import InputError, Reason
from bfp.storage import Entry, Place

RULE = "no contrast agent and no phase image, then the fewest entities in its name, then the lowest run, then by name"
MAP_RULE = "a file that is there, then nothing in its name that its scan's denies, then as scans are chosen"
_IMAGE = re.compile(r"(?P<stem>.+)\.nii(\.gz)?", re.DOTALL)
_SCANS = "sub-*/[ses-*/]anat/*.nii[.gz]"
_LIKE_AN_IMAGE = re.compile(r".+\.(nii|nii\.gz|hdr|img)", re.DOTALL | re.IGNORECASE)
# the standard's data types other than anat
_OTHER_TYPES = {"beh", "dwi", "eeg", "fmap", "func", "ieeg", "meg", "micr", "motion", "mrs", "nirs", "perf", "pet"}
_ELSEWHERE = ("sourcedata", "code", "stimuli")  # folders of the standard that hold no scans of the dataset


@dataclass(frozen=True, slots=True)
class Name:
    """A BIDS file name: its entities in order ({"sub": "01", "run": "2"}) and its suffix ("T1w")."""

    entities: Mapping[str, str]
    suffix: str

    def rank(self, prefer: Mapping[str, str | None]) -> tuple[tuple[bool, ...], int, int, int, str]:
        """Orders the scans of one modality: those that have what is preferred first, in its order, then see RULE."""
        run = self.entities.get("run", "0")
        others = tuple(not _same(self.entities.get(entity), value) for entity, value in prefer.items())
        return others, len(self.doubts(prefer)), len(self.entities), int(run) if run.isdigit() else 0, run

    def doubts(self, prefer: Mapping[str, str | None]) -> list[str]:
        """Why the image may not be what its suffix says, unless it was asked for."""
        agent, part = self.entities.get("ce"), self.entities.get("part", "mag")
        found = []
        if agent and not _same(agent, prefer.get("ce")):
            found.append(f"with a contrast agent (ce-{agent}), for want of a {self.suffix} without")
        if part != "mag" and part != prefer.get("part"):
            found.append(f"part-{part}, for want of a {self.suffix} with magnitudes")
        return found


def parse_name(stem: str) -> Name | None:
    """The entities and suffix of a file name without its extension; None where it is no BIDS name."""
    *pairs, suffix = stem.split("_")
    entities: dict[str, str] = {}
    for pair in pairs:
        name, dash, value = pair.partition("-")
        if not (name and dash and value) or name in entities:
            return None
        entities[name] = value
    if not entities.get("sub") or not suffix or "-" in suffix:
        return None
    return Name(entities, suffix)


def sessions(
    root: Place,
    *,
    cohort: str,
    wanted: Collection[str],
    modalities: Mapping[str, str],
    segmentations: Sequence[SegmentationSource],
    prefer: Mapping[str, str | None],
    with_labels: bool,
) -> list[Session]:
    """The sessions of a dataset; `with_labels` carries participants.tsv and sessions.tsv along.

    prefer: entities and their values (None: without it) of the scans that are taken before others.
    Raises InputError where there is no subject's folder, or `.bidsignore` cannot be understood.
    """
    ignored = read_bidsignore(root / ".bidsignore")
    rule = f"{_preference(prefer)}, then {RULE}" if prefer else RULE
    scans: dict[Key, list[Candidate]] = defaultdict(list)
    left_out: dict[Key, list[LeftOut]] = defaultdict(list)
    maps: dict[tuple[Key, str], list[tuple[Name, Entry]]] = defaultdict(list)
    tables: list[tuple[str, Entry]] = []
    first_names: list[str] = []

    for path, file in _files(root):
        if len(first_names) < 3:
            first_names.append("/".join(path))
        if (subject := _subject_of_table(path)) is not None:
            tables.append((subject, file))
        image = _image(path, cohort)
        drawn = [each for each in segmentations if image and image.stem.endswith(f"_{each.suffix}")]
        if image is not None and image.name is not None and image.key is not None:
            for segmentation in drawn:
                maps[image.key, segmentation.name].append((image.name, file))
        if image is None or image.here is None:
            if _is_astray(path) and not drawn and not ignored_by(ignored, "/".join(path)):
                key = _whose(path[:-1], cohort)
                left_out[key].append(LeftOut(key, "", file.place.uri, Reason.NAME, f"scans are {_SCANS}"))
            continue
        what = _scan(path, file, image, ignored=ignored, modalities=modalities, prefer=prefer)
        if isinstance(what, LeftOut) and (what.reason is Reason.NAME or not drawn):
            left_out[image.here].append(what)
        elif isinstance(what, Candidate) and not drawn:
            scans[image.here].append(what)

    if not scans and not left_out:
        found = f"found {', '.join(first_names)}, …" if first_names else "the folder is empty"
        raise InputError(f"cohort {cohort}: no BIDS dataset at {root}: looked for {_SCANS}; {found}")
    labels = _labels(tables) if with_labels else Labels()
    return [
        session_of(
            key,
            scans.pop(key, ()),  # each freed once it is a session: a million files may be here
            wanted=wanted,
            rule=rule,
            label_maps=partial(_label_maps, key, maps, segmentations, prefer),
            labels=labels.of(key),
            left_out=left_out.get(key, ()),
        )
        for key in sorted({**scans, **left_out})
    ]


class _Image(NamedTuple):
    """An image of a dataset by its path. name: None where it is none of BIDS; key: whose it is by its name; here: whose
    by its folder, None where that is none of scans."""

    stem: str
    name: Name | None
    key: Key | None
    here: Key | None


def _image(path: list[str], cohort: str) -> _Image | None:
    """None where it is no image."""
    found = _IMAGE.fullmatch(path[-1])
    if found is None:
        return None
    name, folder = parse_name(found["stem"]), path[:-1]
    key = Key(cohort, name.entities["sub"], name.entities.get("ses", "")) if name else None
    here = _whose(folder, cohort) if _is_anatomy(folder) else None
    return _Image(found["stem"], name, key, here)


def _scan(
    path: list[str],
    file: Entry,
    image: _Image,
    *,
    ignored: Sequence[Rule],
    modalities: Mapping[str, str],
    prefer: Mapping[str, str | None],
) -> Candidate | LeftOut:
    """What an image in a folder of scans is: a candidate, unless its name or `.bidsignore` says otherwise."""
    assert image.here is not None
    if image.name is None or image.key != image.here:
        detail = f"expected {_expected(image.here)}_<suffix>.nii.gz"
        return LeftOut(image.here, "", file.place.uri, Reason.NAME, detail)
    name = image.name
    modality = sys.intern(modalities.get(name.suffix, name.suffix))
    if line := ignored_by(ignored, "/".join(path)):
        return LeftOut(image.here, modality, file.place.uri, Reason.IGNORED, f"by its line {line}")
    return Candidate(modality, file, (*name.rank(prefer), image.stem), tuple(name.doubts(prefer)))


def _files(root: Place) -> Iterator[tuple[list[str], Entry]]:
    """The files of a dataset with the parts of their path below its root.

    Hidden folders are not even listed where that can be helped: a DataLad dataset has one with all of its files.
    """
    start = len(root.uri.rstrip("/")) + 1
    for file in root.files(hidden=False):
        path = file.place.uri[start:].split("/")
        if path[0] not in _ELSEWHERE and not any(part.startswith(".") for part in path):
            yield path, file


def _subject_of_table(path: list[str]) -> str | None:
    """Of whom a table of the dataset itself speaks: participants.tsv of all, "", sub-01/sub-01_sessions.tsv of 01."""
    if path == ["participants.tsv"]:
        return ""
    if len(path) == 2 and path[0].startswith("sub-") and path[1] == f"{path[0]}_sessions.tsv":
        return path[0].removeprefix("sub-")
    return None


def _is_anatomy(folder: list[str]) -> bool:
    """Whether this is sub-*/anat or sub-*/ses-*/anat."""
    if len(folder) not in (2, 3) or folder[-1] != "anat" or not folder[0].startswith("sub-"):
        return False
    return len(folder) == 2 or folder[1].startswith("ses-")


def _is_astray(path: list[str]) -> bool:
    """Whether a file of a subject's folder looks like an image that lies, or is called, as no image of BIDS does."""
    if not path[0].startswith("sub-") or len(path) < 2 or not _LIKE_AN_IMAGE.fullmatch(path[-1]):
        return False
    if _is_anatomy(path[:-1]):
        return _IMAGE.fullmatch(path[-1]) is None
    return _OTHER_TYPES.isdisjoint(path[1:-1])


def _whose(folder: list[str], cohort: str) -> Key:
    """By a folder below that of a subject."""
    session = folder[1].removeprefix("ses-") if len(folder) > 1 and folder[1].startswith("ses-") else ""
    return Key(cohort, folder[0].removeprefix("sub-"), session)


def _same(value: str | None, wanted: str | None) -> bool:
    """Whether an entity has the value: numbers may be padded with zeros, as in run-01."""
    if value is None or wanted is None or not (value.isdigit() and wanted.isdigit()):
        return value == wanted
    return int(value) == int(wanted)


def _preference(prefer: Mapping[str, str | None]) -> str:
    return ", then ".join(f"{entity}-{value}" if value else f"without {entity}-" for entity, value in prefer.items())


def _expected(key: Key) -> str:
    return f"sub-{key.subject}" + (f"_ses-{key.session}" if key.session else "")


def _label_maps(
    key: Key,
    maps: Mapping[tuple[Key, str], list[tuple[Name, Entry]]],
    segmentations: Sequence[SegmentationSource],
    prefer: Mapping[str, str | None],
    taken: Mapping[str, Candidate],
) -> Iterator[LabelMap]:
    """The label map of each segmentation, by MAP_RULE. taken: the scans of the session, by modality.

    Where the name of every one says another space or run than the scan's, the first of them, refused.
    """
    for segmentation in segmentations:
        found = maps.get((key, segmentation.name))
        if not found:
            continue
        scan = _name_of(taken.get(segmentation.drawn_on))
        fitting = [each for each in found if _space(each[0], segmentation, scan) == _space(scan, segmentation, scan)]
        name, file = min(
            fitting or found,
            key=lambda each: (
                each[1].size < 0,
                len(_denied(each[0], scan)),
                each[0].rank(prefer),
                each[1].place.uri,
            ),
        )
        denied = _denied(name, scan)
        own, its = _space(name, segmentation, scan), _space(scan, segmentation, scan)
        refused = "" if fitting else f"by its name it lies in {own}, the {segmentation.drawn_on} in {its}"
        if other := next((each for each in denied if each.startswith("run-")), ""):
            refused = f"by its name it was drawn on {other}, and another run of the {segmentation.drawn_on} was taken"
        yield LabelMap(
            segmentation.name,
            segmentation.drawn_on,
            file,
            chosen=chosen(len(fitting), MAP_RULE),
            warnings=(f"its name says {' and '.join(denied)}, which its scan's denies",)
            if denied and not refused
            else (),
            inside=segmentation.inside,
            refused=refused,
        )


def _name_of(scan: Candidate | None) -> Name | None:
    image = _IMAGE.fullmatch(scan.file.place.name) if scan else None
    return parse_name(image["stem"]) if image else None


def _space(name: Name | None, segmentation: SegmentationSource, scan: Name | None) -> str:
    """In which space an image is by its name: that of the scan itself is also called by its suffix, or `orig`."""
    space = name.entities.get("space", "") if name else ""
    itself = ("", "orig", segmentation.drawn_on, scan.suffix if scan else "")
    return "its own space" if space in itself else f"space-{space}"


def _denied(label_map: Name, scan: Name | None) -> list[str]:
    """What of a label map's name its scan's says otherwise: `run-1` where that says run-2."""
    told = scan.entities if scan else {}
    return [
        f"{entity}-{value}"
        for entity, value in label_map.entities.items()
        if entity not in ("space", "label", "desc", "res", "den") and entity in told and not _same(told[entity], value)
    ]


def _labels(tables: list[tuple[str, Entry]]) -> Labels:
    """What these say together. tables: `participants.tsv` with "", `sessions.tsv` with its subject."""

    def read(table: tuple[str, Entry]) -> Labels:
        subject, file = table
        return read_labels(file.place, subject=subject or None, cohort_column=None)

    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        found = list(pool.map(read, tables))
    participants = [labels for (subject, _), labels in zip(tables, found, strict=True) if not subject]
    visits = [labels for (subject, _), labels in zip(tables, found, strict=True) if subject]
    visited = Labels({key: row for labels in visits for key, row in labels.rows.items()})
    return participants[0].joined(visited) if participants else visited

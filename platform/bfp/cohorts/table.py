"""Tables: one row a scan, in a CSV or TSV file with the columns subject, modality, uri and, if any, session.

Relative URIs are relative to the table. Every other column is carried along as a label of the session; where the rows
of a session disagree it is a property of the scans, and carried for each ("scanner.T1w", "scanner.FLAIR"). Of several
scans of one modality the first row is taken whose file is there, with its labels; rows of a pair's two halves are one.
A label map comes from the row of the scan it was drawn on (MAP_RULE).
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from bfp.cohorts.dicom import series_at
from bfp.cohorts.labels import READS_AT_ONCE, Row, present, read_table
from bfp.cohorts.pairs import Files, files_of
from bfp.cohorts.sessions import Candidate, Key, LabelMap, LeftOut, SegmentationSource, Session, chosen, session_of
from bfp.errors import InputError, Reason
from bfp.storage import Entry, Place, place
from bfp.words import counted

RULE = "the first row of the table"
MAP_RULE = "the row of the scan it was drawn on, then rows of its modality, then the first row of the session"
_NEEDED = ("subject", "modality", "uri")
_NOTHING = "the table names it"
_SHOWN_LINES = 10  # of those that lack something


def sessions(
    file: Place,
    *,
    cohort: str,
    wanted: Collection[str],
    modalities: Mapping[str, str],
    segmentations: Sequence[SegmentationSource],
    dicom: bool = False,
) -> list[Session]:
    """The sessions of a table; dicom: whose scans are the series in the folders that it names.

    Raises InputError where a column is missing or a row lacks its subject, modality or uri.
    """
    table = read_table(file)
    _check(file, table, segmentations)
    rows = [row.cells for row in table]
    label_columns = {segmentation.column for segmentation in segmentations}
    scans = [row["uri"] for row in rows]
    maps = [row[column] for row in rows for column in label_columns if column and present(row[column])]
    found_at = _look_up(maps, _file_at, base=file.parent)
    found_at |= _look_up(scans, _series_at if dicom else _file_at, base=file.parent)

    grouped: dict[Key, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        subject, session = row["subject"].removeprefix("sub-"), present(row.get("session", "")).removeprefix("ses-")
        modality = modalities.get(row["modality"], row["modality"])
        grouped[Key(cohort, subject, session)].append({**row, "modality": modality})

    found = []
    for key, own in grouped.items():
        here = [(row, found_at[row["uri"]]) for row in own]
        distinct = dict.fromkeys((row["modality"], files) for row, files in here if isinstance(files, Files))
        made = session_of(
            key,
            [
                Candidate(modality, files.file, rank, voxels=files.voxels)
                for rank, (modality, files) in enumerate(distinct)
            ],
            wanted=wanted,
            rule=RULE,
            label_maps=partial(_label_maps, own, found_at, segmentations, file.parent),
            left_out=[_missing(key, row, file.parent, why) for row, why in here if isinstance(why, str)],
        )
        taken = {(scan.modality, Files(scan.file, scan.voxels)) for scan in made.scans}
        first = sorted(here, key=lambda each: (each[0]["modality"], each[1]) not in taken)
        labels = _labels([row for row, _ in first], {*_NEEDED, "session", *label_columns})
        found.append(replace(made, labels=dict(sorted(labels.items()))))
    return found


def _check(file: Place, rows: list[Row], segmentations: Sequence[SegmentationSource]) -> None:
    if not rows:
        raise InputError(f"{file}: no rows below the line of column names")
    columns = list(rows[0].cells)
    needed = [*_NEEDED, *(segmentation.column for segmentation in segmentations if segmentation.column)]
    missing = [column for column in needed if column not in columns]
    if missing:
        raise InputError(
            f"{file}: lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; found {', '.join(columns)}"
        )
    incomplete = [
        f"{file}:{line}: no {' and no '.join(column + _said(cells[column]) for column in empty)}"
        for line, cells in rows
        if (empty := [column for column in _NEEDED if not present(cells[column])])
    ]
    if incomplete:
        more = len(incomplete) - _SHOWN_LINES
        told = [*incomplete[:_SHOWN_LINES], *([f"and {counted(more, 'line')} more like these"] if more > 0 else [])]
        raise InputError("\n".join(told))


def _said(cell: str) -> str:
    """What a cell says where that means that there is no value, "" where it is empty."""
    return f" ({cell} says that there is none)" if cell else ""


def _look_up(uris: list[str], find: Callable[[Place], Files | str], *, base: Place) -> dict[str, Files | str]:
    """What stands behind each URI as it is written in the table; where that is no scan, what there is."""
    distinct = list(dict.fromkeys(uris))
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return dict(zip(distinct, pool.map(lambda uri: find(_resolve(uri, base)), distinct), strict=True))


def _file_at(file: Place) -> Files | str:
    if (entry := file.entry()) is not None:
        return files_of(entry, Place.entry)
    return "the table names a folder; of DICOM series say `dicom: true`" if _is_folder(file) else _NOTHING


def _series_at(folder: Place) -> Files | str:
    if (series := series_at(folder)) is not None:
        return Files(series, None)
    if folder.entry() is not None:
        return "the table names a file; with `dicom: true` it names the folder of a series"
    return "no file lies in the folder itself, as those of a series do" if _is_folder(folder) else _NOTHING


def _is_folder(place: Place) -> bool:
    return (place.is_local and place.path.is_dir()) or bool(place.names() or place.folders())


def _resolve(uri: str, base: Place) -> Place:
    if "://" in uri or uri.startswith(("/", "~")):
        return place(uri)
    if base.is_local:
        return place(uri, base=Path(base.uri))
    scheme, _, path = (base / uri).uri.partition("://")
    return Place(f"{scheme}://{posixpath.normpath(path)}")


def _missing(key: Key, row: Mapping[str, str], base: Place, why: str) -> LeftOut:
    return LeftOut(key, row["modality"], _resolve(row["uri"], base).uri, Reason.MISSING, why)


def _label_maps(
    rows: list[dict[str, str]],
    found_at: Mapping[str, Files | str],
    segmentations: Sequence[SegmentationSource],
    base: Place,
    taken: Mapping[str, Candidate],
) -> Iterator[LabelMap]:
    """The label map of each segmentation, by MAP_RULE. taken: the scans of the session, by modality.

    One that is not there is named all the same, with size -1, so that its scan can say so.
    """
    for segmentation in segmentations:
        scan = taken.get(segmentation.drawn_on)
        of_scan = [row for row in rows if scan and found_at[row["uri"]] == Files(scan.file, scan.voxels)]
        of_modality = [row for row in rows if row["modality"] == segmentation.drawn_on]
        in_order = (*of_scan, *of_modality, *rows)
        cells = [cell for row in in_order if (cell := present(row[segmentation.column or ""]))]
        if cells:
            found = found_at[cells[0]]
            if isinstance(found, str):
                found = Files(Entry(_resolve(cells[0], base), -1, ""), None)
            yield LabelMap(
                segmentation.name,
                segmentation.drawn_on,
                found.file,
                found.voxels,
                chosen=chosen(len(set(cells)), MAP_RULE),
                inside=segmentation.inside,
            )


def _labels(rows: list[dict[str, str]], identity: Collection[str | None]) -> dict[str, str]:
    """rows: those that were taken first; of each modality the first row speaks."""
    labels: dict[str, str] = {}
    rows = list({row["modality"]: row for row in reversed(rows)}.values())
    for column in rows[0]:
        if column in identity:
            continue
        values = {row["modality"]: value for row in rows if (value := present(row[column]))}
        if len(set(values.values())) == 1:
            labels[column] = next(iter(values.values()))
        else:
            labels |= {f"{column}.{modality}": value for modality, value in values.items()}
    return labels

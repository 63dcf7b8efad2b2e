"""Pairs: scans in two files of one name, the header (.hdr) and the voxels (.img), each plain or .gz (NIfTI-1 and -2).

BIDS has none; tables and globs may name either half, or both. A pair goes by the file of its header.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from bfp.storage import Entry, Place

_HALF = re.compile(r"(?P<stem>.+)\.(?P<half>hdr|img)(?P<zip>\.gz)?", re.DOTALL)


class Files(NamedTuple):
    """Where a scan is: in one file, or its header in one and its voxels in another."""

    file: Entry
    voxels: Entry | None


def is_half(place: Place) -> bool:
    return _HALF.fullmatch(place.name) is not None


def files_of(file: Entry, find: Callable[[Place], Entry | None]) -> Files:
    """The file alone, or the pair where its name says that it is half of one; a half that is not there has size -1.

    find: the file at a place, None where there is none. Of a plain and a zipped other half the one like this is taken.
    """
    half = _HALF.fullmatch(file.place.name)
    if half is None:
        return Files(file, None)
    other = f"{half['stem']}.{'img' if half['half'] == 'hdr' else 'hdr'}"
    like, unlike = (".gz", "") if half["zip"] else ("", ".gz")
    places = [file.place.parent / f"{other}{end}" for end in (like, unlike)]
    found = next((entry for place in places if (entry := find(place))), Entry(places[0], -1, ""))
    return Files(file, found) if half["half"] == "hdr" else Files(found, file)

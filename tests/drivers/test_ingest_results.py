from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bfp.drivers import ingest_results
from bfp.drivers.ingest_results import pictures_of
from bfp.reports.pictures import Pair
from bfp.storage import Place
from bfp.store.reader import SliceStore
from tests.store.makers import MadeSession, make_store


@pytest.fixture(params=[1, 6], ids=["a file a shard", "several files a shard"])
def many(request: pytest.FixtureRequest, tmp_path: Path) -> SliceStore:
    """30 sessions in 30 files, of which every third has no T1w."""
    sessions = [
        MadeSession("made", f"s{number:02d}", stacks=5 + number % 3, present=(number % 3 > 0, True, True))
        for number in range(30)
    ]
    return SliceStore.open(
        make_store(tmp_path / "store", sessions=sessions, sessions_per_shard=request.param, sessions_per_part=1)
    )


def read_of(store: SliceStore, monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The files of stacks whose index is read from now on."""
    found: set[int] = set()
    whole = SliceStore.stack_index

    def index(self, files=None):
        found.update(range(len(self.stack_files())) if files is None else files)
        return whole(self, files)

    monkeypatch.setattr(SliceStore, "stack_index", index)
    return found


def test_pictures_of_a_large_store_read_the_index_of_what_they_show_and_no_more(many, tmp_path, monkeypatch):
    read = read_of(many, monkeypatch)
    shown = []
    monkeypatch.setattr(ingest_results, "mosaic", lambda slices, axis: shown.extend(slices) or b"")
    stacks, _ = pictures_of(many, folder=Place(str(tmp_path / "pictures")))
    assert "8 of 30 sets of stacks" in stacks.caption
    assert len(shown) == 8
    ends = [many.stack_index([file])["subject"][0].as_py() for file in (0, 29)]
    assert [each.title for each in (shown[0], shown[-1])] == [f"made {subject}" for subject in ends]
    assert {0, 29} <= read
    if len(many.stack_files_of_scans()[0]) == 1:
        assert len(read) <= 8 + ingest_results.SHOWN_PAIRS < 30


def test_the_pairs_shown_are_those_that_moved_furthest_and_never_the_reference(many, tmp_path, monkeypatch):
    scans = many.scans()
    shifts = np.random.default_rng(0).permutation(scans.num_rows).astype(np.float32)
    moved = scans.set_column(scans.column_names.index("shift_mm"), "shift_mm", pa.array(shifts))
    monkeypatch.setattr(SliceStore, "scans", lambda self, columns=None: moved.select(columns or moved.column_names))
    pairs: list[Pair] = []
    monkeypatch.setattr(ingest_results, "overlays", lambda found, axis: pairs.extend(found) or b"")
    pictures_of(many, folder=Place(str(tmp_path / "pictures")))

    rows = moved.to_pylist()
    reference = {row["subject"]: "T2w" if int(row["subject"][1:]) % 3 == 0 else "T1w" for row in rows}
    others = [row for row in rows if row["modality"] != reference[row["subject"]]]
    expected = sorted(others, key=lambda row: -row["shift_mm"])[: ingest_results.SHOWN_PAIRS]
    assert [pair.title for pair in pairs] == [
        f"made {row['subject']}: {row['modality']} on {reference[row['subject']]}, {row['shift_mm']:.1f} mm"
        for row in expected
    ]


def test_where_no_session_has_two_scans_there_are_no_pairs(tmp_path):
    sessions = [MadeSession("made", f"s{number}", present=(True, False, False)) for number in range(3)]
    store = SliceStore.open(make_store(tmp_path / "store", sessions=sessions))
    assert [block.title for block in pictures_of(store, folder=Place(str(tmp_path / "pictures")))] == ["Stacks"]


def test_each_scan_is_found_in_the_files_of_its_shard(many):
    for subject, files in zip(many.scans()["subject"].to_pylist(), many.stack_files_of_scans(), strict=True):
        assert subject in many.stack_index(files)["subject"].to_pylist()

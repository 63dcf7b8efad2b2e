import numpy as np
import pyarrow.parquet as pq
import pytest

from bfp.cohorts.sessions import Key
from bfp.errors import Interrupted
from bfp.features.describe import Histograms
from bfp.features.extraction import describe_chunk, plan_chunks, vectors_of
from bfp.features.kept import Extraction
from bfp.features.sessions import pool_sessions
from bfp.models.pooling import Pooling
from bfp.storage import place
from bfp.store.reader import SliceStore, pixels_of
from bfp.store.where import select
from tests.store.makers import MadeSession, make_store

ALL = ("T1w", "T2w", "FLAIR")
SESSIONS = [MadeSession("made", f"s{n}", stacks=18 + n, present=(True, n != 1, n != 2)) for n in range(4)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return SliceStore.open(make_store(tmp_path_factory.mktemp("store"), sessions=SESSIONS))


def chunks(store, index=None, *, identity="histograms", shown=ALL, size=30):
    return plan_chunks(
        store, store.stack_index() if index is None else index, identity=identity, shown=shown, stacks_per_chunk=size
    )


def described(store, shown):
    tables = [describe_chunk(store, chunk, Histograms(), shown=shown, batch_size=7) for chunk in chunks(store)]
    return np.concatenate([vectors_of(table) for table in tables])


def extract(store, folder, *, stopping=lambda: False, heard=None):
    with Extraction(workers=2, gpus=0, batch_size=16) as extraction:
        return extraction.features(
            store,
            store.stack_index(),
            Histograms(),
            shown=ALL,
            kept=place(str(folder)),
            on_done=[].append if heard is None else heard.append,
            stopping=stopping,
        )


def test_every_stack_is_described_once_in_the_order_of_the_store(store):
    index = store.stack_index()
    planned = chunks(store)
    assert len(planned) > 1
    assert sum(chunk.stacks for chunk in planned) == index.num_rows
    pixels = np.concatenate(
        [
            pixels_of(store.read_row_group(file, group))
            for file in store.stack_files()
            for group in range(len(file.row_groups))
        ]
    )
    expected = np.stack([np.bincount(plane[plane > 0] // 16, minlength=16) for plane in pixels[:, 0]])
    found = described(store, ALL)[:, :16]
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-5)


def test_rows_that_are_not_selected_are_not_described(store):
    index = select(store.stack_index(), subjects=["s2", "s3"])
    index = index.filter(np.arange(index.num_rows) % 2 == 0)
    found = [describe_chunk(store, chunk, Histograms(), shown=ALL, batch_size=7) for chunk in chunks(store, index)]
    assert [height for table in found for height in table["height"].to_pylist()] == index["height"].to_pylist()


def test_a_modality_that_is_not_shown_is_as_if_absent(store):
    found = described(store, ("T1w",)).reshape(-1, 3, 17)
    assert found[:, 0].any()
    assert not found[:, 1:].any()
    np.testing.assert_array_equal(found[:, 0], described(store, ALL).reshape(-1, 3, 17)[:, 0])


def test_a_chunk_is_named_by_all_that_its_vectors_follow_from(store):
    plans = [
        chunks(store),
        chunks(store, identity="another encoder"),
        chunks(store, shown=("T1w",)),
        chunks(store, select(store.stack_index(), exclude_subjects=["s0"])),
    ]
    names = [{chunk.name for chunk in plan} for plan in plans]
    assert [chunk.name for chunk in chunks(store)] == [chunk.name for chunk in plans[0]]
    assert not any(names[0] & other for other in names[1:3])
    assert names[0] != names[3]


def test_files_that_lack_a_later_column_and_new_ones_are_described_together(store, tmp_path):
    sessions = [MadeSession("made", f"s{n}", stacks=16) for n in range(2)]
    mixed = SliceStore.open(make_store(tmp_path / "s", sessions=sessions, sessions_per_shard=1))
    before = described(mixed, ALL)
    file = mixed.stack_files()[0].place.path
    pq.write_table(pq.read_table(file).drop_columns("volume"), file)
    mixed = SliceStore.open(mixed.place)
    assert mixed.stack_index()["volume"].null_count == 32
    np.testing.assert_array_equal(described(mixed, ALL), before)


@pytest.mark.usefixtures("ray_session")
def test_features_are_computed_once_and_then_read(store, tmp_path):
    first = extract(store, tmp_path, heard=(heard := []))
    assert heard[0] == 0
    assert heard[-1] == store.stack_index().num_rows
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert extract(store, tmp_path, heard=(again := [])).equals(first)
    assert again == [store.stack_index().num_rows]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written


@pytest.mark.usefixtures("ray_session")
def test_a_stopped_extraction_says_what_stands(store, tmp_path):
    with pytest.raises(Interrupted, match="stopped after 0 of 78 stacks; submit it again"):
        extract(store, tmp_path, stopping=lambda: True)


def test_a_session_is_pooled_from_its_own_stacks(store):
    table = describe_chunk(store, chunks(store, size=1000)[0], Histograms(), shown=ALL, batch_size=16)
    keys = [Key("made", "s3", ""), Key("made", "s0", ""), Key("made", "nobody", "")]
    pooled = pool_sessions(table, keys, Pooling(bands=1, parts=("",)))
    subject = np.array(table["subject"].to_pylist())
    np.testing.assert_allclose(pooled[0], vectors_of(table)[subject == "s3"].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(pooled[1], vectors_of(table)[subject == "s0"].mean(axis=0), rtol=1e-5)
    assert np.isnan(pooled[2]).all()

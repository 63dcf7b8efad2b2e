import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
import torch

from bfp.cohorts.sessions import Key
from bfp.features.doubles import doubles
from bfp.features.token_maps import Labels, TokenMaps, map_session, open_maps, plan_sessions, planes_of, seconds_of
from bfp.features.tokens import layered_patches, tokens
from bfp.models.encoder import load
from bfp.storage import place
from bfp.store.reader import SliceStore, labels_of, pixels_of
from tests.store.makers import make_store

LABELS = Labels("parts", {"one": [1], "rest": [2, 3]})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return SliceStore.open(make_store(tmp_path_factory.mktemp("store"), sessions=4, segmentation="parts"))


@pytest.fixture(scope="module")
def encoder():
    shape = {"width": 16, "depth": 3, "heads": 2}
    return load(origin="random", name="vit_small_patch14_dinov2", uri=None, size_px=28, **shape)


S02 = Key("made", "s02", "")


def session_file(store, encoder, folder, *, key=S02, shown=("T1w", "T2w", "FLAIR")):
    maps = TokenMaps(encoder, (0, 2))
    planned = plan_sessions(store, store.stack_index(), LABELS, identity=maps.identity, shown=shown)
    (own,) = (session for session in planned if session.key == key)
    masks = store.masks_beside(own.file, LABELS.segmentation)
    file = place(str(folder)) / own.name
    file.write(map_session(store, own, masks, maps, LABELS, shown=shown, batch_size=5))
    return file


def test_a_session_is_kept_as_a_decoder_takes_it(store, encoder, tmp_path):
    found = open_maps(session_file(store, encoder, tmp_path))
    index = store.stack_index()
    own = index.filter(pa.array([subject == "s02" for subject in index["subject"].to_pylist()]))
    np.testing.assert_array_equal(found.slices, own["slice"])
    np.testing.assert_array_equal(found.heights, own["height"])
    assert len(found) == 14
    file = store.stack_files()[own["file"][0].as_py()]
    first = pixels_of(store.read_row_group(file, own["row_group"][0].as_py()))
    np.testing.assert_array_equal(found.pixels[: len(first)], first)
    expected = layered_patches(encoder, torch.from_numpy(first.copy()), (0, 2)).half().numpy()
    assert found.tokens.shape == (14, 4, 2 * 16)
    np.testing.assert_allclose(found.tokens[: len(first)], expected, atol=2e-3)


def test_what_sessions_took_is_read_from_the_heads_of_their_files(store, encoder, tmp_path):
    file = session_file(store, encoder, tmp_path)
    took = seconds_of([file])
    assert 0 < took < 60
    assert seconds_of([file, file]) == 2 * took
    older = place(str(tmp_path / "older.safetensors"))
    older.write(safetensors.numpy.save({"slices": np.arange(3)}))
    assert seconds_of([file, older]) == took


def test_classes_are_those_of_the_label_values_slice_by_slice(store, encoder, tmp_path):
    found = open_maps(session_file(store, encoder, tmp_path))
    masks = store.masks("parts")
    own = masks.filter(pa.array([subject == "s02" for subject in masks["subject"].to_pylist()]))
    labels = dict(zip(own["slice"].to_pylist(), labels_of(own), strict=True))
    for at, classes in zip(found.slices, found.classes, strict=True):
        np.testing.assert_array_equal(classes, np.array([0, 1, 2, 2])[labels[at]])


def test_what_is_not_shown_is_black(store, encoder, tmp_path):
    found = open_maps(session_file(store, encoder, tmp_path, shown=("T2w",)))
    assert found.pixels[:, 1].any()
    assert not found.pixels[:, [0, 2]].any()


def test_a_file_is_named_by_all_that_it_follows_from(store, encoder):
    def names(*, shown=("T1w",), labels=LABELS, blocks=(2,)):
        identity = TokenMaps(encoder, blocks).identity
        return {s.name for s in plan_sessions(store, store.stack_index(), labels, identity=identity, shown=shown)}

    assert len(names()) == 4
    assert names() == names()
    for other in (names(shown=("T2w",)), names(labels=Labels("parts", {"one": [1]})), names(blocks=(1,))):
        assert not other & names()


def test_the_last_block_gives_the_encoders_own_tokens(encoder):
    pixels = np.random.default_rng(0).integers(1, 256, (2, 3, 28, 28), dtype=np.uint8)
    torch.testing.assert_close(layered_patches(encoder, pixels, (2,)), tokens(encoder, pixels).patches)


def test_a_subject_under_two_names_is_found_by_what_decoders_read(encoder, tmp_path):
    drawn = np.random.default_rng(0).integers(1, 256, (40, 3, 28, 28), dtype=np.uint8)

    def again(subject, pixels):
        return drawn[: len(pixels)].copy() if subject in ("s01", "s02") else pixels

    doubled = SliceStore.open(make_store(tmp_path / "store", sessions=4, segmentation="parts", paint=again))
    keys = [Key("made", f"s{number:02}", "") for number in range(4)]
    files = [session_file(doubled, encoder, tmp_path, key=key) for key in keys]
    (found,) = doubles(planes_of(keys, files))
    assert (found.one, found.other) == ("made/s01", "made/s02")

"""The probe: every stack with its own labels, judged on subjects that it did not learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bfp.batches.held_out import held_out
from bfp.errors import InputError
from bfp.models.encoder import load
from bfp.pretraining import probe as module
from bfp.pretraining.labelled import labelled_stacks, read_stacks
from bfp.pretraining.probe import SORTED_PIXELS, probe
from bfp.store.reader import SliceStore, labels_of, pixels_of
from tests.store.makers import MadeSession, make_store

SESSIONS = [
    MadeSession(
        "a" if number % 2 else "b", f"s{number:02d}", stacks=9 + number % 4, present=(number % 3 != 0, True, True)
    )
    for number in range(24)
]
SHARE = 0.3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    folder: Path = tmp_path_factory.mktemp("probe") / "store"
    classes = {"one": [1], "two": [2], "three": [3]}
    return SliceStore.open(make_store(folder, sessions=SESSIONS, segmentation="tissue", classes=classes))


def encoder(seed: int):
    return load(
        origin="random",
        name="vit_small_patch14_dinov2",
        uri=None,
        size_px=28,
        width=32,
        depth=2,
        heads=2,
        layer_scale=1.0,
        seed=seed,
    )


def judge(store: SliceStore, encoders, **changes):
    arguments = {"segmentation": "tissue", "share": SHARE, "device": torch.device("cpu"), "seed": 0, **changes}
    return probe(store, store.stack_index(), encoders, **arguments)


def test_labels_that_no_pixel_tells_of_are_told_by_no_reading(store: SliceStore) -> None:
    found = judge(store, {"pretrained": encoder(0), "untrained": encoder(1)})
    assert list(found.r2) == ["pretrained", "untrained", SORTED_PIXELS]
    assert list(found.gain) == ["untrained", SORTED_PIXELS]
    assert all(interval.value < 0.05 for interval in found.r2.values())
    held = [each for each in SESSIONS if held_out(each.cohort, each.subject, share=SHARE)]
    assert found.subjects == (len(SESSIONS) - len(held), len(held))
    assert sorted(found.tissues) == ["one", "three", "two"]
    assert found.images.shape[1:] == (28, 28)
    assert found.patch_tokens.shape[1:] == (4, 32)
    assert 0 < len(found.images) == len(found.patch_tokens) <= len(held)


def test_an_encoder_is_no_better_than_itself(store: SliceStore) -> None:
    found = judge(store, {"pretrained": encoder(0), "again": encoder(0)})
    assert tuple(found.gain["again"]) == (0.0, 0.0, 0.0)


def test_each_stack_meets_its_own_pixels_and_labels(store: SliceStore) -> None:
    masks = store.masks("tissue")
    expected = {
        (c, s, z): labels
        for c, s, z, labels in zip(
            *(masks[name].to_pylist() for name in ("cohort", "subject", "slice")), labels_of(masks), strict=True
        )
    }
    pixels = {}
    for file in store.stack_files():
        for group in range(len(file.row_groups)):
            table = store.read_row_group(file, group)
            keys = zip(*(table[name].to_pylist() for name in ("cohort", "subject", "slice")), strict=True)
            pixels |= dict(zip(keys, pixels_of(table), strict=True))
    shuffled = store.stack_index().take(np.random.default_rng(0).permutation(store.totals.stacks))
    seen = 0
    found = labelled_stacks(shuffled, masks)
    table = found.stacks.append_column("labels", masks["labels"].take(found.masks))
    for stacks in read_stacks(store, table):
        keys = zip(*(stacks.rows[name].to_pylist() for name in ("cohort", "subject", "slice")), strict=True)
        for key, own, labels in zip(keys, stacks.pixels, labels_of(stacks.rows.combine_chunks()), strict=True):
            assert np.array_equal(labels, expected[key])
            assert np.array_equal(own, pixels[key])
            seen += 1
    assert seen == len(expected) == store.totals.stacks


def test_a_large_store_is_read_in_part_over_all_subjects(store: SliceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PATCHES", 4 * 120)
    found = judge(store, {"pretrained": encoder(0)})
    assert sum(found.patches) <= 4 * 120
    assert sum(found.subjects) == len(SESSIONS)


def test_the_index_of_masks_finds_the_stacks_that_the_masks_do(store: SliceStore) -> None:
    index = store.stack_index()
    light, whole = (labelled_stacks(index, masks) for masks in (store.mask_index("tissue"), store.masks("tissue")))
    assert light.stacks.equals(whole.stacks)
    assert np.array_equal(light.masks, whole.masks)


def test_stacks_without_labels_are_refused_in_words(store: SliceStore) -> None:
    with pytest.raises(InputError, match="0 subjects to learn from and 0 held out have labels"):
        probe(
            store,
            store.stack_index().slice(0, 0),
            {"pretrained": encoder(0)},
            segmentation="tissue",
            share=SHARE,
            device=torch.device("cpu"),
            seed=0,
        )


def test_a_segmentation_that_is_not_there_names_those_that_are(store: SliceStore) -> None:
    with pytest.raises(InputError, match="has no segmentation tissues; it has tissue"):
        judge(store, {"pretrained": encoder(0)}, segmentation="tissues")

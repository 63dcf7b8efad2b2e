"""Folds of a segmentation without Ray: what is drawn, learned, judged and kept."""

import numpy as np
import pytest

from bfp.cohorts.derivatives import Masks
from bfp.cohorts.sessions import Key
from bfp.drivers.segmentation_material import labels_seen
from bfp.features.token_maps import Labels, SessionMaps
from bfp.finetuning.segmentation import (
    ALL,
    DrawnOn,
    FoldResult,
    Recipe,
    Score,
    Segmented,
    Slices,
    atlas_maps,
    atlas_of,
    choose_threshold,
    decoder_maps,
    dump_fold,
    judge,
    load_fold,
    run_fold,
    threshold_maps,
    train_decoder,
)
from bfp.finetuning.segmentation_cells import dump_cell_fold, load_cell_fold, run_cell_fold
from bfp.imaging.grid import Grid
from bfp.imaging.nifti import encode
from bfp.metrics.segmentation import Overlap
from bfp.storage import place
from tests.imaging.makers import grid

SIZE_PX, PATCHES, FEATURES = 28, 2, 12
RECIPE = Recipe("last", 32, steps=60, batch_size=8, learning_rate=0.01, weight_decay=0.01, seed=0)


def session(seed, *, count=12, bright=200):
    """Noise with a bright square somewhere in the middle slices of the second channel, which is the class."""
    random = np.random.default_rng(seed)
    pixels = random.integers(20, 120, (count, 3, SIZE_PX, SIZE_PX), dtype=np.uint8)
    classes = np.zeros((count, SIZE_PX, SIZE_PX), np.uint8)
    row, column = random.integers(2, 16, 2)
    for at in range(4, 8):
        classes[at, row : row + 9, column : column + 9] = 1
        pixels[at, 1][classes[at] == 1] = bright + random.integers(0, 40, 81)
    tokens = random.normal(size=(count, PATCHES**2, FEATURES)).astype(np.float16)
    heights = np.linspace(0, 1, count, dtype=np.float32)
    return SessionMaps(tokens, pixels, classes, heights, np.arange(3, 3 + count, dtype=np.int32))


def test_a_decoder_finds_what_the_pixels_show_in_sessions_it_has_not_seen():
    decoder, losses = train_decoder([session(n) for n in range(4)], RECIPE, class_count=1, device="cpu")
    tested = session(9)
    maps = decoder_maps(decoder, tested, batch_size=5, device="cpu")
    found = maps.argmax(axis=1)
    both = (found & tested.classes).sum()
    assert 2 * both / (found.sum() + tested.classes.sum()) > 0.8
    assert losses[-1] < losses[0] / 2
    np.testing.assert_allclose(maps.sum(axis=1), 1, atol=2e-3)


def test_training_is_the_same_for_the_same_seed_and_not_for_another():
    short = [session(n) for n in range(2)]

    def trained(seed):
        recipe = Recipe("last", 32, steps=3, batch_size=4, learning_rate=0.01, weight_decay=0.01, seed=seed)
        return train_decoder(short, recipe, class_count=1, device="cpu")[1]

    assert trained(0) == trained(0)
    assert trained(0) != trained(1)


def test_half_of_a_batch_holds_a_class_however_rare_it_is():
    rare = session(0, count=12)
    rare.classes[:] = 0
    rare.classes[6, 0, 0] = 2
    common = session(1)
    slices = Slices([rare, common], class_count=2)
    batch = slices.batch(400, np.random.default_rng(0), device="cpu")
    with_class = [int((batch.classes == k).flatten(1).any(dim=1).sum()) for k in (1, 2)]
    assert with_class[0] == pytest.approx(100 + 200 * 4 / 24, abs=35)
    assert with_class[1] == pytest.approx(100 + 200 / 24, abs=30)


def test_the_atlas_is_the_mean_of_training_at_the_same_height_and_sees_no_image():
    one, other = session(0), session(1)
    atlas = atlas_of([one, other], class_count=1)
    maps = atlas_maps(atlas, session(5))
    np.testing.assert_allclose(maps[:, 1], (one.classes + other.classes) / 2)
    np.testing.assert_allclose(maps.sum(axis=1), 1)


def test_the_threshold_is_found_in_its_channel_and_side():
    chosen = choose_threshold([session(n) for n in range(3)])
    assert (chosen.channel, chosen.highest) == (1, 255)
    assert 120 <= chosen.lowest <= 200
    tested = session(9)
    np.testing.assert_array_equal(threshold_maps(chosen, tested)[:, 1], tested.classes)
    dark = choose_threshold([session(n, bright=1) for n in range(3)])
    assert (dark.channel, dark.lowest) == (1, 1)


def test_black_is_never_within_and_a_mask_of_all_that_is_not_black_is_found_whole():
    brains = [session(n) for n in range(3)]
    for own in brains:
        own.pixels[:, :, :8] = 0
        own.classes[:] = own.pixels[:, 0] > 0
    chosen = choose_threshold(brains)
    assert (chosen.lowest, chosen.highest, chosen.dice) == (1, 255, 1.0)
    np.testing.assert_array_equal(threshold_maps(chosen, brains[0])[:, 1], brains[0].classes)


def test_sessions_without_the_class_tell_no_threshold_and_where_there_are_no_others_nothing_is_within(recwarn):
    empty = session(4)
    empty.classes[:] = 0
    chosen = choose_threshold([empty, empty])
    assert not threshold_maps(chosen, session(9))[:, 1].any()
    assert chosen.text == "nothing, since nothing was drawn"
    drawn = [session(n) for n in range(3)]
    assert choose_threshold([*drawn, empty]) == choose_threshold(drawn)
    assert list(recwarn) == []


def a_study(folder, sessions, *, change=None):
    """Sessions whose working grid is the file's own, so that the stacks are the file."""
    drawn = []
    for number, own in enumerate(sessions):
        labels = np.zeros((SIZE_PX, SIZE_PX, 20), np.uint8)
        labels[:, :, own.slices] = own.classes[:, ::-1].T
        at = grid(axes="RAS", shape=labels.shape, spacing_mm=(2.0, 2.0, 3.0))
        file = place(str(folder / f"{number}_mask.nii.gz"))
        file.write(encode(labels, grid=at))
        entry = file.entry()
        working = Grid(labels.shape, at.ras_from_voxel)
        size_bytes = entry.size + (number == change)
        drawn.append(DrawnOn(file, size_bytes, entry.etag, f"/scans/{number}.nii.gz", working, np.eye(4)))
    return Segmented(
        sessions=[Key("made", f"{number:02}", "") for number in range(len(sessions))],
        drawn_on=drawn,
        folds=np.arange(len(sessions)) % 2,
        labels=Labels("square", {"square": [1]}),
        size_px=SIZE_PX,
        spacing_mm=(2.0, 2.0, 3.0),
    )


def test_a_session_is_judged_in_its_file_and_the_truth_is_without_fault(tmp_path):
    own = session(0)
    study = a_study(tmp_path, [own])
    perfect = np.stack([1 - own.classes, own.classes], axis=1).astype(np.float16)
    score, mask = judge(study, 0, own, perfect)
    assert (score.space, score.overlaps[0].dice, score.overlaps[0].hd95_mm) == ("native", 1.0, 0.0)
    assert mask.labels.sum() == own.classes.sum()
    assert score.overlaps[0].drawn_ml == pytest.approx(own.classes.sum() * 12 / 1000)


def test_where_the_file_is_another_by_now_the_stacks_are_judged_with_their_own_spacing(tmp_path):
    own = session(0)
    study = a_study(tmp_path, [own], change=0)
    shifted = np.roll(own.classes, 1, axis=0)  # by a slice
    score, mask = judge(study, 0, own, np.stack([1 - shifted, shifted], axis=1).astype(np.float16))
    assert mask is None
    assert (score.space, score.why) == ("working", "the file of its labels has changed since the store was made")
    assert score.overlaps[0].hd95_mm == pytest.approx(3.0)
    assert score.overlaps[0].dice == pytest.approx(3 / 4)


def test_what_was_seen_of_a_file_of_labels_is_another_where_it_is_another_or_gone(tmp_path):
    study = a_study(tmp_path, [session(0), session(1)])
    before = labels_seen(study)
    assert labels_seen(study) == before
    file = study.drawn_on[1].labels
    file.write(b"drawn again")
    changed = labels_seen(study)
    file.delete()
    gone = labels_seen(study)
    assert before[0] == changed[0] == gone[0]
    assert len({str(each[1]) for each in (before, changed, gone)}) == 3


def kept(folder, own, number):
    import safetensors.numpy

    file = place(str(folder / f"{number}.safetensors"))
    names = ("tokens", "pixels", "classes", "heights", "slices")
    file.write(safetensors.numpy.save({name: getattr(own, name) for name in names}))
    return file


def test_a_fold_learns_from_nobody_whom_it_tests_and_writes_their_masks(tmp_path):
    sessions = [session(n) for n in range(4)]
    study = a_study(tmp_path, sessions)
    files = [kept(tmp_path, own, number) for number, own in enumerate(sessions)]
    masks = Masks(place(str(tmp_path / "derivatives")), "square", ("square",), "made")
    short = Recipe("last", 32, steps=2, batch_size=4, learning_rate=0.01, weight_decay=0.01, seed=0)
    result = run_fold(study, "encoder", files, 0, short, "cpu", masks)
    assert [score.session for score in result.scores] == [0, 2]
    assert len(list((tmp_path / "derivatives").rglob("*_dseg.nii.gz"))) == 2

    sessions[0].pixels[:], sessions[0].classes[:] = 0, 1  # who is tested changes nothing of what is learned
    files[0] = kept(tmp_path, sessions[0], "other")
    assert run_fold(study, "encoder", files, 0, short, "cpu", masks).decoder == result.decoder
    assert run_fold(study, "encoder", files, 1, short, "cpu", masks).decoder != result.decoder
    everybody = run_fold(study, "encoder", files, ALL, short, "cpu", masks)
    assert everybody.scores == []
    assert everybody.decoder


def test_a_fold_of_a_cell_says_why_and_of_whom_it_was_not_compared_in_native_space(tmp_path):
    sessions = [session(n) for n in range(4)]
    study = a_study(tmp_path, sessions, change=0)
    files = [kept(tmp_path, own, number) for number, own in enumerate(sessions)]
    outside = {"elsewhere": (study, files)}
    everybody = study.folds != 0
    fold = run_cell_fold(study, "threshold", 0, everybody, files, {"less": files}, outside, RECIPE, "cpu")
    changed = "the file of its labels has changed since the store was made"
    assert fold.working == {"made 00": changed, "elsewhere made 00": changed}
    assert fold.said.shape == (2, 3)
    assert fold.outside["elsewhere"].shape == (4, 3)
    back = load_cell_fold(dump_cell_fold(fold))
    assert (back.working, back.subjects, back.sessions) == (fold.working, 2, 2)


def test_a_kept_fold_comes_back_as_it_was():
    found = [Overlap(0.5, 3.25, 1.5, 2.0), Overlap(None, None, 0.0, 0.0)]
    fold = FoldResult(b"weights", [Score(3, "working", "gone", found)], [1.5, 0.5], "channel 1")
    back = load_fold(dump_fold(fold))
    assert (back.decoder, back.losses, back.said) == (fold.decoder, fold.losses, fold.said)
    assert back.scores == fold.scores

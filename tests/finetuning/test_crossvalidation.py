import numpy as np
import pytest

from bfp.errors import Interrupted
from bfp.finetuning.crossvalidation import Study, cross_validate, gather, permuted, run_fold
from bfp.finetuning.logistic import Logistic
from bfp.metrics.auroc import weighted_auroc
from bfp.metrics.over_folds import over_folds
from bfp.storage import place

pytestmark = pytest.mark.usefixtures("ray_session")


def study(seed=0):
    whose = np.repeat(np.arange(40), 2)
    return Study(
        learner=Logistic(2),
        targets=whose % 2,
        persons=[f"a/{n}" for n in whose],
        folds=(whose // 2) % 5,
        strengths=[0.001, 0.1],
        seed=seed,
    )


def vectors(signal, length=30):
    random = np.random.default_rng(0)
    found = random.normal(size=(80, length))
    found[:, 0] += signal * (study().targets - 0.5)
    return found


def judge(approaches, folder, own=None, stopping=lambda: False, heard=None, by_lot=()):
    heard = [] if heard is None else heard
    return cross_validate(
        own or study(),
        approaches,
        by_lot=by_lot,
        kept=place(str(folder)),
        on_done=heard.append,
        stopping=stopping,
        at_once=2,
    )


def test_every_session_is_predicted_by_a_head_that_has_not_seen_its_subject(tmp_path):
    judged = judge({"encoder": vectors(4)}, tmp_path)["encoder"]
    for fold in range(5):
        alone = run_fold(study(), vectors(4), fold)
        # not to the bit: a worker sums with another number of threads than this process
        np.testing.assert_allclose(judged.said[study().folds == fold], alone.said, rtol=1e-3)
        np.testing.assert_allclose(judged.folds[fold].head.weights, alone.head.weights, atol=1e-4)
    right = judged.said.argmax(axis=1) == study().targets
    assert right.mean() > 0.8


def test_what_the_tested_subjects_look_like_changes_nothing_in_their_heads():
    altered = vectors(4)
    altered[study().folds == 2] += 1000
    assert (run_fold(study(), altered, 2).head.weights == run_fold(study(), vectors(4), 2).head.weights).all()


def test_a_stopped_cross_validation_goes_on_with_the_folds_that_are_left(tmp_path):
    heard = []
    with pytest.raises(Interrupted, match="of 10 folds; submit it again"):
        judge({"a": vectors(4), "b": vectors(0)}, tmp_path, stopping=lambda: len(heard) > 2, heard=heard)
    kept = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(kept) >= 2
    judged = judge({"a": vectors(4), "b": vectors(0)}, tmp_path, heard=(again := []))
    assert again[0] == len(kept)
    assert again[-1] == 10
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in kept} == kept
    np.testing.assert_array_equal(judged["a"].said, judge({"a": vectors(4)}, tmp_path / "new")["a"].said)


def test_a_kept_fold_of_other_inputs_is_not_used(tmp_path):
    judge({"a": vectors(4)}, tmp_path)
    heard = []
    judge({"a": vectors(3)}, tmp_path, heard=heard)
    assert heard[0] == 0
    judge({"a": vectors(4)}, tmp_path, own=study(seed=1), heard=(other := []))
    assert other[0] == 0


def test_lots_are_drawn_by_subjects_within_folds_so_that_only_chance_is_left(tmp_path):
    own = study()
    drawn = permuted(own).targets
    assert (drawn != own.targets).any()
    assert (drawn[::2] == drawn[1::2]).all()  # both sessions of a subject
    for fold in range(5):
        assert np.bincount(drawn[own.folds == fold]).tolist() == np.bincount(own.targets[own.folds == fold]).tolist()
    assert (permuted(own).targets == drawn).all()
    assert (permuted(study(seed=1)).targets != drawn).any()
    judged = judge({"encoder": vectors(6), "lots": vectors(6)}, tmp_path, by_lot=["lots"])
    assert (judged["lots"].targets == drawn).all()
    assert (judged["encoder"].targets == own.targets).all()
    right = {name: (each.said.argmax(axis=1) == each.targets).mean() for name, each in judged.items()}
    assert right["encoder"] > 0.9
    assert 0.3 < right["lots"] < 0.7


def test_no_fold_loses_a_class_by_lots_though_somebody_fell_ill_between_two_visits():
    """The only ill sessions are second visits, and most people have one visit."""
    whose = np.array([*range(16), 16, 16, 17, 17])
    classes = np.array([0] * 16 + [0, 1, 0, 1])
    for seed in range(50):
        own = Study(Logistic(2), classes, [f"a/{n}" for n in whose], whose % 2, [0.1], seed)
        drawn = permuted(own).targets
        for fold in (0, 1):
            assert drawn[own.folds == fold].sum() == 1


def test_lots_are_told_above_chance_as_seldom_as_intervals_allow():
    random, above = np.random.default_rng(0), 0
    for seed in range(40):
        own = study(seed=seed)
        features = random.normal(size=(80, 10)) + 2.0 * (own.targets[:, None] - 0.5) * (np.arange(10) < 3)
        lots = permuted(own)
        said = gather([run_fold(lots, features, fold) for fold in range(5)], lots)
        mean = over_folds(
            weighted_auroc, said.targets, said.said, folds=own.folds, subjects=own.persons, seed=seed
        ).mean
        above += mean.low > 0.5
    assert above <= 4  # one in forty is expected


def test_a_fold_of_true_labels_is_not_taken_for_one_of_lots(tmp_path):
    judge({"a": vectors(4)}, tmp_path)
    judge({"a": vectors(4)}, tmp_path, by_lot=["a"], heard=(heard := []))
    assert heard[0] == 0

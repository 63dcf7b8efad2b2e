import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from bfp.metrics.auroc import auroc, mean_roc_curve, mean_roc_intervals, roc_curve, weighted_auroc
from bfp.metrics.over_folds import difference, over_folds


def as_probabilities(scores: np.ndarray) -> np.ndarray:
    return np.column_stack([1 - scores, scores])


def a_study(random: np.random.Generator, *, subjects: int, true_auroc: float, folds: int):
    """Sessions (one to three a subject, correlated) with scores whose AUROC is known."""
    distance = np.sqrt(2) * norm.ppf(true_auroc)
    whose = np.repeat(np.arange(subjects), random.integers(1, 4, subjects))
    classes = whose % 2
    scores = distance * classes + np.sqrt(0.7) * random.normal(size=subjects)[whose]
    scores = scores + np.sqrt(0.3) * random.normal(size=len(whose))
    return classes, as_probabilities(scores), (whose // 2) % folds, [f"s{n}" for n in whose]


@pytest.mark.parametrize("levels", [3, 1000], ids=["many ties", "few ties"])
def test_the_auroc_of_two_classes_is_that_of_scikit_learn(levels):
    random = np.random.default_rng(0)
    for _ in range(20):
        classes = np.r_[0, 1, random.integers(0, 2, 30)]
        scores = random.integers(0, levels, 32) / levels
        assert auroc(classes, as_probabilities(scores)) == pytest.approx(roc_auc_score(classes, scores), abs=1e-12)


def test_the_auroc_of_several_classes_is_one_vs_rest_macro():
    random = np.random.default_rng(1)
    classes = np.r_[0, 1, 2, random.integers(0, 3, 40)]
    probabilities = random.dirichlet(np.ones(3), 43)
    expected = roc_auc_score(classes, probabilities, multi_class="ovr", average="macro")
    assert auroc(classes, probabilities) == pytest.approx(expected, abs=1e-12)


def test_a_session_that_counts_twice_is_the_same_as_two_sessions():
    random = np.random.default_rng(2)
    classes, scores, weights = (
        random.integers(0, 2, 40),
        random.normal(size=40).round(1),
        random.integers(0, 4, (1, 40)),
    )
    expected = roc_auc_score(np.repeat(classes, weights[0]), np.repeat(scores, weights[0]))
    assert weighted_auroc(classes, as_probabilities(scores), weights)[0] == pytest.approx(expected, abs=1e-12)


def test_an_undefined_auroc_is_said_to_be_undefined():
    assert auroc(np.ones(5, int), as_probabilities(np.arange(5.0))) is None
    three = np.random.default_rng(3).dirichlet(np.ones(3), 6)
    assert auroc(np.array([0, 0, 0, 1, 1, 1]), three) is None
    nowhere = over_folds(
        weighted_auroc,
        np.ones(4, int),
        as_probabilities(np.arange(4.0)),
        folds=np.array([0, 0, 1, 1]),
        subjects=list("abcd"),
        seed=0,
    )
    assert nowhere.mean == (None, None, None)
    assert nowhere.folds == [None, None]


def test_a_fold_without_one_class_is_left_out_of_the_mean():
    classes = np.array([0, 1, 0, 1, 1, 1])
    found = over_folds(
        weighted_auroc,
        classes,
        as_probabilities(np.array([0.1, 0.9, 0.8, 0.2, 0.5, 0.5])),
        folds=np.array([0, 0, 1, 1, 2, 2]),
        subjects=list("abcdef"),
        seed=0,
    )
    assert found.folds == [1.0, 0.0, None]
    assert found.mean.value == 0.5


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(4)
    studies, covered = 200, 0
    for _ in range(studies):
        classes, probabilities, folds, subjects = a_study(random, subjects=60, true_auroc=0.85, folds=5)
        mean = over_folds(
            weighted_auroc, classes, probabilities, folds=folds, subjects=subjects, seed=0, replicates=500
        ).mean
        covered += mean.low <= 0.85 <= mean.high
    # 95 % of 200 has a standard error of 1.5 %
    assert 0.91 <= covered / studies <= 0.985


def test_sessions_of_one_subject_are_no_independent_witnesses():
    random = np.random.default_rng(5)
    classes, probabilities, folds, subjects = a_study(random, subjects=40, true_auroc=0.75, folds=2)
    once = over_folds(weighted_auroc, classes, probabilities, folds=folds, subjects=subjects, seed=0).mean
    repeated = over_folds(
        weighted_auroc,
        np.tile(classes, 4),
        np.tile(probabilities, (4, 1)),
        folds=np.tile(folds, 4),
        subjects=subjects * 4,
        seed=0,
    ).mean
    assert repeated.high - repeated.low == pytest.approx(once.high - once.low, rel=1e-9)


def test_the_difference_of_two_models_is_judged_on_the_same_draws():
    random = np.random.default_rng(6)
    classes, probabilities, folds, subjects = a_study(random, subjects=60, true_auroc=0.8, folds=5)
    itself = difference(weighted_auroc, classes, probabilities, probabilities, folds=folds, subjects=subjects, seed=0)
    assert itself.mean == (0, 0, 0)
    noisier = probabilities + random.normal(scale=0.3, size=len(classes))[:, None] * [1, -1]
    paired = difference(weighted_auroc, classes, probabilities, noisier, folds=folds, subjects=subjects, seed=0).mean
    alone = over_folds(weighted_auroc, classes, probabilities, folds=folds, subjects=subjects, seed=0).mean
    assert paired.high - paired.low < alone.high - alone.low


def test_the_roc_curve_is_that_of_scikit_learn():
    random = np.random.default_rng(7)
    positive, scores = random.integers(0, 2, 50).astype(bool), random.normal(size=50).round(1)
    false, true, _ = sklearn_roc_curve(positive, scores, drop_intermediate=False)
    curve = roc_curve(positive, scores)
    np.testing.assert_allclose(curve.false_positive, false)
    np.testing.assert_allclose(curve.true_positive, true)


def test_the_area_below_the_mean_curve_is_the_mean_auroc_even_when_folds_score_on_other_scales():
    random = np.random.default_rng(8)
    classes, probabilities, folds, subjects = a_study(random, subjects=43, true_auroc=0.8, folds=4)
    scores = (probabilities[:, 1].round(1) + 100 * folds) * (1.0 + folds)
    curve = mean_roc_curve(classes == 1, scores, folds=folds)
    mean = over_folds(
        weighted_auroc, classes, probabilities.round(1), folds=folds, subjects=subjects, seed=0
    ).mean.value
    assert np.trapezoid(curve.true_positive, curve.false_positive) == pytest.approx(mean, abs=1e-12)
    assert (np.diff(curve.true_positive) >= -1e-12).all()
    assert (curve.true_positive[0], curve.true_positive[-1]) == (0, 1)


@pytest.mark.parametrize("levels", [4, 1000], ids=["many ties", "few ties"])
def test_the_band_of_a_roc_curve_is_around_that_curve_and_its_draws_are_of_whole_subjects(levels):
    random = np.random.default_rng(5)
    classes, probabilities, folds, subjects = a_study(random, subjects=60, true_auroc=0.8, folds=3)
    scores = np.round(probabilities[:, 1] * levels / 4) / levels
    curve = mean_roc_curve(classes == 1, scores, folds=folds)
    rates = curve.false_positive[1::2]  # each stands twice: the lower and the higher end
    told = {"folds": folds, "rates": rates, "seed": 0}
    found = mean_roc_intervals(classes == 1, scores, subjects=subjects, **told)
    np.testing.assert_allclose([each.value for each in found], curve.true_positive[1::2], atol=1e-9)
    assert all(each.low <= each.value <= each.high for each in found)
    assert found[-1] == (1, 1, 1)
    alone = mean_roc_intervals(classes == 1, scores, subjects=[f"{n}" for n in range(len(subjects))], **told)
    widths, narrower = (np.mean([each.high - each.low for each in own]) for own in (found, alone))
    assert widths > 1.05 * narrower > 0.1


def test_the_band_of_a_roc_curve_covers_the_true_curve_as_often_as_it_says():
    random, rates, inside = np.random.default_rng(6), np.array([0.2, 0.5]), []
    distance = np.sqrt(2) * norm.ppf(0.8)
    truth = norm.cdf(distance - norm.isf(rates))
    for seed in range(60):
        classes, probabilities, folds, subjects = a_study(random, subjects=120, true_auroc=0.8, folds=2)
        found = mean_roc_intervals(
            classes == 1, probabilities[:, 1], folds=folds, subjects=subjects, rates=rates, seed=seed
        )
        inside += [interval.low <= true <= interval.high for interval, true in zip(found, truth, strict=True)]
    assert 0.88 <= np.mean(inside) <= 0.99

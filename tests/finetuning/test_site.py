import numpy as np

from bfp.finetuning.crossvalidation import Study
from bfp.finetuning.logistic import Logistic
from bfp.finetuning.site import dump_probe, load_probe, numbered, probe_site, without_site
from bfp.metrics.auroc import auroc

COUNT = 160


def a_case(shift, spread=1.0):
    """Vectors of two classes at four sites, each of both classes: a site moves them and widens some of them."""
    random, whose = np.random.default_rng(0), np.arange(COUNT)
    sites, classes = whose % 4, whose // 4 % 2
    vectors = random.normal(size=(COUNT, 20))
    vectors[:, :2] *= np.where(sites[:, None] == 0, spread, 1.0)
    vectors[:, 0] += shift * sites
    vectors[:, 5] += 2.0 * classes
    study = Study(Logistic(2), classes, [f"a/{n}" for n in whose], whose // 8 % 5, [0.01, 0.1], seed=0)
    return study, sites, vectors


def test_a_site_that_moves_vectors_is_told_and_no_longer_once_it_is_taken_away_and_the_task_stays():
    study, sites, vectors = a_case(shift=3.0)
    found = probe_site(study, sites, vectors)
    assert auroc(sites, found.linear) > 0.8
    assert abs(auroc(sites, found.linear_after) - 0.5) < 0.1
    assert auroc(study.targets, found.task_after) > 0.85


def test_what_differs_otherwise_than_in_the_mean_is_left_and_the_neighbours_tell_it():
    study, sites, vectors = a_case(shift=0.0, spread=12.0)
    found = probe_site(study, sites, vectors)
    only = sites == 0
    assert auroc(only.astype(int), np.stack([1 - found.near_after[:, 0], found.near_after[:, 0]], 1)) > 0.65


def test_what_is_taken_away_is_learned_from_the_training_sessions_alone():
    study, sites, vectors = a_case(shift=3.0)
    learned = study.folds != 0
    changed = vectors.copy()
    changed[~learned] += 5.0
    one, other = (without_site(own, sites, learned=learned) for own in (vectors, changed))
    np.testing.assert_allclose(one[learned], other[learned])
    means = [one[learned & (sites == site)].mean(axis=0) for site in range(4)]
    np.testing.assert_allclose(np.ptp(means, axis=0), 0, atol=1e-9)


def test_a_site_of_which_nobody_is_left_to_learn_from_has_no_chance():
    study, sites, vectors = a_case(shift=3.0)
    sites = np.where(study.folds == 0, sites, np.minimum(sites, 2))  # the last one is in the first fold only
    found = probe_site(study, sites, vectors)
    assert (found.linear[study.folds == 0, 3] == 0).all()
    np.testing.assert_allclose(found.linear.sum(axis=1), 1)


def test_a_probe_comes_back_from_its_file():
    study, sites, vectors = a_case(shift=1.0)
    found = probe_site(study, sites, vectors)
    back = load_probe(dump_probe(found))
    assert all((getattr(back, name) == getattr(found, name)).all() for name in found.__slots__)


def test_sites_are_numbered_the_largest_first():
    numbers, names = numbered(["b", "a", "b", "c"])
    assert (numbers.tolist(), names) == ([0, 1, 0, 2], ["b", "a", "c"])


def test_vectors_that_know_no_site_are_at_chance_before_and_after():
    study, sites, vectors = a_case(shift=0.0)
    found = probe_site(study, sites, vectors)
    for said in (found.linear, found.near, found.linear_after, found.near_after):
        assert abs(auroc(sites, said) - 0.5) < 0.12

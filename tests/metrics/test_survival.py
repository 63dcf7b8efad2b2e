import numpy as np
import pytest

from bfp.metrics.survival import concordance, event_free, event_free_interval


def by_pairs(time, event, risk):
    right = comparable = 0.0
    for i in range(len(time)):
        for j in range(len(time)):
            if i != j and event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                comparable += 1
                right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    return right / comparable


def test_concordance_is_counted_over_the_pairs_whose_order_is_known_for_each_set_of_weights():
    random = np.random.default_rng(0)
    time, event = random.integers(1, 15, 40).astype(float), random.integers(0, 2, 40)
    risk = np.round(random.normal(size=40) - 0.1 * time, 1)  # with equal ones
    weights = random.integers(0, 3, (4, 40)).astype(float)
    found = concordance(np.stack([time, event], axis=1), risk[:, None], weights)
    for value, own in zip(found, weights, strict=True):
        drawn = np.repeat(np.arange(40), own.astype(int))
        assert value == pytest.approx(by_pairs(time[drawn], event[drawn], risk[drawn]), abs=1e-12)


def test_risks_in_the_order_of_events_are_fully_concordant_and_a_constant_is_half():
    targets = np.array([[1, 1], [2, 1], [3, 0], [4, 1.0]])
    once = np.ones((1, 4))
    assert concordance(targets, np.array([[4.0], [3], [2], [1]]), once) == 1
    assert concordance(targets, np.zeros((4, 1)), once) == 0.5


def test_without_an_event_there_is_nothing_to_compare():
    assert np.isnan(concordance(np.array([[1, 0], [2, 0.0]]), np.zeros((2, 1)), np.ones((1, 2)))).all()


def test_the_share_without_the_event_is_kaplan_and_meiers_for_each_set_of_weights():
    targets = np.array([[1, 1], [2, 0], [3, 1], [3, 1], [5, 0], [6, 1], [7, 0.0]])
    weights = np.array([[1.0] * 7, [2, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 0]])
    np.testing.assert_allclose(event_free(targets, weights, at=0.5), 1)
    np.testing.assert_allclose(event_free(targets, weights, at=4), [6 / 7 * 3 / 5, 6 / 8 * 3 / 5, 4 / 5 * 1 / 3])
    np.testing.assert_allclose(event_free(targets, weights, at=6), [6 / 7 * 3 / 10, 6 / 8 * 3 / 10, 0])


def test_of_whom_nobody_was_seen_so_long_nothing_is_said():
    assert np.isnan(event_free(np.array([[1, 1], [2, 0.0]]), np.ones((1, 2)), at=3)).all()


def test_the_interval_of_the_share_without_the_event_is_greenwoods_by_log_log_and_of_subjects():
    random = np.random.default_rng(0)
    time, event = random.exponential(10, 200), (random.random(200) < 0.7).astype(float)
    targets, at = np.stack([time, event], axis=1), 8.0
    moments = np.sort(time[(event == 1) & (time <= at)])
    at_risk = np.array([(time >= moment).sum() for moment in moments])
    greenwood = np.sqrt(np.sum(1 / (at_risk * (at_risk - 1))))
    free = np.prod(1 - 1 / at_risk)
    reach = 1.96 * greenwood / np.log(free)
    expected = (free, free ** np.exp(-reach), free ** np.exp(reach))
    subjects = [f"s{number}" for number in range(200)]
    found = event_free_interval(targets, subjects=subjects, at=at)
    assert found == pytest.approx(expected, abs=0.002)
    twice = event_free_interval(np.repeat(targets, 2, axis=0), subjects=np.repeat(subjects, 2).tolist(), at=at)
    assert twice == pytest.approx(found, abs=0.001)  # no more people than before


def test_a_third_without_events_has_the_exact_end_of_those_still_at_risk():
    targets = np.array([[12, 0], [12, 0], [12, 0], [12, 0], [3, 0.0]])
    found = event_free_interval(targets, subjects=list("aabcd"), at=10)
    assert found == (1.0, pytest.approx(0.05 ** (1 / 3)), 1.0)  # three subjects: in one of twenty it is lower
    everybody = event_free_interval(np.array([[1, 1], [2, 1.0]]), subjects=["a", "b"], at=5)
    assert everybody == (0.0, 0.0, pytest.approx(1 - 0.05**0.5))
    gone = event_free_interval(np.array([[1, 1], [2, 0.0]]), subjects=["a", "b"], at=5)
    assert gone == (None, None, None)

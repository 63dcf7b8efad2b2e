import numpy as np
import pytest

from bfp.finetuning.crossvalidation import Study
from bfp.finetuning.logistic import Logistic
from bfp.finetuning.neighbours import judge_by_neighbours
from bfp.finetuning.ridge import Ridge


def a_study(learner, targets, *, folds=4):
    persons = [f"sub-{number // 2}" for number in range(len(targets))]
    dealt = np.arange(len(targets)) // 2 % folds
    return Study(learner, targets, persons, dealt.astype(np.int64), [1.0], seed=0)


def test_sessions_near_each_other_tell_each_others_class_and_a_persons_own_are_not_asked():
    random = np.random.default_rng(0)
    classes = np.repeat(random.integers(0, 2, 60), 2)
    vectors = random.normal(size=(120, 8)) + 3 * classes[:, None]
    vectors[3, 2] = np.nan
    judged = judge_by_neighbours(a_study(Logistic(2), classes), vectors, class_count=2)
    np.testing.assert_allclose(judged.said.sum(axis=1), 1)
    assert (judged.said.argmax(axis=1) == classes).mean() > 0.95
    alone = np.repeat(random.normal(size=(60, 8)), 2, axis=0)  # one that only its own subject's other session is near
    chance = judge_by_neighbours(a_study(Logistic(2), classes), alone, class_count=2)
    assert abs((chance.said.argmax(axis=1) == classes).mean() - 0.5) < 0.2


def test_a_number_is_the_mean_of_those_nearby_in_its_own_unit():
    random = np.random.default_rng(1)
    ages = random.uniform(20, 80, 200)
    vectors = np.stack([np.cos(ages / 40), np.sin(ages / 40)], axis=1) + random.normal(0, 0.01, (200, 2))
    judged = judge_by_neighbours(a_study(Ridge(), ages), vectors, class_count=0)
    assert judged.said.shape == (200, 1)
    assert np.abs(judged.said[:, 0] - ages).mean() < 5
    assert judged.said.min() >= ages.min()
    assert judged.said.max() <= ages.max()
    moved = judge_by_neighbours(a_study(Ridge(), ages + 1000), vectors, class_count=0)
    assert moved.said == pytest.approx(judged.said + 1000)

import numpy as np
import pytest

from bfp.finetuning.cells import dump_cell, load_cell, run_cell
from bfp.finetuning.crossvalidation import Study, run_fold
from bfp.finetuning.logistic import Logistic


def study(fraction=1.0):
    whose = np.repeat(np.arange(40), 2)
    persons = [f"a/{n}" for n in whose]
    return Study(Logistic(2), whose % 2, persons, (whose // 2) % 5, [0.1], seed=0, fraction=fraction)


@pytest.fixture(scope="module")
def vectors():
    random = np.random.default_rng(0)
    found = random.normal(size=(80, 12))
    found[:, 0] += 2.0 * (study().targets - 0.5)
    return found


def test_a_cell_says_of_each_session_what_its_folds_head_says_with_more_and_with_less_shown(vectors):
    less = np.where(np.arange(12) < 6, vectors, np.nan)
    outside = np.random.default_rng(1).normal(size=(7, 12))
    cell = run_cell(study(), vectors, {"T1w": less}, {"elsewhere": outside})
    for fold in range(5):
        alone, tested = run_fold(study(), vectors, fold), study().folds == fold
        np.testing.assert_allclose(cell.said[tested], alone.said)
        np.testing.assert_allclose(cell.fewer["T1w"][tested], alone.head.probabilities(less[tested]))
        np.testing.assert_allclose(cell.outside["elsewhere"][fold], alone.head.probabilities(outside))
    assert cell.subjects.tolist() == [32] * 5
    assert cell.sessions.tolist() == [64] * 5


def test_few_labels_are_of_few_subjects_of_the_training_ones_alone(vectors):
    few = study(fraction=0.25)
    cell = run_cell(few, vectors, {}, {})
    assert cell.subjects.tolist() == [8] * 5
    changed = vectors.copy()
    changed[few.folds == 2] = 99.0  # who is tested in a fold changes nothing in its head
    unseen = ~few.learned_from(3) & (few.folds == 3)
    assert not (few.learned_from(2) & (few.folds == 2)).any()
    np.testing.assert_allclose(run_fold(few, changed, 2).head.weights, run_fold(few, vectors, 2).head.weights)
    assert unseen.any()


def test_a_cell_comes_back_from_its_file_as_it_was(vectors):
    cell = run_cell(study(), vectors, {"T1w+T2w": vectors}, {"else.where": vectors[:3]})
    back = load_cell(dump_cell(cell))
    assert back.seconds == cell.seconds
    for own, theirs in ((cell.fewer, back.fewer), (cell.outside, back.outside)):
        assert own.keys() == theirs.keys()
        assert all((own[name] == theirs[name]).all() for name in own)
    assert (back.said == cell.said).all()

import numpy as np
import pytest

from bfp.models.typical import fit_space, fit_typical

RANK, LENGTH = 12, 400


class Population:
    """Vectors (n, LENGTH) of few directions, whose spread falls, and noise: as features of sessions are."""

    def __init__(self, seed=0):
        self._random = np.random.default_rng(seed)
        spread = 0.8 ** np.arange(RANK)
        self._mixed = spread[:, None] * self._random.normal(size=(RANK, LENGTH))

    def draw(self, count):
        noise = 0.5 * self._random.normal(size=(count, LENGTH))
        return self._random.normal(size=(count, RANK)) @ self._mixed + noise


def fitted(training, folds=5):
    return fit_typical(training, np.arange(len(training)) % folds, complete=np.ones(len(training), dtype=bool))


@pytest.mark.parametrize("sessions", [30, 100])
def test_one_new_session_in_twenty_lies_beyond_95_percent_of_the_training_sessions(sessions):
    beyond = []
    for seed in range(40):
        population = Population(seed)
        typical = fitted(population.draw(sessions))
        beyond.append((typical.atypical(typical.distances(population.draw(100))) > 0.95).mean())
    assert np.mean(beyond) == pytest.approx(0.05, abs=0.02)


def test_distances_that_are_not_held_out_would_call_too_many_sessions_atypical():
    population = Population()
    training, new = population.draw(100), population.draw(1000)
    space = fit_space(training, 10)
    own, others = space.parts(training), space.parts(new)
    assert (others.outside > np.quantile(own.outside, 0.95)).mean() > 0.5


def test_shifting_and_scaling_each_component_changes_no_distance():
    population, random = Population(), np.random.default_rng(1)
    training, new = population.draw(60), population.draw(20)
    shift, scale = random.normal(size=LENGTH), random.uniform(0.1, 10, LENGTH)
    plain = fitted(training)
    moved = fitted(training * scale + shift)
    np.testing.assert_allclose(moved.distances(new * scale + shift), plain.distances(new), rtol=1e-6)


@pytest.mark.parametrize("kind", ["shifted along a component", "off the components", "more spread"])
def test_a_session_of_another_sort_is_farther_than_all_training_sessions(kind):
    population = Population()
    training, new = population.draw(100), population.draw(10)
    typical = fitted(training)
    direction = typical.space.components[-1] * np.where(np.isfinite(typical.space.scale), typical.space.scale, 0)
    other = {
        "shifted along a component": new + 40 * direction,
        "off the components": new + 2.0 * np.random.default_rng(1).normal(size=new.shape),
        "more spread": 5 * new,
    }[kind]
    assert (typical.atypical(typical.distances(other)) == 1).all()
    assert "all 100 training sessions lie less far" in typical.warning(1.0)
    assert "99% of the 100 training sessions" in typical.warning(0.99)
    assert typical.warning(0.98) == ""


def test_a_component_that_is_absent_counts_as_the_training_mean():
    population = Population()
    training = population.draw(50)
    training[:20, :100] = np.nan
    typical = fitted(training)
    (new,) = population.draw(1)
    absent, mean = new.copy(), new.copy()
    absent[:100], mean[:100] = np.nan, typical.space.centre[:100]
    found = typical.distances(np.stack([absent, mean]))
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("case", ["a component that never varies", "sessions that are all alike", "few sessions"])
def test_what_does_not_vary_gives_finite_distances(case):
    training = Population().draw(4 if case == "few sessions" else 30)
    if case == "a component that never varies":
        training[:, 5] = 3.0
    if case == "sessions that are all alike":
        training[:] = training[0]
    typical = fitted(training, 2)
    assert np.isfinite(typical.distances(training + 1)).all()
    assert typical.fault(length=LENGTH) == ""


def test_sessions_that_lack_a_modality_do_not_hide_others_that_lie_far():
    population = Population()
    training, far = population.draw(100), population.draw(10) + 3
    training[:20] += 30
    complete = np.arange(100) >= 20
    typical = fit_typical(training, np.arange(100) % 5, complete=complete)
    assert len(typical.held_out) == 80
    assert (typical.atypical(typical.distances(far)) == 1).all()
    everybody = fit_typical(training, np.arange(100) % 5, complete=np.ones(100, dtype=bool))
    assert (everybody.atypical(everybody.distances(far)) < 1).all()
    assert len(fit_typical(training, np.arange(100) % 5, complete=~complete).held_out) == 100

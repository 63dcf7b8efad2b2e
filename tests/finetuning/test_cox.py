import numpy as np
import pytest
from scipy.optimize import approx_fprime

from bfp.finetuning.cox import Cox, partial_likelihood
from bfp.finetuning.heads import fit_head
from bfp.metrics.survival import concordance


def followed(count=80, length=20, signal=1.5, ties=False):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(count, length))
    came = random.exponential(np.exp(-signal * vectors[:, 0]))
    seen = random.exponential(2, count)
    time = np.minimum(came, seen)
    time = np.ceil(time * 5) if ties else time
    return vectors, np.stack([time, came <= seen], axis=1).astype(float), [f"s{n}" for n in range(count)]


@pytest.mark.parametrize("ties", [False, True])
def test_the_partial_likelihood_is_summed_over_those_at_risk_and_its_slope_is_right(ties):
    vectors, targets, _ = followed(count=25, ties=ties)
    time, event = targets.T
    hazards = vectors @ np.linspace(-1, 1, 20)
    expected = sum(
        hazards[i] - np.log(np.exp(hazards[time >= time[i]]).sum()) for i in range(25) if event[i]
    )  # Breslow's form: whoever has an equal time is at risk
    value, slope = partial_likelihood(hazards, targets)
    assert value == pytest.approx(expected, abs=1e-10)
    numeric = approx_fprime(hazards, lambda at: partial_likelihood(at, targets)[0], 1e-7)
    np.testing.assert_allclose(slope, numeric, atol=1e-5)


def test_a_head_finds_who_comes_first_among_those_it_has_not_seen():
    vectors, targets, persons = followed(count=200)
    known = np.arange(200) < 120
    head, strength = fit_head(
        Cox(), vectors[known], targets[known], persons=persons[:120], strengths=[1e-6, 0.01, 0.1], seed=0
    )
    said = Cox().say(head, vectors[~known])
    assert strength > 1e-6
    assert concordance(targets[~known], said, np.ones((1, 80)))[0] > 0.7


def test_the_penalised_likelihood_is_at_its_top():
    vectors, targets, _ = followed()
    (head,) = Cox().fit(vectors, targets, [0.1])
    x = head.standardise(vectors)

    def loss(weights):
        return weights @ weights / 2 - 0.1 * partial_likelihood(x @ weights, targets)[0]

    np.testing.assert_allclose(approx_fprime(head.weights[0], loss, 1e-7), 0, atol=1e-5)

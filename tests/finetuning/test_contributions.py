import numpy as np
import pytest

from bfp.finetuning.cases import cases_of, telling_slices
from bfp.finetuning.contributions import (
    LogOdds,
    patch_effects,
    spread_without_each,
    stack_shares,
    weights_of,
)
from bfp.finetuning.logistic import Logistic
from bfp.models.pooling import Pooling

POOLING = Pooling(bands=3, parts=("T1w", "FLAIR"))
WIDTH = 5


def a_session(random, *, stacks=8, parts=("T1w", "FLAIR")):
    heights = np.tile(np.linspace(0, 1, stacks), len(parts))
    features = random.normal(2, 1, (len(heights), WIDTH)).astype(np.float32)
    return features, heights, [part for part in parts for _ in range(stacks)]


def pooled(features, heights, parts, scores=None):
    return POOLING.pool(features, heights=heights, parts=parts, scores=scores)


@pytest.fixture(scope="module", params=[2, 3], ids=["two classes", "three classes"])
def head(request):
    random = np.random.default_rng(0)
    vectors = np.stack([pooled(*a_session(random)) for _ in range(40)])
    vectors[:, 7] = 3.0  # never varies: the head ignores it
    return Logistic(request.param).fit(vectors, np.arange(40) % request.param, [1.0])[0]


def odds(head, vector, k):
    logits = head.logits(vector[None])[0]
    return logits[k] - np.delete(logits, k).mean()


@pytest.mark.parametrize("parts", [("T1w", "FLAIR"), ("FLAIR",)], ids=["whole", "without a modality"])
@pytest.mark.parametrize("scored", [False, True], ids=["means", "attention"])
def test_the_shares_of_stacks_add_up_to_the_log_odds_less_those_of_the_training_mean(head, parts, scored):
    random = np.random.default_rng(1)
    features, heights, parts = a_session(random, parts=parts)
    scores = random.normal(size=len(features)) if scored else None
    bags = POOLING.bags(heights, parts)
    for k in range(len(head.bias)):
        log_odds = LogOdds.of(head, k)
        shares = stack_shares(log_odds, features, bags=bags, weights=weights_of(bags, scores))
        vector = pooled(features, heights, parts, scores)
        assert log_odds.bias == pytest.approx(odds(head, head.centre, k), abs=1e-9)
        assert shares.sum() == pytest.approx(odds(head, vector, k) - log_odds.bias, abs=1e-5)


def test_the_effect_of_a_patch_is_the_log_odds_with_its_token_less_those_without_it(head):
    random = np.random.default_rng(2)
    features, heights, parts = a_session(random)
    tokens = random.normal(100, 1, (9, WIDTH)).astype(np.float32)
    stack, bags = 5, POOLING.bags(heights, parts)
    features[stack] = tokens.astype(np.float64).std(axis=0)
    effects = patch_effects(LogOdds.of(head, 1), tokens, bag=bags[stack], weight=weights_of(bags)[stack])
    with_all = odds(head, pooled(features, heights, parts), 1)
    for patch in range(len(tokens)):
        features[stack] = np.delete(tokens, patch, axis=0).astype(np.float64).std(axis=0)
        assert effects[patch] == pytest.approx(with_all - odds(head, pooled(features, heights, parts), 1), abs=1e-5)


def test_a_blob_that_makes_the_class_is_found_where_it_was_planted():
    random = np.random.default_rng(3)
    planted, patches = [14, 15, 20, 21], 36

    def a_slice(ill):
        tokens = random.normal(0, 1, (patches, WIDTH))
        tokens[planted, 2] += 6 * ill
        return tokens

    tokens = [a_slice(ill) for ill in np.arange(60) % 2]
    one = Pooling(bands=1, parts=("",))
    vectors = np.stack([one.pool(each.std(axis=0)[None], heights=np.zeros(1), parts=[""]) for each in tokens])
    log_odds = LogOdds.of(Logistic(2).fit(vectors, np.arange(60) % 2, [1.0])[0], 1)
    effects = patch_effects(log_odds, a_slice(1), bag=0, weight=1.0)
    assert sorted(np.argsort(effects)[-4:].tolist()) == planted
    assert effects[planted].min() > np.abs(np.delete(effects, planted)).max()


def test_leaving_out_a_patch_of_tokens_far_from_zero_loses_no_digits():
    tokens = np.random.default_rng(4).normal(1e4, 1e-2, (7, 3))
    expected = [np.delete(tokens, patch, axis=0).std(axis=0) for patch in range(7)]
    np.testing.assert_allclose(spread_without_each(tokens), expected, rtol=1e-6)


def test_cases_are_the_surest_right_and_wrong_of_each_class_and_of_each_subject_one():
    targets = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    sick = np.array([0.1, 0.2, 0.9, 0.6, 0.95, 0.97, 0.8, 0.3])
    persons = ["a", "b", "c", "d", "e", "e", "f", "g"]
    found = cases_of(targets, np.column_stack([1 - sick, sick]), folds=np.arange(8) % 3, persons=persons)
    assert [case.session for case in found] == [0, 1, 2, 3, 5, 6, 7]  # 4 is a less sure visit of e
    assert [case.is_right for case in found] == [True, True, False, False, True, True, False]
    assert found[-1] == (7, 1, 1, 0, pytest.approx(0.7))
    assert len(cases_of(targets, np.column_stack([1 - sick, sick]), folds=targets, persons=persons, most=4)) == 4


def test_slices_are_chosen_by_their_share_and_not_next_to_one_another():
    heights = np.linspace(0, 1, 41)  # 0.025 apart
    shares = np.zeros(82)
    shares[[10, 11, 30, 51]] = [0.5, 0.6, -0.9, 0.4]
    parts = ["T1w"] * 41 + ["FLAIR"] * 41
    found = telling_slices(shares, heights=np.tile(heights, 2), parts=parts, most=3)
    assert found == [11, 30, 51]  # 51 is at the height of 10, of another modality

import numpy as np
import pytest

from bfp.finetuning.cases import cases_of, merits_of_classes, merits_of_numbers, order_of_times, telling_slices
from bfp.finetuning.contributions import (
    Sum,
    patch_effects,
    spread_without_each,
    stack_shares,
    weights_of,
)
from bfp.finetuning.cox import Cox
from bfp.finetuning.logistic import Logistic
from bfp.finetuning.ridge import Ridge
from bfp.metrics.survival import concordance, pairs_of
from bfp.models.pooling import Pooling

POOLING = Pooling(bands=3, parts=("T1w", "FLAIR"))
WIDTH = 5


def a_session(random, *, stacks=8, parts=("T1w", "FLAIR")):
    heights = np.tile(np.linspace(0, 1, stacks), len(parts))
    features = random.normal(2, 1, (len(heights), WIDTH)).astype(np.float32)
    return features, heights, [part for part in parts for _ in range(stacks)]


def pooled(features, heights, parts, scores=None):
    return POOLING.pool(features, heights=heights, parts=parts, scores=scores)


AGES = np.random.default_rng(5).normal(70, 8, 40)
LEARNED = {
    "two classes": (Logistic(2), np.arange(40) % 2),
    "three classes": (Logistic(3), np.arange(40) % 3),
    "a number": (Ridge(), AGES),
    "times": (Cox(), np.column_stack([AGES, np.arange(40) % 2])),
}


@pytest.fixture(scope="module", params=LEARNED)
def head(request):
    random = np.random.default_rng(0)
    vectors = np.stack([pooled(*a_session(random)) for _ in range(40)])
    vectors[:, 7] = 3.0  # never varies: the head ignores it
    learner, targets = LEARNED[request.param]
    return learner.fit(vectors, targets, [1.0])[0]


def said(head, vector, k):
    """The number or the log hazard; of classes the log odds of one."""
    outputs = head.logits(vector[None])[0]
    return outputs[k] - np.delete(outputs, k).mean() if len(outputs) > 1 else outputs[k]


@pytest.mark.parametrize("parts", [("T1w", "FLAIR"), ("FLAIR",)], ids=["whole", "without a modality"])
@pytest.mark.parametrize("scored", [False, True], ids=["means", "attention"])
def test_the_shares_of_stacks_add_up_to_what_is_said_less_what_is_said_of_the_training_mean(head, parts, scored):
    random = np.random.default_rng(1)
    features, heights, parts = a_session(random, parts=parts)
    scores = random.normal(size=len(features)) if scored else None
    bags = POOLING.bags(heights, parts)
    for k in range(len(head.bias)):
        of_head = Sum.of(head, k)
        shares = stack_shares(of_head, features, bags=bags, weights=weights_of(bags, scores))
        vector = pooled(features, heights, parts, scores)
        assert of_head.bias == pytest.approx(said(head, head.centre, k), abs=1e-9)
        assert shares.sum() == pytest.approx(said(head, vector, k) - of_head.bias, abs=1e-5)


def test_what_is_said_of_the_training_mean_is_the_mean_number():
    random = np.random.default_rng(0)
    vectors = np.stack([pooled(*a_session(random)) for _ in range(40)])
    head = Ridge().fit(vectors, AGES, [1.0])[0]
    assert Sum.of(head, 0).bias == pytest.approx(AGES.mean())
    assert Sum.of(head, 0).bias == pytest.approx(head.logits(vectors).mean())


def test_the_effect_of_a_patch_is_what_is_said_with_its_token_less_what_is_said_without_it(head):
    random = np.random.default_rng(2)
    features, heights, parts = a_session(random)
    tokens = random.normal(100, 1, (9, WIDTH)).astype(np.float32)
    stack, bags, k = 5, POOLING.bags(heights, parts), len(head.bias) - 1
    features[stack] = tokens.astype(np.float64).std(axis=0)
    effects = patch_effects(Sum.of(head, k), tokens, bag=bags[stack], weight=weights_of(bags)[stack])
    with_all = said(head, pooled(features, heights, parts), k)
    for patch in range(len(tokens)):
        features[stack] = np.delete(tokens, patch, axis=0).astype(np.float64).std(axis=0)
        assert effects[patch] == pytest.approx(with_all - said(head, pooled(features, heights, parts), k), abs=1e-5)


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
    of_ill = Sum.of(Logistic(2).fit(vectors, np.arange(60) % 2, [1.0])[0], 1)
    effects = patch_effects(of_ill, a_slice(1), bag=0, weight=1.0)
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
    merits = merits_of_classes(targets, np.column_stack([1 - sick, sick]))
    found = cases_of(merits, groups=targets, folds=np.arange(8) % 3, persons=persons)
    assert [case.session for case in found] == [0, 1, 2, 3, 5, 6, 7]  # 4 is a less sure visit of e
    assert [case.is_right for case in found] == [True, True, False, False, True, True, False]
    assert found[-1] == (7, 1, 1, False)
    assert len(cases_of(merits, groups=targets, folds=targets, persons=persons, most=4)) == 4


def test_cases_of_numbers_are_the_smallest_and_the_largest_errors():
    ages, errors = np.arange(60.0, 67.0), np.array([0.5, -4, 1, 9, -0.1, 8, -2])
    persons = ["a", "b", "c", "d", "e", "d", "f"]
    merits = merits_of_numbers(ages, (ages + errors)[:, None])
    found = cases_of(merits, groups=np.zeros(7, int), folds=np.zeros(7, int), persons=persons, most=4)
    assert [(case.session, case.is_right) for case in found] == [(4, True), (0, True), (3, False), (1, False)]


def test_merits_of_times_are_pairs_within_a_fold_and_add_up_to_the_concordance():
    random = np.random.default_rng(6)
    targets = np.column_stack([random.integers(1, 9, 40), random.integers(0, 2, 40)]).astype(float)
    hazards, folds = random.integers(0, 5, (40, 1)).astype(float), np.arange(40) % 2
    order = order_of_times(targets, hazards, folds=folds)
    for own in (folds == 0, folds == 1):
        count = pairs_of(targets[own], hazards[own])[0].sum()
        found = concordance(targets[own], hazards[own], np.ones((1, own.sum())))[0]
        assert order.merits[own].sum() == pytest.approx(2 * count * (2 * found - 1))


def test_who_was_last_seen_without_the_event_is_judged_by_the_events_before_that_alone():
    targets = np.array([[1, 1], [2, 0], [3, 1], [4, 0], [9, 0.0]])
    order = order_of_times(targets, np.array([[0], [5], [0], [0], [-1.0]]), folds=np.zeros(5))
    assert order.pairs.tolist() == [4, 1, 3, 2, 2]
    assert order.right.tolist() == [2, 0, 2, 1, 2]
    assert order.merits.argmax() == 4  # free of the event for long, and said to be at the lowest risk


def test_slices_are_chosen_by_their_share_and_not_next_to_one_another():
    heights = np.linspace(0, 1, 41)  # 0.025 apart
    shares = np.zeros(82)
    shares[[10, 11, 30, 51]] = [0.5, 0.6, -0.9, 0.4]
    parts = ["T1w"] * 41 + ["FLAIR"] * 41
    found = telling_slices(shares, heights=np.tile(heights, 2), parts=parts, most=3)
    assert found == [11, 30, 51]  # 51 is at the height of 10, of another modality

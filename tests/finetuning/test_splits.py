import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bfp.cohorts.sessions import Key
from bfp.errors import InputError
from bfp.finetuning.splits import bands_of, few, given_folds, grouped_folds


def split(persons, classes, *, folds=5, seed=0, strata=None, names=("control", "disease")):
    return grouped_folds(
        persons=persons,
        classes=np.asarray(classes),
        strata=strata or [""] * len(persons),
        class_names=names,
        folds=folds,
        seed=seed,
    )


def cohort(random, subjects=37):
    whose = np.repeat(np.arange(subjects), random.integers(1, 5, subjects))
    return [f"site/{n:02}" for n in whose], (whose % 3 == 0).astype(int)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 6))
def test_a_subject_is_never_on_both_sides(seed, folds):
    persons, classes = cohort(np.random.default_rng(seed))
    assigned = split(persons, classes, folds=folds, seed=seed)
    for person in set(persons):
        assert len({assigned[n] for n, name in enumerate(persons) if name == person}) == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 6))
def test_each_class_is_spread_over_the_folds_to_within_one_subject(seed, folds):
    persons, classes = cohort(np.random.default_rng(seed))
    assigned = split(persons, classes, folds=folds, seed=seed)
    for k in (0, 1):
        subjects = [
            len({p for p, c, f in zip(persons, classes, assigned, strict=True) if c == k and f == fold})
            for fold in range(folds)
        ]
        assert max(subjects) - min(subjects) <= 1


def test_cohorts_are_spread_within_each_class():
    persons = [f"{site}/{n}" for site in "ab" for n in range(20)]
    classes = np.array([n % 2 for _ in "ab" for n in range(20)])
    assigned = split(persons, classes, strata=[p[0] for p in persons])
    for fold in range(5):
        assert sum(p[0] == "a" for p, f in zip(persons, assigned, strict=True) if f == fold) == 4


def test_the_folds_do_not_depend_on_the_order_of_the_sessions():
    random = np.random.default_rng(1)
    persons, classes = cohort(random)
    order = random.permutation(len(persons))
    shuffled = split([persons[n] for n in order], classes[order])
    np.testing.assert_array_equal(shuffled, split(persons, classes)[order])


def test_another_seed_gives_other_folds():
    persons, classes = cohort(np.random.default_rng(2))
    assert (split(persons, classes, seed=1) != split(persons, classes, seed=2)).any()


def test_a_class_with_fewer_subjects_than_folds_is_refused_by_name():
    persons = [f"site/{n}" for n in range(20)] + ["site/19", "site/20", "site/20"]
    classes = [0] * 19 + [1] * 4
    with pytest.raises(InputError, match=r"class disease has 2 subjects \(site/19, site/20\), fewer than 5 folds"):
        split(persons, classes)


def test_somebody_of_two_classes_stays_in_one_fold_and_counts_for_the_rarer():
    persons = [f"site/{n}" for n in range(20)] * 2
    classes = [0] * 20 + [1 if n < 5 else 0 for n in range(20)]
    assigned = split(persons, classes)
    np.testing.assert_array_equal(assigned[:20], assigned[20:])
    assert sorted(assigned[20:25]) == [0, 1, 2, 3, 4]


def given_as(told, classes, *, folds=2):
    """told: {"subject/session": fold}."""
    sessions = [Key("a", *name.split("/")) for name in told]
    rows = {key: {"fold": fold, "class": "kept"} for key, fold in zip(sessions, told.values(), strict=True)}
    return given_folds(
        rows,
        sessions=sessions,
        classes=np.asarray(classes),
        class_names=("control", "disease"),
        folds=folds,
        source="splits: own.csv",
    )


def test_a_given_split_is_taken_with_its_folds_in_the_order_of_their_names():
    told = {"p/1": "10", "p/2": "10", "q/1": "2", "r/1": "2", "s/1": "10"}
    assert given_as(told, [0, 0, 0, 1, 1]).tolist() == [1, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("told", "classes", "folds", "message"),
    [
        (
            {"p/1": "1", "p/2": "2", "q/1": "1", "r/1": "2"},
            [0, 0, 1, 1],
            2,
            r"a/p \(folds 1, 2\) would be learned from and",
        ),
        ({"p/1": "1", "q/1": "", "r/1": "n/a"}, [0, 0, 1], 2, r"says no fold of a/q, a/r \(2 subjects\); add them"),
        (
            {"p/1": "1", "q/1": "1", "r/1": "2", "s/1": "2"},
            [0, 1, 0, 1],
            5,
            r"has 2 folds \(1, 2\), and folds is 5; write folds: 2",
        ),
        (
            {"p/1": "1", "q/1": "1", "r/1": "2", "s/1": "2"},
            [0, 1, 0, 0],
            2,
            r"fold 2 \(a/r, a/s\) tests nobody of class disease",
        ),
    ],
)
def test_a_given_split_that_cannot_be_used_is_refused_with_names(told, classes, folds, message):
    with pytest.raises(InputError, match=rf"splits: own\.csv: .*{message}"):
        given_as(told, classes, folds=folds)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), fraction=st.floats(0.01, 1))
def test_few_labels_are_a_share_of_the_subjects_of_each_class_and_part_of_what_more_would_be(seed, fraction):
    persons, classes = cohort(np.random.default_rng(seed))
    whose, among = np.array(persons), np.random.default_rng(seed).random(len(persons)) < 2
    among &= ~np.isin(whose, ["site/00", "site/01"])  # who is tested
    taken, more = (
        few(classes, persons=persons, among=among, fraction=share, seed=seed)
        for share in (fraction, min(1, 2 * fraction))
    )
    assert not (taken & ~more).any()
    assert not (taken & ~among).any()
    for k in (0, 1):
        there, kept = (len(set(whose[own & (classes == k)])) for own in (among, taken))
        assert kept == max(1, round(fraction * there))
    assert (taken == (among & np.isin(whose, whose[taken]))).all()  # whole subjects


def test_all_labels_are_all_of_them_and_another_seed_takes_other_few():
    persons, classes = cohort(np.random.default_rng(0))
    among = np.ones(len(persons), dtype=bool)
    assert few(classes, persons=persons, among=among, fraction=1.0, seed=0).all()
    one, other = (few(classes, persons=persons, among=among, fraction=0.3, seed=seed) for seed in (0, 1))
    assert (one != other).any()


def test_bands_of_a_number_are_about_as_large_and_equal_numbers_stand_together():
    numbers = np.array([60.0] * 10 + list(range(61, 81)))
    bands = bands_of(numbers, 3)
    assert sorted(np.bincount(bands).tolist()) == [10, 10, 10]
    assert len(set(bands[:10])) == 1
    assert set(bands_of(np.full(7, 70.0))) == {0}

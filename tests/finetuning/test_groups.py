import numpy as np

from bfp.finetuning.groups import groups_of


def told(values):
    return {group.name: group.members.nonzero()[0].tolist() for group in groups_of(values)}


def test_text_makes_a_group_of_each_value_the_largest_first_and_the_unknown_last():
    assert told(["F", "", "M", "F"]) == {"F": [0, 3], "M": [2], "not known": [1]}


def test_numbers_make_bands_of_about_as_many_sessions():
    found = told([*(str(n) for n in range(30)), ""])
    assert list(found) == ["up to 9", "over 9 to 19", "over 19", "not known"]
    assert [len(own) for own in found.values()] == [10, 10, 10, 1]


def test_few_kinds_of_numbers_are_values_and_not_bands():
    assert list(told(["1.5", "3", "3", "1.5", "3"])) == ["3", "1.5"]


def test_one_number_that_most_have_does_not_make_an_empty_band():
    found = groups_of(["50"] * 40 + [str(n) for n in range(60, 75)])
    assert [group.name for group in found] == ["up to 50", "over 50"]
    assert np.sum([group.members for group in found], axis=0).tolist() == [1] * 55


def test_one_odd_cell_leaves_numbers_numbers():
    found = told([*(str(n) for n in range(30)), "90+"])
    assert list(found) == ["up to 9", "over 9 to 19", "over 19", "not known"]
    assert found["not known"] == [30]


def test_many_sites_are_the_ten_largest_and_the_others():
    found = told([f"site {n}" for n in range(12) for _ in range(12 - n)])
    assert list(found)[:2] == ["site 0", "site 1"]
    assert list(found)[10:] == ["2 other values"]
    assert len(found["2 other values"]) == 3

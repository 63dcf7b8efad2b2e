import numpy as np
import pytest

from bfp.errors import InputError
from bfp.finetuning.covariates import check_column, covariate_vectors, in_words


def test_numbers_are_one_component_and_words_are_one_hot():
    vectors = covariate_vectors({"age": ["61", "70.5", "82"], "sex": ["F", "M", "F"]})
    np.testing.assert_array_equal(vectors, [[61, 1, 0], [70.5, 0, 1], [82, 1, 0]])


def test_a_missing_value_is_nan_and_flagged():
    vectors = covariate_vectors({"age": ["61", "", "82"], "sex": ["F", "M", ""]})
    np.testing.assert_array_equal(vectors, [[61, 0, 1, 0, 0], [np.nan, 1, 0, 1, 0], [82, 0, np.nan, np.nan, 1]])


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["61", "64,5", "70", ""], r"`64,5` of subject 1 is not a number.*\(1 such cell of 3\)"),
        (["61,5", "64,5", "70,1", "82,0"], r"`61,5` of subject 0"),
        (["61", "64.5", "inf", "82"], r"`inf` of subject 2"),
        (["61", "64.5", "82", "unknown"], r"`unknown` of subject 3"),
    ],
)
def test_an_odd_cell_in_a_column_of_numbers_is_refused_by_name(values, found):
    with pytest.raises(InputError, match=r"labels.csv: column age: " + found):
        check_column("age", values, subjects=["0", "1", "2", "3"], source="labels.csv")


def test_a_column_is_said_to_be_numbers_or_categories():
    for values, words in ((["61", "", "7e1"], "number"), (["F", "M", "F"], "2 categories"), (["1.5T", "3"], None)):
        check_column("x", values, subjects=["0", "1", "2"][: len(values)], source="")
        assert words is None or in_words(values) == words

import numpy as np

from bfp.finetuning.covariates import covariate_vectors


def test_numbers_are_one_component_and_words_are_one_hot():
    vectors = covariate_vectors({"age": ["61", "70.5", "82"], "sex": ["F", "M", "F"]})
    np.testing.assert_array_equal(vectors, [[61, 1, 0], [70.5, 0, 1], [82, 1, 0]])


def test_a_missing_value_is_nan_and_flagged():
    vectors = covariate_vectors({"age": ["61", "", "82"], "sex": ["F", "M", ""]})
    np.testing.assert_array_equal(vectors, [[61, 0, 1, 0, 0], [np.nan, 1, 0, 1, 0], [82, 0, np.nan, np.nan, 1]])

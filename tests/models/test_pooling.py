import numpy as np

from bfp.models.pooling import Pooling


def test_the_mean_forgets_where_a_slice_lies_and_bands_do_not():
    features = np.arange(6, dtype=np.float32)[:, None] * [1, 10]
    heights = np.linspace(0, 1, 6)
    order = [3, 0, 5, 1, 4, 2]
    mean, bands = Pooling(1, ("",)), Pooling(3, ("",))
    np.testing.assert_allclose(mean.pool(features, heights=heights, parts=[""] * 6), [2.5, 25])
    np.testing.assert_allclose(bands.pool(features, heights=heights, parts=[""] * 6), [0.5, 5, 2.5, 25, 4.5, 45])
    same = bands.pool(features[order], heights=heights[order], parts=[""] * 6)
    np.testing.assert_allclose(same, [0.5, 5, 2.5, 25, 4.5, 45])


def test_each_modality_has_bands_of_its_own_and_what_lacks_is_nan():
    pooling = Pooling(2, ("T1w", "FLAIR", "T2w"))
    pooled = pooling.pool(
        np.array([[1.0], [3.0], [7.0]], dtype=np.float32),
        heights=np.array([0.1, 1.0, 0.2]),
        parts=["T1w", "T1w", "T2w"],
    )
    np.testing.assert_array_equal(pooled, [1, 3, np.nan, np.nan, 7, np.nan])

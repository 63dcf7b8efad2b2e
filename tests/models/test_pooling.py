import numpy as np

from bfp.models.pooling import Pooling


def test_the_mean_forgets_where_a_slice_lies_and_bands_do_not():
    features = np.arange(6, dtype=np.float32)[:, None] * [1, 10]
    heights = np.linspace(0, 1, 6)
    order = [3, 0, 5, 1, 4, 2]
    mean, bands = Pooling(1, ("",), relative=False), Pooling(3, ("",), relative=False)
    np.testing.assert_allclose(mean.pool(features, heights=heights, parts=[""] * 6), [2.5, 25])
    np.testing.assert_allclose(bands.pool(features, heights=heights, parts=[""] * 6), [0.5, 5, 2.5, 25, 4.5, 45])
    same = bands.pool(features[order], heights=heights[order], parts=[""] * 6)
    np.testing.assert_allclose(same, [0.5, 5, 2.5, 25, 4.5, 45])


def test_each_modality_has_bands_of_its_own_and_what_lacks_is_nan():
    pooling = Pooling(2, ("T1w", "FLAIR", "T2w"), relative=False)
    pooled = pooling.pool(
        np.array([[1.0], [3.0], [7.0]], dtype=np.float32),
        heights=np.array([0.1, 1.0, 0.2]),
        parts=["T1w", "T1w", "T2w"],
    )
    np.testing.assert_array_equal(pooled, [1, 3, np.nan, np.nan, 7, np.nan])


def test_what_all_slices_of_a_session_share_is_nothing_to_a_relative_pooling():
    random = np.random.default_rng(0)
    features, heights = random.normal(size=(12, 5)).astype(np.float32), np.linspace(0, 1, 12)
    features[:, 4] = 7
    pooling = Pooling(3, ("T1w", "T2w"), relative=True)
    parts = ["T1w", "T2w"] * 6
    pooled = pooling.pool(features, heights=heights, parts=parts)
    brighter = features * [1, 2, 3, 4, 5] + np.where(np.array(parts) == "T2w", 100, 0)[:, None]
    np.testing.assert_allclose(pooling.pool(brighter, heights=heights, parts=parts), pooled, atol=1e-4)
    np.testing.assert_array_equal(pooled.reshape(2, 3, 5)[:, :, 4], 0)
    np.testing.assert_allclose(pooled.reshape(2, 3, 5)[:, :, :4].sum(axis=1), 0, atol=1e-4)

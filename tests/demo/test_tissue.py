import numpy as np
import pytest

from bfp.demo.anatomy import SPACING_MM, Template
from bfp.demo.tissue import Brain, grow_brain


def grow(template: Template, *, severity: float = 0.0, tumour: bool = False, seed: int = 7) -> Brain:
    return grow_brain(template, np.random.default_rng(seed), severity=severity, tumour=tumour)


def test_severity_widens_the_ventricles_and_thins_the_cortex_of_one_and_the_same_subject(template: Template) -> None:
    mild, severe = grow(template, severity=-1), grow(template, severity=3)
    x, y, z = (extent // 2 for extent in mild.fluid.shape)
    centre = (slice(x - 24, x + 24), slice(y - 24, y + 30), slice(z - 6, z + 18))  # the ventricles, no cortex
    ventricles_ml = [float(brain.fluid[centre].sum()) * SPACING_MM**3 / 1000 for brain in (mild, severe)]
    grey_ml = [float(brain.grey.sum()) * SPACING_MM**3 / 1000 for brain in (mild, severe)]
    assert ventricles_ml[1] > 1.8 * ventricles_ml[0]
    assert 0.7 * grey_ml[0] < grey_ml[1] < 0.97 * grey_ml[0]


def test_severity_leaves_the_size_of_the_brain_alone(template: Template) -> None:
    mild, severe = (
        float((brain.grey + brain.white + brain.fluid).sum())
        for brain in (grow(template, severity=-1), grow(template, severity=3))
    )
    assert severe == pytest.approx(mild, rel=0.01)


def test_two_subjects_of_one_severity_differ_in_most_of_their_cortex(template: Template) -> None:
    one, other = (np.stack([b.grey, b.white, b.fluid]).argmax(axis=0) for b in (grow(template), grow(template, seed=8)))
    cortex = (template.grey * template.outer) > 0.5
    assert np.mean(one[cortex] != other[cortex]) > 0.25


def test_a_tumour_lies_in_the_brain_and_changes_nothing_else(template: Template) -> None:
    without, brain = grow(template), grow(template, tumour=True)
    assert without.tumour is None
    assert brain.tumour is not None
    np.testing.assert_array_equal(brain.grey, without.grey)
    envelope = brain.grey + brain.white + brain.fluid
    assert (brain.tumour.core <= envelope + 1e-6).all()
    core_ml, oedema_ml = (float((part > 0.5).sum()) * SPACING_MM**3 / 1000 for part in brain.tumour)
    assert 1 < core_ml < oedema_ml < 150

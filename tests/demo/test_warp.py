import numpy as np
import pytest

from bfp.demo.anatomy import Template
from bfp.demo.tissue import NODE_MM, draw_velocity
from bfp.demo.warp import displacement, pull_back, refine, smooth_noise


def jacobian(displacement_mm: np.ndarray, node_mm: float) -> np.ndarray:
    """The volume that a node's neighbourhood keeps: below 0 the map has folded."""
    slopes = np.stack([np.stack(np.gradient(component, node_mm)) for component in displacement_mm])
    return np.linalg.det(np.moveaxis(slopes, (0, 1), (-2, -1)) + np.eye(3))


def random_velocity(seed: int, shape: tuple[int, int, int], size_mm: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return size_mm * np.stack([smooth_noise(rng, shape, wavelength_mm=60, node_mm=4) for _ in range(3)])


@pytest.mark.parametrize(("seed", "severity"), [(0, -2.5), (1, 0.0), (2, 2.0), (3, 4.0)])
def test_no_brain_folds_whatever_its_severity(template: Template, seed: int, severity: float) -> None:
    velocity_mm = draw_velocity(template, np.random.default_rng(seed), severity=severity)
    kept = jacobian(displacement(velocity_mm, node_mm=NODE_MM), NODE_MM)
    assert kept.min() > 0
    assert kept.std() > 0.1  # and the deformation is worth the name


def test_following_a_velocity_and_then_its_opposite_leads_back() -> None:
    shape = (24, 20, 28)
    velocity_mm = random_velocity(0, shape, 4.0)
    there, back = displacement(velocity_mm, node_mm=4), displacement(-velocity_mm, node_mm=4)
    returned = there + np.stack(pull_back(list(back), there, step=1, voxel_mm=4))
    inner = (slice(None), *(slice(5, -5),) * 3)
    assert np.abs(there[inner]).max() > 6
    assert np.abs(returned[inner]).max() < 0.1 * np.abs(there[inner]).max()


def test_smooth_noise_has_the_wavelength_that_was_asked_for() -> None:
    field = smooth_noise(np.random.default_rng(0), (40, 48, 44), wavelength_mm=80, node_mm=4)
    slopes_per_mm = np.stack(np.gradient(field, 4.0))
    assert field.std() == pytest.approx(1, abs=1e-3)
    assert 2 * np.pi / np.sqrt((slopes_per_mm**2).sum(axis=0).mean()) == pytest.approx(80, rel=0.15)


def test_refining_keeps_the_nodes_and_is_linear_between_them() -> None:
    nodes = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    fine = refine(nodes, step=3, shape=(8, 11, 14))
    np.testing.assert_allclose(fine[::3, ::3, ::3], nodes, atol=1e-6)
    np.testing.assert_allclose(fine[1, 0, 0], (2 * nodes[0, 0, 0] + nodes[1, 0, 0]) / 3, atol=1e-6)

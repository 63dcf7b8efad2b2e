import numpy as np
import pytest

from bfp.demo import anatomy
from bfp.demo.anatomy import SPACING_MM, Template
from bfp.errors import InputError


def test_the_tissues_fill_the_brain_and_leave_a_margin_of_nothing(template: Template) -> None:
    total = template.grey + template.white + template.fluid
    assert total.min() >= 0
    assert total.max() == pytest.approx(1, abs=1e-5)
    for axis in range(3):
        assert total.take([0, 1, 2, -3, -2, -1], axis).max() == 0


def test_the_volumes_are_those_of_a_human_brain(template: Template) -> None:
    grey, white, fluid = (
        float(share.sum()) * SPACING_MM**3 / 1e6 for share in (template.grey, template.white, template.fluid)
    )
    assert 0.7 < grey < 1.2  # litres
    assert 0.4 < white < 0.8
    assert 0.2 < fluid < 0.8


def test_the_template_lies_where_mni_space_says(template: Template) -> None:
    voxel_from_template = np.linalg.inv(template.template_from_voxel)

    def at(volume: np.ndarray, millimetres: tuple[float, float, float]) -> float:
        return float(volume[tuple(np.rint(voxel_from_template @ (*millimetres, 1))[:3].astype(int))])

    assert at(template.white, (28, -30, 30)) > 0.9  # corona radiata
    assert at(template.fluid, (-8, 10, 16)) > 0.9  # left lateral ventricle
    assert at(template.grey, (10, -18, 8)) > 0.5  # thalamus


def test_widening_looks_inwards_on_both_sides(template: Template) -> None:
    lengths_mm = np.linalg.norm(template.ventricle_push, axis=0)
    assert lengths_mm.max() == pytest.approx(1)
    to_the_right = template.ventricle_push[0]
    middle = len(to_the_right) // 2
    assert to_the_right[: middle - 7].max() > 0.1 > 0.01 > -to_the_right[: middle - 7].min()  # far left
    assert -to_the_right[middle + 7 :].min() > 0.1 > 0.01 > to_the_right[middle + 7 :].max()


def test_without_nilearn_the_message_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install nilearn"):
        anatomy.load_template()

"""Stores and encoders of a spec: the same arguments for every kind, and snapshots that stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from bfp.drivers.stores import check_encoder, encoder_arguments, open_stores, pin_inputs, warnings_of
from bfp.errors import InputError
from bfp.models.encoder import load
from bfp.specs import Finetune, Pretrain
from bfp.specs.fields import Where
from bfp.storage import place
from bfp.store import layout
from tests.store.makers import make_store

SHAPE = {"width": 32, "depth": 1, "heads": 2, "layer_scale": 0.5}
TASK = {"type": "classification", "target": "diagnosis", "classes": ["CN", "AD"]}


def test_every_kind_makes_the_encoder_that_its_spec_describes() -> None:
    told = {"name": "x", "store": "/nowhere", "encoder": "random:vit_small_patch14_dinov2", "encoder_shape": SHAPE}
    specs = [
        Pretrain.model_validate({"kind": "pretrain", **told}),
        Finetune.model_validate({"kind": "finetune", "task": TASK, **told}),
    ]
    made = [load(**encoder_arguments(spec, size_px=28)) for spec in specs]
    assert [encoder.description["layer_scale"] for encoder in made] == [0.5, 0.5]
    assert made[0].description["weights"] == made[1].description["weights"]


def test_a_run_that_has_begun_keeps_its_snapshots(tmp_path: Path) -> None:
    at = make_store(tmp_path / "store", sessions=4)
    begun, fresh = place(str(tmp_path / "begun")), place(str(tmp_path / "fresh"))
    pin_inputs(open_stores([at.uri], Where(), run=begun), Where(), run=begun)
    layout.take_snapshot(at, layout.latest_snapshot(at).snapshot.commits[:-1], cohorts=["made"])
    assert [store.snapshot for store in open_stores([at.uri], Where(), run=begun)] == [1]
    assert [store.snapshot for store in open_stores([at.uri], Where(), run=fresh)] == [2]
    pin_inputs(open_stores([at.uri], Where(), run=fresh), Where(), run=begun)
    assert [store.snapshot for store in open_stores([at.uri], Where(), run=begun)] == [1]


def test_a_list_of_subjects_that_changed_under_a_run_is_refused(tmp_path: Path) -> None:
    at, run, left_out = make_store(tmp_path / "store", sessions=4), place(str(tmp_path / "run")), tmp_path / "out.txt"
    where = Where(exclude_subjects=str(left_out))
    left_out.write_text("s0\n")
    pin_inputs(open_stores([at.uri], where, run=run), where, run=run)
    left_out.write_text("# the test set\ns0\n")
    assert open_stores([at.uri], where, run=run)
    left_out.write_text("s1\ns2\n")
    with pytest.raises(InputError, match=r"where\.exclude_subjects: .*out\.txt: 2 names more and 1 name fewer than"):
        open_stores([at.uri], where, run=run)


def test_names_of_a_list_that_match_nobody_are_told(tmp_path: Path) -> None:
    stores = open_stores([make_store(tmp_path / "store", sessions=4).uri], Where(), run=place(str(tmp_path / "run")))
    (tmp_path / "out.txt").write_text("sub-s00\nmade/s01\ns9\nsubs2\n")
    assert warnings_of(stores, Where(exclude_subjects=str(tmp_path / "out.txt"))) == [
        "where.exclude_subjects: no subject is called s9, subs2 (2 names of the list)"
    ]
    assert warnings_of(stores, Where()) == []


@pytest.mark.parametrize(
    ("encoder", "patch_px"),
    [("random:vit_small_patch14_dinov2", 14), ("timm:vit_large_patch16_224.augreg_in21k", 16)],
)
def test_the_patch_of_a_named_encoder_is_known(encoder: str, patch_px: int) -> None:
    assert check_encoder(encoder) == patch_px

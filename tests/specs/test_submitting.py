"""Submitting a name again: what may change."""

from __future__ import annotations

import pytest

from bfp.specs import load, loads
from bfp.specs.submitting import differences
from bfp.specs.template import template


def changed(kind: str, *overrides: str, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text(template(kind, schema="x"))
    return [entry.path for entry in differences(load(file), load(file, overrides=overrides))]


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("pretrain", "compute={workers: 4, precision: bf16}"),
        ("pretrain", "train.checkpoint_every=7"),
        ("pretrain", "train.keep_every=5000"),
        ("pretrain", "train.epochs=200"),
        ("ingest", "cohorts=[{name: my-cohort, bids: data/bids}, {name: new, bids: data/new}]"),
        ("ingest", "max_rejected=0.5"),
        ("infer", "cohorts=[{name: new, bids: data/new}, {name: my-cohort, bids: data/bids}]"),
        ("benchmark", "label_fractions=[0.1, 1.0]"),
        ("benchmark", "encoders.more=runs/more"),
        ("benchmark", "seeds=3"),
        ("finetune", "compute.batch_size=8"),
    ],
)
def test_how_a_run_is_run_and_what_extends_it_may_change(kind, override, tmp_path):
    assert changed(kind, override, tmp_path=tmp_path) == []


@pytest.mark.parametrize(
    ("kind", "override", "path"),
    [
        ("pretrain", "train.epochs=50", "train.epochs"),
        ("pretrain", "ssl.prototypes=5", "ssl.prototypes"),
        ("pretrain", "train.batch_size=32", "train.batch_size"),
        ("pretrain", "compute.gradient_accumulation=2", "compute.gradient_accumulation"),
        ("ingest", "cohorts=[{name: other, bids: data/bids}]", "cohorts"),
        ("ingest", "cohorts[0].bids=elsewhere", "cohorts"),
        ("ingest", "preprocessing.register=header", "preprocessing.register"),
        ("finetune", "folds=3", "folds"),
        ("finetune", "task={type: regression, target: age}", "task"),
        ("infer", "seed=1", "seed"),
        ("benchmark", "encoders={other: runs/other}", "encoders"),
    ],
)
def test_anything_else_makes_another_run(kind, override, path, tmp_path):
    assert changed(kind, override, tmp_path=tmp_path) == [path]


def test_how_often_it_is_probed_may_change_and_what_is_probed_may_not():
    text = "kind: pretrain\nname: a\nstore: stores/a\nprobe: {target: diagnosis}\n"
    before = loads(text, file="a.yaml")
    often, other = (
        loads(text, file="a.yaml", overrides=changes)
        for changes in (["probe.every=100", "probe.on_worse=stop"], ["probe.target=sex"])
    )
    assert differences(before, often) == []
    assert [entry.path for entry in differences(before, other)] == ["probe.target"]


def test_another_kind_is_another_run():
    ingest, infer = (loads(template(kind, schema="x"), file="a.yaml") for kind in ("ingest", "infer"))
    assert [(entry.old, entry.new) for entry in differences(ingest, infer)] == [("ingest", "infer")]

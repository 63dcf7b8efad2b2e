"""A spec from its file and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bfp.errors import SpecError
from bfp.specs import KINDS, Finetune, Ingest, Pretrain, dump, load, loads
from bfp.specs.presets import LENGTHS
from bfp.specs.template import template

CATALOGUE = sorted((Path(__file__).parents[2] / "jobs").rglob("*.yaml"))
FINETUNE = """
kind: finetune
name: a
store: store
encoder: {encoder}
labels: labels.csv
where: {{subjects: subjects.txt}}
task: {{type: classification, target: diagnosis, classes: [CN, AD]}}
"""


def test_the_catalogue_pretrains_for_as_long_as_its_preset_was_made_for():
    (spec,) = (load(file) for file in CATALOGUE if file.parent.name == "jobs" and file.stem == "pretrain")
    assert spec.train.model_dump(include={"epochs", "steps_per_epoch"}) == LENGTHS[spec.ssl.preset]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A spec in one folder, loaded from another."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_inputs_that_ship_with_a_spec_start_from_its_folder_and_outputs_from_the_working_one(folders):
    (folders / "specs" / "a.yaml").write_text(FINETUNE.format(encoder="runs/encoder"))
    spec = load("../specs/a.yaml")
    assert isinstance(spec, Finetune)
    assert spec.labels == str(folders / "specs" / "labels.csv")
    assert spec.where.subjects == str(folders / "specs" / "subjects.txt")
    assert spec.store == str(folders / "work" / "store")
    assert spec.encoder == str(folders / "work" / "runs" / "encoder")
    assert spec.output == str(folders / "work" / "runs"), "a default is made absolute too"


@pytest.mark.parametrize(
    ("encoder", "resolved"),
    [
        ("timm:vit_small_patch14_dinov2@w/a.safetensors", "timm:vit_small_patch14_dinov2@{specs}/w/a.safetensors"),
        ("timm:vit_small_patch14_dinov2", "timm:vit_small_patch14_dinov2"),
        ("meta:dinov2.pth", "meta:{specs}/dinov2.pth"),
        ("meta:s3://w/dinov2.pth", "meta:s3://w/dinov2.pth"),
        ("random:vit_small_patch14_dinov2", "random:vit_small_patch14_dinov2"),
        ("s3://brains/runs/a", "s3://brains/runs/a"),
        ("/runs/a:b", "/runs/a:b"),
    ],
)
def test_weights_ship_with_the_spec_and_uris_stay_as_they_are(folders, encoder, resolved):
    (folders / "specs" / "a.yaml").write_text(FINETUNE.format(encoder=encoder))
    assert load("../specs/a.yaml").encoder == resolved.format(specs=folders / "specs")


def test_sources_of_cohorts_start_where_they_should(folders):
    (folders / "specs" / "a.yaml").write_text(
        "kind: ingest\nname: a\nstore: s\ncohorts:\n"
        "  - {name: a, bids: data/a, labels: l.csv}\n"
        "  - {name: b, table: scans.csv}\n"
        "  - {name: c, glob: data/*.nii, pattern: '(?P<subject>a)(?P<modality>b)'}\n"
    )
    spec = load("../specs/a.yaml")
    assert isinstance(spec, Ingest)
    assert spec.cohorts[0].bids == str(folders / "work" / "data" / "a")
    assert spec.cohorts[0].labels == str(folders / "specs" / "l.csv")
    assert spec.cohorts[1].table == str(folders / "specs" / "scans.csv")
    assert spec.cohorts[2].glob == str(folders / "work" / "data" / "*.nii")


def test_overrides_and_name_are_applied_and_their_mistakes_named(folders):
    (folders / "specs" / "a.yaml").write_text("kind: pretrain\nname: a\nstore: s\n")
    spec = load("../specs/a.yaml", overrides=["train.epochs=3", "ssl.preset=dinov2-fast"], name="2024")
    assert isinstance(spec, Pretrain)
    assert (spec.name, spec.train.epochs, spec.ssl.prototypes) == ("2024", 3, 65536)
    with pytest.raises(
        SpecError, match=r"train\.epoch: 3\n    no such field; the nearest is epochs \(given by --set\)"
    ):
        load("../specs/a.yaml", overrides=["train.epoch=3"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_dumped_spec_loads_to_an_equal_one_from_any_folder(kind, folders, monkeypatch):
    spec = loads(template(kind, schema="x"), file="a.yaml")
    monkeypatch.chdir("/")
    assert loads(dump(spec), file="spec.yaml") == spec


@settings(deadline=None)
@given(classes=st.lists(st.text(max_size=12), min_size=2, max_size=4, unique=True))
def test_any_text_survives_dump_and_load(classes):
    spec = loads(template("finetune", schema="x"), file="a.yaml")
    changed = spec.model_copy(update={"task": spec.task.model_copy(update={"classes": classes})})
    assert loads(dump(changed), file="spec.yaml") == changed


@pytest.mark.parametrize("file", CATALOGUE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_spec_of_the_catalogue_is_valid_and_named_for_its_kind(file):
    assert load(file).kind == file.stem or file.stem not in KINDS  # a second spec of a kind has a name of its own


def test_the_catalogue_has_a_spec_of_every_kind():
    assert set(KINDS) <= {file.stem for file in CATALOGUE if file.parent.name == "jobs"}


def test_a_preset_gives_the_numbers_and_a_number_beside_it_counts():
    spec = loads("kind: pretrain\nname: a\nstore: s\nssl: {preset: dinov2-long, prototypes: 99}\n", file="a.yaml")
    assert isinstance(spec, Pretrain)
    assert (spec.ssl.prototypes, spec.ssl.bottleneck, spec.ssl.centring) == (99, 384, "sinkhorn")

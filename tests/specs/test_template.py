"""What `bfp init` writes."""

from __future__ import annotations

import re

import pytest

from bfp.errors import InputError
from bfp.specs import KINDS, loads
from bfp.specs.document import parse
from bfp.specs.preprocessing import Preprocessing
from bfp.specs.presets import LENGTHS, SSL_PRESETS, TRAINING_PRESETS
from bfp.specs.problems import models_in
from bfp.specs.template import template


def all_fields(model):
    for name, field in model.model_fields.items():
        yield field.alias or name, field
        for inner in models_in(field):
            yield from all_fields(inner)


@pytest.mark.parametrize("kind", KINDS)
def test_what_init_writes_is_valid_as_it_stands_and_has_every_field(kind):
    text = template(kind, schema="s.json")
    assert loads(text, file="a.yaml").kind == kind
    written = set(parse(text, file="a.yaml").value)
    assert written == {field.alias or name for name, field in KINDS[kind].model_fields.items()}
    assert text.startswith("# yaml-language-server: $schema=s.json\n")


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_says_what_it_means(kind):
    undescribed = [name for name, field in all_fields(KINDS[kind]) if not field.description]
    assert set(undescribed) <= {"kind", "type", "form"}, "tags explain themselves, nothing else does"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_without_a_default_has_an_example(kind):
    bare = [name for name, field in all_fields(KINDS[kind]) if field.is_required() and not field.examples]
    by_preset = {*SSL_PRESETS["brain"], *TRAINING_PRESETS["retfound"]}
    assert set(bare) - by_preset <= {"kind", "type", "form"}


def test_bounds_choices_and_examples_stand_beside_a_field():
    text = " ".join(template("ingest", schema="x").replace("#", "").split())
    assert "Pixel size of a stack, mm. Above 0, at most 20. spacing_mm: 1.0" in text
    assert "One of: none, header, rigid. register: rigid" in text
    assert re.search(r"Such as .*scans\.csv", text)


def test_a_preset_is_written_out_number_by_number():
    ssl = parse(template("pretrain", preset="dinov2-long", schema="x"), file="a.yaml").value["ssl"]
    assert ssl["prototypes"] == 131072
    assert set(SSL_PRESETS["dinov2-long"]) <= set(ssl)

    text = template("ingest", preset="braindino", schema="x")
    assert loads(text, file="a.yaml").preprocessing == Preprocessing.model_validate({"preset": "braindino"})


@pytest.mark.parametrize("preset", LENGTHS)
def test_a_published_preset_is_written_with_the_length_that_its_warm_ups_are_made_for(preset):
    spec = loads(template("pretrain", preset=preset, schema="x"), file="a.yaml")
    assert spec.train.model_dump(include={"epochs", "steps_per_epoch"}) == LENGTHS[preset]


@pytest.mark.parametrize(("kind", "preset"), [("pretrain", "dinov3"), ("ingest", "brain"), ("finetune", "brainfound")])
def test_a_preset_that_is_not_there_is_refused(kind, preset):
    with pytest.raises(InputError, match="--preset"):
        template(kind, preset=preset, schema="x")

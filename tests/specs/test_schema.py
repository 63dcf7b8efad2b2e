"""The published JSON Schemas are those of the models, and accept what bfp accepts."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from bfp.specs import KINDS
from bfp.specs.document import parse
from bfp.specs.schema import file_name, json_schema, schema_text
from bfp.specs.template import template

ROOT = Path(__file__).parents[2]
CATALOGUE = sorted((ROOT / "jobs").rglob("*.yaml"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_schema_is_that_of_the_model(kind):
    published = (ROOT / "schemas" / file_name(kind)).read_text(encoding="utf-8")
    assert published == schema_text(kind), "run `make schemas`"


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_is_one_and_accepts_what_init_writes(kind):
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(parse(template(kind, schema="x"), file="a.yaml").value)


@pytest.mark.parametrize("file", CATALOGUE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_spec_of_the_catalogue_names_its_schema_and_fits_it(file):
    text = file.read_text(encoding="utf-8")
    named = re.match(r"# yaml-language-server: \$schema=(\S+)", text)
    assert named is not None
    value = parse(text, file=file.name).value
    assert (file.parent / named[1]).resolve() == ROOT / "schemas" / file_name(value["kind"])
    jsonschema.Draft202012Validator(json_schema(value["kind"])).validate(value)


def test_a_misspelt_key_does_not_fit_the_schema():
    value = parse(template("pretrain", schema="x"), file="a.yaml").value
    with pytest.raises(jsonschema.ValidationError, match="epoch"):
        jsonschema.Draft202012Validator(json_schema("pretrain")).validate(value | {"train": {"epoch": 3}})

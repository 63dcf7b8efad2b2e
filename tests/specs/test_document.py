"""YAML as people write it: safe, bounded, by the rules of YAML 1.2, every value with its line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bfp.errors import SpecError
from bfp.specs.document import MAX_BYTES, flow, override, parse


def read(text):
    return parse(text, file="a.yaml").value


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        (".5", 0.5),
        ("-2", -2),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("12:30:15", "12:30:15"),
        ("2024-01-31", "2024-01-31"),
        ("1.2.3", "1.2.3"),
        ("-.inf", float("-inf")),
        ("'5'", "5"),
        ('"true"', "true"),
        ("s3://brains/a", "s3://brains/a"),
        ("<<", "<<"),
    ],
)
def test_a_scalar_means_what_yaml_1_2_says(written, meant):
    value = read(f"a: {written}")["a"]
    assert value == meant
    assert type(value) is type(meant)


def test_every_key_and_item_knows_its_line_and_column():
    document = parse("a: 1\nb:\n  c: [x,\n      y]\n", file="a.yaml")
    assert document.marks[("b", "c")] == (3, 3)
    assert document.marks[("b", "c", 1)] == (4, 7)


def test_a_bomb_of_aliases_is_refused_at_once():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(20)
    )
    began = time.process_time()
    document = parse(bomb, file="a.yaml")
    assert time.process_time() - began < 1
    assert any("aliases" in problem.expected for problem in document.problems)


@pytest.mark.parametrize("bracket", ["[", "{a: ", "- "])
def test_what_is_nested_too_deep_is_refused(bracket):
    with pytest.raises(SpecError, match="nest"):
        read(bracket * 10_000)


def test_what_is_too_large_is_refused():
    with pytest.raises(SpecError, match="larger than 1 MiB"):
        read("a: " + "x" * MAX_BYTES)


def test_a_value_is_replaced_and_groups_on_the_way_are_made():
    document = parse("cohorts: [{name: a}, {name: b}]\n", file="a.yaml")
    for assignment in ("train.epochs=3", "cohorts[1].name=c", "where={cohorts: [a]}", "seed="):
        document = override(document, assignment)
    assert document.value == {
        "cohorts": [{"name": "a"}, {"name": "c"}],
        "train": {"epochs": 3},
        "where": {"cohorts": ["a"]},
        "seed": None,
    }


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.epochs", "expected FIELD=VALUE"),
        ("=3", "expected FIELD=VALUE"),
        ("a..b=3", "expected FIELD=VALUE"),
        ("name.first=x", "has no fields"),
        ("cohorts[4].name=x", "the spec has no cohorts"),
        ("a=[1", "not YAML"),
        ("a=!!python/name:os.system x", "tags"),
    ],
)
def test_an_override_that_cannot_be_is_explained(assignment, said):
    with pytest.raises(SpecError, match=said):
        override(parse("name: a\ncohorts: [{name: a}]", file="a.yaml"), assignment)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc-", min_size=1, max_size=6), PLAIN, min_size=1, max_size=3))
def test_what_a_message_shows_reads_back_as_the_value(value):
    assert read(flow(value)) == value

"""Bad specs are files, each beside the exact message it earns."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bfp.errors import InputError, SpecError
from bfp.specs import KINDS, load, loads
from bfp.specs.template import template

BAD = Path(__file__).parent / "bad"
WELL_FORMED = {kind: yaml.safe_load(template(kind, schema="x")) for kind in KINDS}


@pytest.mark.parametrize("file", sorted(path.name for path in BAD.glob("*.yaml")))
def test_a_bad_spec_earns_exactly_its_message(file, monkeypatch):
    monkeypatch.chdir(BAD)
    with pytest.raises(SpecError) as caught:
        load(file)
    assert f"{caught.value}\n" == Path(file).with_suffix(".txt").read_text()


def test_the_mistakes_of_a_spec_come_in_the_order_of_its_lines():
    with pytest.raises(SpecError) as caught:
        load(BAD / "wrong_values.yaml")
    lines = [problem.line for problem in caught.value.problems]
    assert lines == sorted(lines)


def test_a_file_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "pretrain.yaml").write_text("kind: pretrain")
    with pytest.raises(InputError, match=r"no such file; the nearest is .*pretrain\.yaml"):
        load(tmp_path / "pretrian.yaml")


def test_a_folder_and_a_file_that_is_no_text_are_refused(tmp_path):
    (tmp_path / "scan.yaml").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(InputError, match="a folder"):
        load(tmp_path)
    with pytest.raises(SpecError, match="not UTF-8"):
        load(tmp_path / "scan.yaml")


def _paths(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, entry in entries for path in [(*above, key), *_paths(entry, (*above, key))]]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("abNO: -[]{}", max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abname", max_size=4), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_whatever_is_written_is_a_spec_or_a_message(data, kind):
    spec = copy.deepcopy(WELL_FORMED[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(_paths(spec)))
        holder = spec
        for key in above:
            holder = holder[key]
        change = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            holder[last] = data.draw(PLAIN)
        elif change == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[data.draw(st.text("abnme", min_size=1, max_size=5))] = data.draw(PLAIN)
        if not _paths(spec):
            break
    with contextlib.suppress(SpecError):
        loads(yaml.safe_dump(spec), file="spec.yaml")

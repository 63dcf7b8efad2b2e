from __future__ import annotations

import json

import pytest

from bfp.errors import InputError
from bfp.reports.blocks import Results, results_from_json
from tests.reports.makers import BLOCKS


def test_results_come_back_from_json_as_they_were() -> None:
    results = Results({"auroc": None, "stacks": 1932, "store": "s3://brains"}, BLOCKS)
    again = results_from_json(json.loads(json.dumps(results.as_json())))
    assert json.dumps(again.as_json()) == json.dumps(results.as_json())
    assert [type(block) for block in again.blocks] == [type(block) for block in BLOCKS]


def test_a_block_of_another_version_is_refused_with_its_name() -> None:
    with pytest.raises(InputError, match="unknown block 'hologram'"):
        results_from_json({"figures": {}, "blocks": [{"block": "hologram", "title": "x"}]})

"""The JSON Schemas of the specs, for editors and for other programs: generated, never written by hand.

`bfp schema --all schemas` writes them as schemas/<kind>.schema.json.
"""

from __future__ import annotations

import json
from typing import Any

from bfp.specs.kinds import KINDS

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind's spec."""
    model = KINDS[kind]
    return {"$schema": DIALECT, "$id": file_name(kind), **model.model_json_schema(by_alias=True)}


def schema_text(kind: str) -> str:
    """The JSON Schema of a kind's spec as the text of its file."""
    return json.dumps(json_schema(kind), indent=2, ensure_ascii=False) + "\n"


def file_name(kind: str) -> str:
    return f"{kind}.schema.json"

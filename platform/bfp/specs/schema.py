"""The JSON Schemas of the specs, for editors and for other programs: generated, never written by hand.

python -m bfp.specs.schema schemas      writes schemas/<kind>.schema.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
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


def write_schemas(folder: Path) -> list[Path]:
    """Write the schema of every kind into a folder, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in KINDS:
        path = folder / file_name(kind)
        path.write_text(schema_text(kind), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))

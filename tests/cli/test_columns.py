"""The published columns are those of the tables that bfp writes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bfp.cli.columns import TABLES, columns_text, file_name
from tests.conftest import CHECKOUT
from tests.store.makers import make_store


@pytest.mark.parametrize("table", TABLES)
def test_the_published_columns_are_those_of_the_arrow_schema(table: str) -> None:
    published = (CHECKOUT / "schemas" / file_name(table)).read_text(encoding="utf-8")
    assert published == columns_text(table), "run `make schemas`"


def test_a_store_holds_the_columns_that_are_published(tmp_path: Path) -> None:
    make_store(tmp_path, sessions=2, size_px=224, seed=0)
    for table in (name for name in TABLES if name.startswith("store-")):
        for part in (tmp_path / table.removeprefix("store-")).glob("*.parquet"):
            found = [(field.name, str(field.type), field.nullable) for field in pq.read_schema(part)]
            columns = json.loads(columns_text(table))["columns"]
            assert found == [(column["name"], column["type"], column["nullable"]) for column in columns]

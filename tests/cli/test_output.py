"""Tables on screens of any width."""

from __future__ import annotations

import pytest

from bfp.cli import output
from bfp.cli.output import table, write

COLUMNS = ["run", "kind", "outcome", "started", "ran for", "came to"]
ROW = ["pretrain", "pretrain", "interrupted", "2026-03-01", "12 min", "600 steps"]


@pytest.mark.parametrize("width", [40, 60, 68, 80, 160])
def test_no_word_of_a_table_is_broken_however_narrow_the_screen(width, capsys, monkeypatch):
    monkeypatch.setattr(output, "FILE_WIDTH", width)
    write([table("Runs", COLUMNS, [ROW, ROW])])
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines()) <= width
    for word in " ".join([*COLUMNS, *ROW]).split():
        assert word in said

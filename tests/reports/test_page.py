from __future__ import annotations

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bfp.errors import InputError, Interrupted, JobFailed
from bfp.reports import write_page
from bfp.reports.blocks import Curves, Facts, Histogram, IntervalRow, Intervals, Picture, Results, Table, Text
from bfp.reports.markup import VOID
from bfp.reports.page import render
from bfp.runs import Run, RunFolder
from bfp.storage import Place
from tests.reports.makers import BLOCKS, SPEC, small_run


class _Page(HTMLParser):
    """Headings, all text, and every element with its attributes; refuses what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
            if self.open[-1] == "h2":
                self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def test_a_finished_run_shows_its_blocks_in_their_order_between_outcome_and_provenance(tmp_path: Path) -> None:
    page = _Page(render(small_run(tmp_path / "small")))
    blocks = [block.title for block in BLOCKS]
    assert page.headings == [*blocks, "Warnings", "What took how long", "Run with", "Figures", "Spec"]
    assert "✓ Done" in page.text
    assert "20 steps" in page.text
    assert "the teacher sleeps (2 times)" in page.text
    assert "torch 2." in page.text


def test_the_page_stands_in_the_run_folder_and_needs_nothing_else(tmp_path: Path) -> None:
    written = write_page(small_run(tmp_path / "small"))
    assert written == Place(str(tmp_path / "small")) / "report" / "index.html"
    page = _Page(written.read().decode())
    for element, attributes in page.elements:
        assert element not in ("script", "link", "iframe", "object", "base")
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "xlink:href", "action", "data"):
                assert value is not None
                assert value.startswith(("data:image/png;base64,", "#")), (element, name, value[:60])
            assert not name.startswith("on")
    assert not re.search(r"url\((?!#)|@import", written.read().decode())
    policy = next(
        found["content"] for _, found in page.elements if found.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_links_inside_the_page_and_its_charts_lead_to_one_place_each(tmp_path: Path) -> None:
    text = render(small_run(tmp_path / "small"))
    names = re.findall(r' id="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(names)


def test_the_same_run_folder_gives_the_same_page(tmp_path: Path) -> None:
    run = small_run(tmp_path / "small")
    assert render(run) == render(RunFolder(run.folder))


NAME = "<script>alert('sub-01')</script>&amp;"


def test_whatever_a_cohort_calls_its_subjects_is_text(tmp_path: Path) -> None:
    results = Results(
        {NAME: NAME},
        [
            Facts(NAME, [(NAME, NAME)]),
            Table(NAME, [NAME], [[NAME]], note=NAME),
            Curves(NAME, [NAME, "loss"], NAME),
            Intervals(NAME, [IntervalRow(NAME, 1.0, 0.5, 2.0)], NAME, note=NAME),
            Histogram(NAME, [1.0], NAME, NAME),
            Picture(NAME, "pictures/qc.png", NAME),
            Text(NAME, [NAME]),
        ],
    )
    folder = tmp_path / "small"
    with Run(Place(str(folder)), spec_yaml=f"name: {NAME}\n", kind="infer", version=NAME) as run:
        run.phase(NAME, total=2, unit=NAME)
        run.progress(1)
        run.figures(0, {NAME: 1.0, "loss": 2.0})
        run.warn(NAME)
        run.note(NAME)
        run.result(results.as_json())
    text = render(RunFolder(Place(str(folder))))
    assert "<script" not in text
    assert _Page(text).headings.count(NAME) == 7


def test_a_failed_run_says_first_what_failed_where_and_what_to_do(tmp_path: Path) -> None:
    run = small_run(tmp_path / "small", error=JobFailed("fold 3 holds one class only\nGive fewer folds."))
    page = _Page(render(run))
    assert page.headings == ["What failed", "Warnings", "What took how long", "Run with", "Spec"]
    assert "✕ Failed" in page.text
    assert "fold 3 holds one class only Give fewer folds." in page.text
    assert "It was at “training” (JobFailed)." in page.text
    assert "once what failed is put right, submit the same spec again" in page.text


def test_a_run_that_was_killed_and_came_back_tells_of_both_submissions(tmp_path: Path) -> None:
    run = small_run(tmp_path / "small", error=JobFailed("the disk is full"))
    assert "What failed" in _Page(render(run)).headings
    page = _Page(render(small_run(tmp_path / "small")))
    assert "What failed" not in page.headings
    assert "in 2 submissions" in page.text
    assert "Submission 1 failed: the disk is full" in page.text
    assert "Submission 2:" in page.text


def test_a_run_that_was_killed_is_called_lost(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    small_run(folder)
    events = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.jsonl").write_text("\n".join(line for line in events if '"end"' not in line))
    page = _Page(render(RunFolder(Place(str(folder)))))
    assert page.headings[0] == "What failed"
    assert "? Lost" in page.text
    assert "It was at “training”. What was committed stands" in page.text


def test_a_run_that_was_asked_to_stop_is_not_called_failed(tmp_path: Path) -> None:
    page = _Page(render(small_run(tmp_path / "small", error=Interrupted("step 20 is saved"))))
    assert page.headings[0] == "Why it ended early"
    assert "◼ Interrupted" in page.text
    assert "What was committed stands: submit the same spec again" in page.text


def test_a_page_written_while_the_run_goes_on_says_so(tmp_path: Path) -> None:
    with Run(Place(str(tmp_path / "small")), spec_yaml=SPEC, kind="pretrain", version="0.1.0") as run:
        page = _Page(render(run))
    assert "▶ Still running" in page.text
    assert page.headings == ["Run with", "Spec"]


def test_an_undefined_figure_is_called_undefined(tmp_path: Path) -> None:
    table = Table("Per fold", ["fold", "AUROC"], [[1, 0.8], [2, None]])
    page = _Page(render(small_run(tmp_path / "small", results=Results({}, [table]))))
    assert "0.800" in page.text
    assert "undefined" in page.text


def test_a_logged_figure_that_was_no_number_leaves_a_gap_and_not_a_page_unwritten(tmp_path: Path) -> None:
    folder = Place(str(tmp_path / "small"))
    with Run(folder, spec_yaml=SPEC, kind="pretrain", version="0.1.0") as run:
        for step, loss in enumerate((9.0, math.nan, 7.0)):
            run.figures(step, {"loss": loss})
        run.result(Results({}, [Curves("Losses", ["loss"], "loss, nats")]).as_json())
    assert "loss from 9.00 to 7.00" in render(RunFolder(folder))


def test_what_stands_in_backticks_is_set_as_code_and_is_still_escaped(tmp_path: Path) -> None:
    said = Text("Methods", ["`register: <rigid>` moved it", "a lone ` stays"])
    text = render(small_run(tmp_path / "small", results=Results({}, [said])))
    assert "<p><code>register: &lt;rigid&gt;</code> moved it</p><p>a lone ` stays</p>" in text


def test_a_table_without_rows_is_its_note_or_none(tmp_path: Path) -> None:
    tables = [Table("Rejected", ["reason"], [], note="Nothing was."), Table("Flagged", ["why"], [])]
    page = _Page(render(small_run(tmp_path / "small", results=Results({}, [*tables]))))
    assert "RejectedNothing was.FlaggedNone." in page.text


def test_a_picture_that_is_gone_is_missed_by_name(tmp_path: Path) -> None:
    lost = Picture("Slices", "pictures/gone.png", "Nothing.")
    page = _Page(render(small_run(tmp_path / "small", results=Results({}, [lost]))))
    assert "pictures/gone.png is no longer in the run folder" in page.text


def test_every_picture_and_chart_says_what_it_shows(tmp_path: Path) -> None:
    page = _Page(render(small_run(tmp_path / "small")))
    pictures = [found for element, found in page.elements if element == "img"]
    charts = [found for _, found in page.elements if found.get("role") == "img"]
    assert [len(pictures), len(charts)] == [1, 8]
    assert pictures[0]["alt"] == "Slices. Left of the picture is the patient's left."
    assert pictures[0]["width"] == str(2 * 128 + 4)
    assert charts[0]["aria-label"] == "Losses. loss, nats by step: loss from 9.00 to 4.25; dino from 5.00 to 2.62."


def test_a_folder_without_a_run_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run is there"):
        write_page(RunFolder(Place(str(tmp_path / "nothing"))))
    assert not (tmp_path / "nothing").exists()


def test_the_light_commands_can_import_reports_without_numpy_or_matplotlib() -> None:
    code = "import sys, bfp.reports; sys.exit(bool({'numpy', 'matplotlib', 'pyarrow', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

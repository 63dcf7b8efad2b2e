"""The page of a run: <run>/report/index.html, one file that needs nothing else, no network and no script.

It is made from what stands in the run folder (spec.yaml, events.jsonl, the logged figures, results.json, pictures) and
from nothing else, so that it can be made again at any time, of a run that failed early too, and comes out the same.
From top to bottom: what ran and how it ended; what failed; the driver's blocks in their order; warnings; what took how
long; the spec; what it was run with.

`markup` escapes, `figures` draws, page.css sets: this module says what stands where.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from datetime import datetime
from importlib import resources
from typing import NamedTuple

from bfp.errors import InputError
from bfp.reports.blocks import (
    Bars,
    Block,
    Cell,
    Curves,
    Facts,
    Histogram,
    Intervals,
    Picture,
    Reliability,
    Results,
    Roc,
    Scatter,
    Table,
    Text,
    Trends,
    results_from_json,
)
from bfp.reports.headline import headline
from bfp.reports.history import History, Phase, Submission, tell
from bfp.reports.markup import Markup, join, tag
from bfp.reports.numbers import cell_text, duration_text, number_text
from bfp.runs import RunFolder
from bfp.storage import Place
from bfp.words import counted

NARROW_CHARACTERS = 44  # a table no wider than this shares its row with a neighbour
LONG_CHARACTERS = 40  # a cell of more is given room for a line, however narrow the screen

OUTCOMES = {
    "done": "Done",
    "failed": "Failed",
    "interrupted": "Interrupted",
    "running": "Still running",
    "lost": "Lost",
}
OUTCOME_MARKS = {"done": "✓", "failed": "✕", "interrupted": "◼", "running": "▶", "lost": "?"}

# the browser itself refuses whatever would have to be fetched
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Section(NamedTuple):
    """A part of the page under a heading of its own; `half` ones may stand side by side."""

    title: str
    body: Markup
    half: bool = False
    name: str = ""  # what a link jumps to


def write_page(run: RunFolder) -> Place:
    """Write the page of a run, and say where it is. Raises InputError where there is no run."""
    page = run.folder / "report" / "index.html"
    page.write(render(run).encode())
    return page


def render(run: RunFolder) -> str:
    """The page as text; the same run folder gives the same text."""
    history = tell(run.events())
    spec = run.spec_text()
    if spec is None and not history.submissions:
        raise InputError(f"{run.folder}: no run is there (neither spec.yaml nor events.jsonl)")
    results = results_from_json(run.results())
    outcome = run.outcome()
    sections = [
        *_failed(history, outcome),
        *_blocks(results, run),
        *_warnings(history),
        *_timeline(history),
        *_provenance(history, results),
        *_spec(spec),
    ]
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{run.name}: {OUTCOMES[outcome].lower()} ({history.kind or 'run'}, bfp)"),
        tag("style", Markup(resources.files("bfp.reports").joinpath("page.css").read_text("utf-8"))),
    )
    body = join(
        _header(run.name, history, outcome, results),
        tag("main", *(_section(section) for section in sections)),
        tag("footer", f"Made by bfp from the files of the run folder {run.folder}."),
    )
    return f"<!doctype html>\n{tag('html', tag('head', head), tag('body', body), lang='en')}\n"


# the parts, from top to bottom --------------------------------------------------------------------------------------


def _header(name: str, history: History, outcome: str, results: Results) -> Markup:
    came_to = headline(history.kind, results.figures)
    warnings = len(history.warnings)
    links = [tag("a", counted(warnings, "warning"), href="#warnings")] if warnings else []
    return tag(
        "header",
        tag("p", f"bfp {history.kind}".strip(), class_="kind"),
        tag("h1", name),
        tag(
            "p",
            tag("span", f"{OUTCOME_MARKS[outcome]} {OUTCOMES[outcome]}", class_=f"outcome {outcome}"),
            " ",
            *_when(history, outcome),
            *(piece for link in links for piece in (" · ", link)),
        ),
        *([tag("p", came_to, class_="headline")] if came_to else []),
    )


def _when(history: History, outcome: str) -> list[str]:
    if not history.submissions:
        return ["before anything was said"]
    started = history.submissions[0].started
    pieces = [_date(started), f", took {duration_text(history.seconds)}"]
    if outcome == "running":
        pieces[1] = f", {duration_text(history.seconds)} so far"
    if len(history.submissions) > 1:
        pieces.append(f" in {len(history.submissions)} submissions")
    return pieces


def _failed(history: History, outcome: str) -> list[Section]:
    """Why the last submission did not come to its end, where it was, and what now."""
    last = history.submissions[-1] if history.submissions else None
    at = f"It was at “{last.phases[-1].name}”." if last and last.phases else "It was before its first phase."
    failure = last.failure if last else None
    before = ""
    if outcome == "failed" and failure:
        before = "once what failed is put right, "
        title, message, at = "What failed", failure.message or failure.cause, f"{at[:-1]} ({failure.cause})."
    elif outcome == "lost":
        title, message = "What failed", "The process ended without a word: it was killed, or the machine went down."
    elif outcome == "interrupted":
        title, message = "Why it ended early", "It was asked to stop, and stopped."
    else:
        return []
    after = f"{at} What was committed stands: {before}submit the same spec again to go on from there."
    return [Section(title, tag("div", tag("pre", message, class_="message"), tag("p", after), class_="failure"))]


def _blocks(results: Results, run: RunFolder) -> list[Section]:
    points: dict[str, list[tuple[int, float]]] = {}
    if any(isinstance(block, Curves) for block in results.blocks):
        for row in run.metrics():
            if row["value"] is not None:  # it was no number
                points.setdefault(row["name"], []).append((row["step"], row["value"]))
    return [_block(block, points, run) for block in results.blocks]


def _block(block: Block, points: dict[str, list[tuple[int, float]]], run: RunFolder) -> Section:
    match block:
        case Facts():
            return Section(block.title, _facts(block.rows), half=True)
        case Table():
            table = _table(block.title, block.columns, block.rows) if block.rows else Markup("")
            note = block.note or ("" if block.rows else "None.")
            return Section(block.title, join(table, _note(note)), half=_is_narrow(block))
        case Curves() | Intervals() | Bars() | Trends() | Roc() | Reliability() | Scatter() | Histogram():
            from bfp.reports import figures  # matplotlib takes half a second, and a page without charts needs none

            chart = figures.draw(block, points)
            says = f"{block.title}. {chart.says}"
            drawing = tag("div", Markup(chart.svg), class_="chart", role="img", aria_label=says)
            note = f"{block.note} {_how_to_read(block)}".strip()
            return Section(block.title, tag("figure", drawing, _caption(note)), half=True)
        case Picture():
            return Section(block.title, tag("figure", _picture(block, run), _caption(block.caption)))
        case Text():
            return Section(block.title, join(*(tag("p", _prose(paragraph)) for paragraph in block.paragraphs)))


def _is_narrow(table: Table) -> bool:
    lines = [table.columns, *([cell_text(cell) for cell in row] for row in table.rows)]
    widest = [max(len(line[index]) for line in lines) + 2 for index in range(len(table.columns))]
    return sum(widest) <= NARROW_CHARACTERS


def _how_to_read(block: Block) -> str:
    if isinstance(block, Bars | Trends):
        return (
            "Lines on the bars: 95 % intervals; rings: single folds."
            if isinstance(block, Bars)
            else ("Upright lines: 95 % intervals.")
        )
    if isinstance(block, Reliability):
        return "Bars: 95 % intervals; dashed: what is said is what is seen."
    if isinstance(block, Roc) and any(curve.rates for curve in block.curves):
        return "Band: 95 % interval of the true positive rate at each false positive rate by itself; dashed: guessing."
    if not isinstance(block, Intervals):
        return ""
    said = ["Bars: 95 % intervals"]
    if any(row.dots for row in block.rows):
        said.append("rings: the single values behind them")
    if block.reference is not None:
        said.append(f"dashed, at {block.reference:g}: no effect")
    return f"{'; '.join(said)}."


def _picture(block: Picture, run: RunFolder) -> Markup:
    file = run.folder / block.file
    if not file.exists():
        return tag("p", f"The picture {block.file} is no longer in the run folder.", class_="undefined")
    png = file.read()
    width, height = struct.unpack(">II", png[16:24])  # the PNG's first chunk, IHDR
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = tag("img", src=source, width=width, height=height, alt=f"{block.title}. {block.caption}")
    return _scroll(image, block.title)


def _warnings(history: History) -> list[Section]:
    earlier = [
        f"Submission {number} failed: {submission.failure.message}"
        for number, submission in enumerate(history.submissions[:-1], start=1)
        if submission.failure
    ]
    said = [text if times == 1 else f"{text} ({times} times)" for text, times in history.warnings.items()]
    sections = []
    if earlier or said:
        sections.append(Section("Warnings", _list([*earlier, *said]), name="warnings"))
    if history.notes:
        sections.append(Section("Notes", _list(list(history.notes))))
    return sections


def _timeline(history: History) -> list[Section]:
    """What took how long: a row for each phase, with a bar where in its submission it lay."""
    if not any(submission.phases for submission in history.submissions):
        return []
    many = len(history.submissions) > 1
    rows = []
    for number, submission in enumerate(history.submissions, start=1):
        if many:
            ended = OUTCOMES.get(submission.outcome or "", "ended without a word").lower()
            after = f", {ended} after {duration_text(submission.seconds)}"
            title = join(f"Submission {number}: ", _date(submission.started), after)
            rows.append(tag("tr", tag("th", title, colspan=4, scope="rowgroup")))
        rows += [_phase_row(phase, submission) for phase in submission.phases]
    columns = ("phase", "done", "took", "when")
    numeric = (False, True, True, False)
    return [Section("What took how long", _framed_table("What took how long", columns, numeric, rows))]


def _phase_row(phase: Phase, submission: Submission) -> Markup:
    done = "" if phase.done is None else f"{number_text(phase.done)} {phase.unit}".strip()
    if phase.total is not None and phase.done is not None and phase.done < phase.total:
        done = f"{number_text(phase.done)} of {number_text(phase.total)} {phase.unit}".strip()
    whole = max(submission.seconds, 1e-9)
    place = f"margin-left:{100 * phase.after_s / whole:.1f}%;width:{max(100 * phase.seconds / whole, 0.5):.1f}%"
    return tag(
        "tr",
        tag("th", phase.name, scope="row"),
        tag("td", done, class_="number"),
        tag("td", duration_text(phase.seconds), class_="number"),
        tag("td", tag("div", style=place, class_="bar"), class_="when"),
    )


def _provenance(history: History, results: Results) -> list[Section]:
    """With which versions it was run, and every figure for those who want to check one."""
    sections = []
    if history.submissions:
        versions = dict.fromkeys(submission.version for submission in history.submissions)
        packages = dict(history.submissions[-1].environment)
        rows: list[tuple[str, Cell]] = [("bfp", ", then ".join(versions))]
        rows += [(name, packages.pop(name)) for name in ("python", "system") if name in packages]
        if packages:
            rows.append(("packages", ", ".join(f"{name} {version}" for name, version in packages.items())))
        sections.append(Section("Run with", _facts(rows), half=True))
    if results.figures:
        figures = [(name, value) for name, value in results.figures.items()]
        folded = tag("details", tag("summary", f"{len(figures)} figures, as in results.json"), _facts(figures))
        sections.append(Section("Figures", folded, half=True))
    return sections


def _spec(spec: str | None) -> list[Section]:
    if spec is None:
        return []
    folded = tag("details", tag("summary", "spec.yaml, as resolved: submit it to run this again"), tag("pre", spec))
    return [Section("Spec", folded)]


# their pieces -------------------------------------------------------------------------------------------------------


def _section(section: Section) -> Markup:
    kind = "half" if section.half else "whole"
    name = {"id": section.name} if section.name else {}
    return tag("section", tag("h2", section.title), section.body, class_=kind, **name)


def _facts(rows: Sequence[tuple[str, Cell]]) -> Markup:
    return tag("dl", *(tag("div", tag("dt", name), _value("dd", value)) for name, value in rows))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Markup:
    """A column of figures alone, empty cells aside, is set to the right, its heading too."""
    filled = [[row[index] for row in rows if row[index] not in (None, "")] for index in range(len(columns))]
    numeric = [bool(cells) and not any(isinstance(cell, str) for cell in cells) for cells in filled]
    lines = [
        tag("tr", *(_value("td", cell, number=right) for cell, right in zip(row, numeric, strict=True))) for row in rows
    ]
    return _framed_table(title, columns, numeric, lines)


def _framed_table(title: str, columns: Sequence[str], numeric: Sequence[bool], lines: Sequence[Markup]) -> Markup:
    headings = [
        tag("th", column, scope="col", **({"class_": "number"} if right else {}))
        for column, right in zip(columns, numeric, strict=True)
    ]
    table = tag("table", tag("thead", tag("tr", *headings)), tag("tbody", *lines))
    return _scroll(table, title)


def _value(name: str, cell: Cell, *, number: bool = False) -> Markup:
    text = cell_text(cell)
    holds = {"number": number, "undefined": cell is None, "long": len(text) > LONG_CHARACTERS}
    kinds = " ".join(kind for kind, is_so in holds.items() if is_so)
    return tag(name, _prose(text), **({"class_": kinds} if kinds else {}))


def _scroll(content: Markup, title: str) -> Markup:
    """A box of its own to scroll in, by keyboard too, so that the page never gets wider than the screen."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=title)


def _prose(text: str) -> Markup:
    """Text in which `this` is code, as in bfp's messages."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return join(text)
    return join(*(tag("code", piece) if index % 2 else piece for index, piece in enumerate(pieces)))


def _list(entries: Sequence[str]) -> Markup:
    return tag("ul", *(tag("li", _prose(entry)) for entry in entries))


def _caption(text: str) -> Markup:
    return tag("figcaption", _prose(text)) if text else Markup("")


def _note(text: str) -> Markup:
    return tag("p", _prose(text), class_="note") if text else Markup("")


def _date(moment: datetime) -> Markup:
    text = f"{moment.day} {moment:%B %Y, %H:%M} UTC"
    return tag("time", text, datetime=moment.isoformat(timespec="seconds"))

"""Looking at a run: its status, results, events and model."""

from __future__ import annotations

import json
import time
import webbrowser
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp.cli.blocks import render
from bfp.cli.display import Progress, event_line
from bfp.cli.output import grid, shown, table
from bfp.cli.runs import Status, local_time, status_of, title
from bfp.errors import InputError
from bfp.models.folders import CARD, WEIGHTS, encoder_folder, read_config
from bfp.reports.blocks import Results, results_from_json
from bfp.reports.history import tell
from bfp.reports.numbers import duration_text
from bfp.runs import RunFolder
from bfp.storage import Place

if TYPE_CHECKING:
    from rich.console import RenderableType

FOLLOW_EVERY_S = 1.0


def status_text(status: Status, *, on: str = "") -> Iterator[RenderableType]:
    """The status of a run, and the command that comes next. on: the cluster that it is on."""
    yield f"{title(status.kind, status.name)}: {status.outcome}" + (f" ({status.headline})" if status.headline else "")
    rows = [("started", local_time(status.started)), ("ran for", duration_text(status.seconds))]
    if status.at and status.outcome == "running":
        at = Progress(status.at["phase"], total=status.at["total"], unit=status.at["unit"], now=0.0)
        if "done" in status.at:
            at.hear(status.at, now=0.0)
        rows.append(("now", ", ".join([at.phase, *at.words()])))
    if status.said:
        rows.append(("because", status.said))
    if status.holder:
        rows.append(("process", f"{status.holder['pid']} on {status.holder['host']}"))
    yield grid(rows)
    if status.outcome == "running" and not on:
        yield f"  follow  bfp logs {shown(status.run)} --follow\n  stop    bfp stop {shown(status.run)}"
    elif status.outcome == "done":
        yield f"  bfp show {shown(status.run)}"
    elif status.outcome != "running":
        there = f" --on {on}" if on else ""
        yield f"  submit its spec again to go on: bfp submit {shown(status.run / 'spec.yaml')}{there}"


def runs_text(runs: list[Status]) -> Iterator[RenderableType]:
    """One line a run."""
    rows = (
        [
            run.name,
            run.kind,
            run.outcome,
            local_time(run.started),
            duration_text(run.seconds),
            run.headline or run.said.partition("\n")[0],
        ]
        for run in runs
    )
    yield table("", ["run", "kind", "outcome", "started", "ran for", "came to"], rows)


class Outcome(NamedTuple):
    """What `bfp show` shows of a run."""

    status: Status
    figures: dict[str, Any]
    blocks: list[dict[str, Any]]
    warnings: list[str]
    report: Place


def outcome_of(run: RunFolder) -> Outcome:
    """What a run came to."""
    results = run.results()
    warnings = list(tell(run.events()).warnings)
    page = run.folder / "report" / "index.html"
    return Outcome(status_of(run), results.get("figures", {}), results.get("blocks", []), warnings, page)


def outcome_text(outcome: Outcome) -> Iterator[RenderableType]:
    """A run's results as text."""
    yield from status_text(outcome.status)
    results: Results = results_from_json({"figures": outcome.figures, "blocks": outcome.blocks})
    yield from render(results.blocks, run=outcome.status.run, metrics=RunFolder(outcome.status.run).metrics())
    for warning in outcome.warnings:
        yield f"warning: {warning}"
    if outcome.report.exists():
        yield f"report: {shown(outcome.report)}"


def log_lines(run: RunFolder, *, follow: bool, as_json: bool) -> Iterator[str]:
    """The events of a run, oldest first; with `follow`, until nobody runs it any more."""
    told = 0
    while True:
        running = run.holder() is not None
        events = run.events()
        for event in events[told:]:
            yield json.dumps(event, ensure_ascii=False) if as_json else event_line(event)
        told = len(events)
        if not (follow and running):
            return
        time.sleep(FOLLOW_EVERY_S)


def export_model(run: RunFolder, destination: Place, *, step: int | None) -> Iterator[str]:
    """Copy <run>/model to a folder that has no files, or write there what a checkpoint holds; yields what was written.

    step: of the checkpoint; None for <run>/model, or else a pretraining's last checkpoint.
    Raises InputError where the run has neither, or the folder is in use.
    """
    model = run.folder / "model"
    if destination.names():
        raise InputError(f"{destination}: has files in it; name a new folder")
    if step is None and model.names():
        yield from _copied(model, destination)
    else:
        from bfp.drivers.pretrain_export import export_checkpoint

        done = export_checkpoint(run, destination, step=step)
        yield f"{destination}: the encoder after step {done:,}"


def _copied(model: Place, destination: Place) -> Iterator[str]:
    encoder = encoder_folder(model)
    read_config(encoder)
    head = [] if encoder == model else [model / "model.json", model / "head.safetensors"]
    for file in (encoder / WEIGHTS, model / CARD, *head):
        if not file.exists():
            raise InputError(
                f"{file}: gone, so that the model is not whole; bring it back, or export a checkpoint (--step)"
            )
    for entry in list(model.files()):
        target = Place(str(destination) + str(entry.place).removeprefix(str(model)))
        if entry.place.is_local:
            target.upload(entry.place.path)
        else:
            target.write(entry.place.read())
        yield str(target)


def open_page(page: Place) -> None:
    """Open a report in the user's browser. Raises InputError for one that lies in object storage."""
    if not page.is_local:
        raise InputError(f"{page}: lies in object storage; copy it here to open it")
    webbrowser.open(page.path.as_uri())

"""Running a job for somebody who watches: the plan first, the run on display, then what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp.cli.display import Display
from bfp.cli.output import grid, shown, write
from bfp.cli.runs import Status, status_of, title
from bfp.drivers.plan import Plan
from bfp.reports.numbers import duration_text
from bfp.runs import RunFolder
from bfp.specs import Spec
from bfp.storage import Place
from bfp.targets import Local, Remote
from bfp.targets.checks import run_folder

if TYPE_CHECKING:
    from rich.console import RenderableType


class Planned(NamedTuple):
    """What `submit --dry-run` finds: the resolved spec, the run's folder, the plan's figures and warnings.

    manifest: exactly what would be sent to a cluster; "" on this machine.
    """

    run: Place
    spec: dict[str, Any]
    figures: dict[str, Any]
    warnings: list[str]
    manifest: str


class Finished(NamedTuple):
    """What `submit` came to."""

    status: Status
    figures: dict[str, Any]
    report: Place


def planned(spec: Spec, target: Local | Remote, plan: Plan) -> Planned:
    manifest = "" if isinstance(target, Local) else target.manifest(spec)
    return Planned(run_folder(spec), spec.model_dump(mode="json", by_alias=True), plan.figures, plan.warnings, manifest)


def plan_text(spec: Spec, plan: Plan, found: Planned) -> Iterator[RenderableType]:
    """The plan as text; of a cluster it goes to standard error, and what would be sent to standard output."""
    if not found.manifest:
        yield from plan_lines(spec, plan)
        return
    write(plan_lines(spec, plan), stderr=True)
    yield found.manifest


def run_job(spec: Spec, target: Local, *, plan: Plan) -> Finished:
    """Show the plan, run the spec on the target with a live display, and say what came out.

    All of it goes to standard error. Raises what the target raises.
    """
    run = run_folder(spec)
    write(plan_lines(spec, plan), stderr=True)
    write([f"  follow  bfp status {shown(run)}", f"  stop    Ctrl-C, or bfp stop {shown(run)}"], stderr=True)
    with Display() as display:
        return finished(target.submit(spec, listener=display))


def finished(run: RunFolder) -> Finished:
    return Finished(status_of(run), run.results().get("figures", {}), run.folder / "report" / "index.html")


def plan_lines(spec: Spec, plan: Plan) -> Iterator[RenderableType]:
    """The plan as text."""
    yield title(spec.kind, spec.name)
    yield grid([*plan.rows, ("run folder", shown(run_folder(spec)))])
    for warning in plan.warnings:
        yield f"  warning: {warning}"


def next_steps(found: Finished) -> Iterator[RenderableType]:
    """What came out, and the exact commands to look at it."""
    run = found.status.run
    took, in_all = duration_text(found.status.last_seconds), duration_text(found.status.seconds)
    took += "" if took == in_all else f" (with what was done before, {in_all})"
    yield f"{found.status.outcome} in {took}: {found.status.headline}".rstrip(": ")
    yield f"  bfp show {shown(run)}"
    yield f"  bfp report {shown(run)} --open"
    yield f"  report: {shown(found.report)}"

"""The commands: parse, call, show. What they do is done below; what they need is imported when they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bfp import __version__
from bfp.errors import InputError

app = typer.Typer(
    help="From a bucket of brain MRI to a foundation model and its predictions: one YAML file, one command.",
    epilog="Begin with `bfp demo`, or with `bfp init ingest`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
store_app = typer.Typer(help="Look into a slice store, check it, prune it.", no_args_is_help=True)
app.add_typer(store_app, name="store")

SpecFile = Annotated[str, typer.Argument(metavar="SPEC", help="The YAML file of a job.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder: <output>/<name>, a path or URI.")]
StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A slice store, a path or URI.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set one field of the spec, such as train.epochs=3. Repeatable."),
]
Name = Annotated[str | None, typer.Option("--name", metavar="NAME", help="Set the run's name.")]
On = Annotated[str | None, typer.Option("--on", metavar="NAME", help="A target of bfp.toml; without it, this machine.")]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, metavar="N", help="Use no more than N CPUs.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bfp {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show whole tracebacks; may stand after any command.")] = False,
) -> None:
    """`--debug` is taken off the command line by `main`; here it is only described."""


@app.command()
def init(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="ingest, pretrain, finetune, benchmark, infer; or profile.")
    ],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="Where to write it; KIND.yaml, or bfp.toml, without it.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET",
            help="pretrain: write out dinov2-fast, dinov2-long or brain; ingest: brainfound or braindino.",
        ),
    ] = None,
) -> None:
    """Write a spec with every field, its meaning and its default; of `profile`, the targets that --on names."""
    from bfp.cli.output import write
    from bfp.cli.specs import write_template

    write(write_template(kind, file or Path("bfp.toml" if kind == "profile" else f"{kind}.yaml"), preset=preset))


@app.command()
def validate(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC...", help="The YAML files of jobs, or a bfp.toml.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check specs: every mistake at once, with its line and what would be right."""
    from bfp.cli.output import show
    from bfp.cli.specs import check_specs, check_text

    checked = check_specs(specs, overrides=overrides or [])
    show(checked, as_json=as_json, text=check_text)
    raise typer.Exit(0 if all(found.valid for found in checked) else InputError.exit_code)


@app.command()
def schema(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="Print the JSON Schema of this kind.")] = None,
    folder: Annotated[Path | None, typer.Option("--all", metavar="FOLDER", help="Write all into a folder.")] = None,
) -> None:
    """Print the JSON Schema of a kind, or write those of all kinds."""
    from bfp.cli.output import write
    from bfp.cli.specs import schema_lines

    write(schema_lines(kind, folder))


@app.command()
def submit(
    spec_file: SpecFile,
    on: On = None,
    overrides: Overrides = None,
    name: Name = None,
    cpus: Cpus = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, run nothing, write nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; the target runs on by itself.")] = False,
    as_json: Json = False,
) -> None:
    """Run the job described in SPEC; submitted again, it goes on where it stopped."""
    from bfp import specs, targets
    from bfp.cli.clusters import follow_run, on_cluster_text, send_run
    from bfp.cli.jobs import next_steps, plan_text, planned, run_job
    from bfp.cli.output import show
    from bfp.specs.profile import profile_for

    spec = specs.load(spec_file, overrides=overrides or [], name=name)
    with targets.resolve(on, cpus=cpus, detach=detach, profile=profile_for(spec_file)) as target:
        plan = target.plan(spec)
        if dry_run:
            show(planned(spec, target, plan), as_json=as_json, text=lambda found: plan_text(spec, plan, found))
        elif isinstance(target, targets.Local):
            show(run_job(spec, target, plan=plan), as_json=as_json, text=next_steps)
        elif detach:
            show(send_run(spec, target, plan=plan), as_json=as_json, text=on_cluster_text)
        else:
            show(follow_run(send_run(spec, target, plan=plan), target), as_json=as_json, text=next_steps)


@app.command(hidden=True)
def drive() -> None:
    """Run the job that a target has sent here: what `bfp submit --on NAME` runs on a cluster."""
    from bfp.cli.driving import drive

    drive()


@app.command(hidden=True)
def leave(role: str, wait_s: float) -> None:
    """Wait until this pod may end: what the pods of a job on Kubernetes run before they are taken away."""
    import os

    from bfp.targets.leaving import leave

    leave(role, wait_s=wait_s, environment=os.environ)


@app.command()
def status(run: RunArgument, on: On = None, as_json: Json = False) -> None:
    """Say what a run is at; with --on, what its job waits for on a cluster."""
    from bfp.cli.clusters import on_cluster_text, run_on
    from bfp.cli.looking import status_text
    from bfp.cli.output import show
    from bfp.cli.runs import find_run, status_of
    from bfp.targets import here_or_on

    if (target := here_or_on(on)) is None:
        show(status_of(find_run(run)), as_json=as_json, text=status_text)
    else:
        with target:
            show(run_on(target, run), as_json=as_json, text=on_cluster_text)


@app.command()
def runs(
    output: Annotated[str, typer.Argument(metavar="[OUTPUT]", help="Where the runs are: a spec's `output`.")] = "runs",
    as_json: Json = False,
) -> None:
    """List the runs of an output, with what they came to."""
    from bfp.cli.looking import runs_text
    from bfp.cli.output import show
    from bfp.cli.runs import list_runs
    from bfp.storage import place

    show(list_runs(place(output)), as_json=as_json, text=runs_text)


@app.command("show")
def show_run(run: RunArgument, as_json: Json = False) -> None:
    """Show what a run came to: figures, tables, warnings, what failed."""
    from bfp.cli.looking import outcome_of, outcome_text
    from bfp.cli.output import show
    from bfp.cli.runs import find_run

    show(outcome_of(find_run(run)), as_json=as_json, text=outcome_text)


@app.command()
def logs(
    run: RunArgument,
    on: On = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print what happened in a run, one event a line; with --on, all that its driver on a cluster wrote."""
    from bfp.cli.clusters import log_lines_on
    from bfp.cli.looking import log_lines
    from bfp.cli.output import write
    from bfp.cli.runs import find_run
    from bfp.targets import here_or_on

    if (target := here_or_on(on)) is None:
        write(log_lines(find_run(run), follow=follow, as_json=as_json))
    else:
        write(log_lines_on(target, run, follow=follow, as_json=as_json))


@app.command()
def stop(run: RunArgument, on: On = None) -> None:
    """Ask a run on this machine, or with --on on a cluster, to stop; submitted again, it goes on."""
    from bfp.cli.output import write, write_note
    from bfp.cli.runs import find_run, stop_run
    from bfp.storage import place
    from bfp.targets import here_or_on

    if (target := here_or_on(on)) is None:
        write([stop_run(find_run(run))])
    else:
        write([target.stop(str(place(run)), listener=write_note).stage])


@app.command()
def export(
    run: RunArgument,
    destination: Annotated[str, typer.Argument(metavar="FOLDER", help="A new or empty folder, a path or URI.")],
    step: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="A pretraining's encoder as it was after step N, from its checkpoint; without it, the finished model, "
            "or where there is none yet the last checkpoint.",
        ),
    ] = None,
) -> None:
    """Copy a run's model, with its card, to where it is to be used; of a pretraining that goes on too."""
    from bfp.cli.looking import export_model
    from bfp.cli.output import write
    from bfp.cli.runs import find_run
    from bfp.storage import place

    write(export_model(find_run(run), place(destination), step=step))


@app.command()
def report(
    run: RunArgument,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write a run's page again, and say where it is."""
    from bfp.cli.looking import open_page
    from bfp.cli.output import shown, write
    from bfp.cli.runs import find_run
    from bfp.reports import write_page

    page = write_page(find_run(run))
    write([shown(page)])
    if open_it:
        open_page(page)


@store_app.command("show")
def show_store(
    store: StoreArgument,
    pictures: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Write pictures of its stacks and registrations there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is in a store: scans by cohort and modality, what was left out, what is worth a look."""
    from bfp.cli.output import show
    from bfp.cli.stores import contents_of, contents_text
    from bfp.storage import place

    found = contents_of(place(store), pictures=place(pictures) if pictures else None)
    show(found, as_json=as_json, text=contents_text)


@store_app.command("check")
def check_store(
    store: StoreArgument,
    snapshot: Annotated[int | None, typer.Option(metavar="N", help="A snapshot; without it, the latest.")] = None,
    as_json: Json = False,
) -> None:
    """Check every file, checksum and count of a store."""
    from bfp.cli.output import show
    from bfp.cli.stores import check_text, checked
    from bfp.storage import place

    found = checked(place(store), snapshot=snapshot)
    show(found, as_json=as_json, text=check_text)
    raise typer.Exit(InputError.exit_code if found.faults else 0)


@store_app.command("prune")
def prune_store(
    store: StoreArgument,
    keep_snapshots: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Keep the latest N snapshots only; runs may hang on older ones."),
    ] = None,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Spare what was written later: 1d, 12h, 30m; an ingest may be going on.")
    ] = "1d",
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Show what no snapshot of a store needs, and remove it once you say so."""
    from bfp.cli.output import show
    from bfp.cli.stores import prune_text, pruned
    from bfp.storage import place

    done = pruned(place(store), keep_snapshots=keep_snapshots, older_than=older_than, yes=yes, ask=not as_json)
    show(done, as_json=as_json, text=prune_text)


@app.command()
def demo(
    output: Annotated[str, typer.Option(metavar="FOLDER", help="Where cohort, store and runs go.")] = "demo",
    subjects: Annotated[
        int | None, typer.Option(min=30, metavar="N", help="Subjects of the cohort; fewer are faster, and tell less.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=999, metavar="N", help="Another cohort than the usual one.")
    ] = None,
    benchmark: Annotated[
        bool, typer.Option("--benchmark", help="Then the paper's comparison too, small: some 10 minutes more.")
    ] = False,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Make a cohort on real anatomy and take it from NIfTI scans to predictions, in at most 10 minutes."""
    from bfp.cli.demo import demo_text, run_demo
    from bfp.cli.output import show

    show(
        run_demo(output, subjects=subjects, seed=seed, cpus=cpus, benchmark=benchmark),
        as_json=as_json,
        text=demo_text,
    )


@app.command("bids-app", context_settings={"allow_extra_args": True})
def bids_app(
    context: typer.Context,
    bids: Annotated[str, typer.Argument(metavar="BIDS", help="The dataset's root, a path or URI.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="Where the derivative goes, a path or URI.")],
    level: Annotated[str, typer.Argument(metavar="LEVEL", help="participant; there is no group level.")],
    participant_label: Annotated[
        list[str] | None,
        typer.Option(
            "--participant-label",
            "--participant_label",
            metavar="LABEL...",
            help="Only these participants, with or without `sub-`; without it, all.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", envvar="BFP_MODEL", help="A finetune run or a model folder, a path or URI."),
    ] = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Predict a BIDS dataset as BIDS Apps are called: bfp bids-app BIDS OUT participant --participant-label 01 02."""
    from bfp.cli.bids_app import derivative_text, participants_of, spec_of, write_derivative
    from bfp.cli.jobs import run_job
    from bfp.cli.output import show
    from bfp.specs.profile import profile_for
    from bfp.targets import Local

    spec = spec_of(bids, out, level, participants=participants_of(participant_label, context.args), model=model)
    with Local(cpus=cpus, profile=profile_for("bids-app")) as target:
        finished = run_job(spec, target, plan=target.plan(spec))
    show(write_derivative(out, bids=bids, finished=finished), as_json=as_json, text=derivative_text)


@app.command()
def doctor(
    spec_file: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="With --on: plan this job there too, from the nodes' side.")
    ] = None,
    on: On = None,
    as_json: Json = False,
) -> None:
    """Check this machine, or with --on a cluster: versions, CPUs, memory, GPUs, Ray, storage; each with its remedy."""
    from bfp import specs, targets
    from bfp.cli.doctor import examine, examine_cluster, findings_text
    from bfp.cli.output import show
    from bfp.specs.profile import PROFILE, profile_for

    if on is None and spec_file is not None:
        raise InputError("bfp doctor: a spec goes with --on NAME; on this machine `bfp submit --dry-run` plans it")
    spec = specs.load(spec_file) if spec_file is not None else None
    with targets.resolve(on, profile=profile_for(spec_file or PROFILE)) as target:
        findings = examine() if isinstance(target, targets.Local) else examine_cluster(target, spec)
    show(findings, as_json=as_json, text=findings_text)
    raise typer.Exit(1 if any(found.verdict == "fail" for found in findings) else 0)

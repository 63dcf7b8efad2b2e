"""`bfp demo`: the main job, from made NIfTI scans to predictions, by the code that `bfp submit` runs.

Two cohorts are made first (one to learn from, one to predict): what bfp is shown is a BIDS dataset like any other.
Then the specs of jobs/demo are submitted one after another on one embedded Ray. Run again, it goes on where it
stopped. With `--benchmark` a third cohort is made, to be tested on only, and the paper's comparison follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bfp.cli.display import Display
from bfp.cli.jobs import Finished, run_job
from bfp.cli.output import shown, table, write
from bfp.errors import InputError
from bfp.reports.headline import estimate
from bfp.reports.numbers import number_text
from bfp.specs import load
from bfp.storage import place
from bfp.words import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

JOBS = ("ingest", "pretrain", "finetune", "infer")
BENCHMARK_JOBS = ("outside", "benchmark")
"""By the names of their specs."""
SEED = 7  # of the cohort: settings were tried out on cohorts of other seeds
TONIGHT_SEED = 1000  # added for the cohort to predict, so that no seed draws the same people twice
ELSEWHERE_SEED = 2000  # likewise, for the one to be tested on only

BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # x86, then ARM

# what the closing table calls a figure that has an interval: (kind, figure, words)
LEARNED = [
    ("pretrain", "tissue_r2_pretrained", "tissue R² (residual), pretrained encoder"),
    ("pretrain", "tissue_r2_untrained", "tissue R² (residual), the same encoder untrained"),
    ("pretrain", "tissue_r2_sorted_pixels", "tissue R² (residual), sorted pixels"),
    ("pretrain", "tissue_r2_gain_over_untrained", "  pretrained above untrained, same subjects"),
    ("pretrain", "tissue_r2_gain_over_sorted_pixels", "  pretrained above sorted pixels, same subjects"),
    ("finetune", "auroc", "AUROC disease, pretrained encoder"),
    ("finetune", "auroc_untrained", "AUROC disease, the same encoder untrained"),
    ("finetune", "auroc_histograms", "AUROC disease, slice histograms"),
    ("finetune", "auroc_covariates", "AUROC disease, age and sex alone"),
    ("finetune", "auroc_oracle", "AUROC disease, true severity (oracle)"),
    ("finetune", "above_untrained", "  pretrained above untrained, same subjects"),
]


class Demonstrated(NamedTuple):
    """What each job of the demo came to, by the name of its spec."""

    jobs: dict[str, Finished]


def run_demo(output: str, *, subjects: int | None, seed: int | None, cpus: int | None, benchmark: bool) -> Demonstrated:
    """Make the cohorts in a local folder and run the jobs. Raises what making and submitting raise."""
    from bfp.drivers.plan import cpus_here
    from bfp.targets import Local

    folder = place(output)
    if not folder.is_local:
        raise InputError(f"--output {output}: the demo cohort is made on disk; name a folder of this machine")
    folder.check_writable()
    _make_cohorts(
        folder.path,
        subjects=subjects,
        seed=SEED if seed is None else seed,
        workers=cpus or cpus_here(),
        benchmark=benchmark,
    )
    jobs: dict[str, Finished] = {}
    with Local(cpus=cpus) as target:
        for name in (*JOBS, *BENCHMARK_JOBS * benchmark):
            with as_file(files("bfp.demo").joinpath("jobs", f"{name}.yaml")) as spec_file:
                spec = load(spec_file, overrides=[*places(name, str(folder)), *precision(name)])
            jobs[name] = run_job(spec, target, plan=target.plan(spec))
    return Demonstrated(jobs)


def demo_text(demonstrated: Demonstrated) -> Iterator[RenderableType]:
    """The table that the demo ends with, and where the reports are."""
    jobs = demonstrated.jobs
    ingest, pretrain, infer = (jobs[kind].figures for kind in ("ingest", "pretrain", "infer"))
    rows = [
        ("stacks written", f"{ingest['stacks']:,} from {counted(ingest['scans'], 'scan')}"),
        ("scans left out", _left_out(ingest)),
        ("loss, first → last", f"{number_text(pretrain['loss_first'])} → {number_text(pretrain['loss_last'])}"),
        *((words, estimate(name, jobs[kind].figures)) for kind, name, words in LEARNED if name in jobs[kind].figures),
        ("predictions", f"{counted(infer['sessions'], 'session')}, {counted(infer['rejected'], 'scan')} left out"),
        *_compared(jobs),
    ]
    yield table("", ["bfp demo", "value [95 % interval]"], rows)
    yield "reports"
    for finished in jobs.values():
        yield f"  {shown(finished.report)}"
    yield f"  open one: bfp report {shown(jobs['finetune'].status.run)} --open"


def _make_cohorts(folder: Path, *, subjects: int | None, seed: int, workers: int, benchmark: bool) -> None:
    from bfp.demo.cohort import make_cohort
    from bfp.demo.plan import DEMO, ELSEWHERE, TONIGHT, groups_of

    cohorts = [
        ("cohort", DEMO if subjects is None else groups_of(subjects), seed, ""),
        ("tonight", TONIGHT, seed + TONIGHT_SEED, "n"),
        *([("elsewhere", ELSEWHERE, seed + ELSEWHERE_SEED, "e")] if benchmark else []),
    ]
    write(["the cohorts, on the anatomy of the ICBM152 template"], stderr=True)
    with Display() as display:
        for name, group, drawn, prefix in cohorts:
            phase = {"phase": f"making {name}", "total": sum(group), "unit": "subjects"}
            display({"event": "phase", **phase})

            def progress(done: int, total: int, phase: Mapping[str, Any] = phase) -> None:
                display({"event": "progress", **phase, "total": total, "done": done})

            make_cohort(
                folder / name,
                subjects=group,
                seed=drawn,
                workers=workers,
                progress=progress,
                prefix=prefix,
            )
        display({"event": "end"})


def places(job: str, folder: str) -> list[str]:
    """The demo's folder in the place of `demo`, which the specs name relative to the working directory."""
    moved = {
        "ingest": {"store": "store", "cohorts[0].bids": "cohort"},
        "pretrain": {"store": "store"},
        "finetune": {"store": "store", "encoder": "runs/pretrain"},
        "infer": {"model": "runs/finetune", "cohorts[0].bids": "tonight"},
        "outside": {"store": "store-elsewhere", "cohorts[0].bids": "elsewhere"},
        "benchmark": {
            "store": "store",
            "external.elsewhere": "store-elsewhere",
            "encoders.BrainFound": "runs/pretrain",
        },
    }
    return [f"{field}='{folder}/{name}'" for field, name in {"output": "runs", **moved[job]}.items()]


def precision(job: str) -> list[str]:
    """fp32 for pretraining where nothing computes bf16: a CPU that must imitate it is much slower so."""
    import torch

    able = torch.cuda.is_available() or any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS)
    return ["compute.precision=fp32"] if job == "pretrain" and not able else []


def _compared(jobs: Mapping[str, Finished]) -> list[tuple[str, str]]:
    """What the benchmark says of every encoder, where it was run."""
    if "benchmark" not in jobs:
        return []
    figures = jobs["benchmark"].figures
    names = [name.removeprefix("auroc_") for name in figures if name.startswith("auroc_")]
    others = [name for name in names if not name.endswith(("_low", "_high")) and name not in ("low", "high")]
    told = [("benchmark: AUROC disease, BrainFound", estimate("auroc", figures))]
    return told + [(f"benchmark: AUROC disease, {name}", estimate(f"auroc_{name}", figures)) for name in others]


def _left_out(ingest: Mapping[str, Any]) -> str:
    reasons = str(ingest["rejected_by_reason"])
    return f"{number_text(ingest['rejected'])}" + (f" ({reasons})" if reasons else "")

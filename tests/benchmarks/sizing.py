"""infra/SIZING.md: plans for cohorts and clusters, from the model that `bfp submit --dry-run` uses.

    python -m tests.benchmarks.sizing      writes infra/SIZING.md anew

Nothing is measured here: `bfp.drivers.sizing` holds the figures and says of each where it comes from. What the driver
of a run takes was measured by `python -m tests.campaigns.driver_load`, and stands at the end of this file.
"""

from __future__ import annotations

import dataclasses
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import bfp
from bfp.drivers import sizing
from bfp.drivers.pretrain_outlook import heads_of, views_of, vit_of
from bfp.reports.numbers import duration_text, number_text
from bfp.specs import Pretrain
from bfp.specs.files import load
from bfp.words import counted

ROOT = Path(bfp.__file__).parents[2]
FILE = ROOT / "infra" / "SIZING.md"
JOB = ROOT / "jobs" / "pretrain.yaml"

SCANS, GPUS = (10_000, 40_000, 1_000_000), (8, 32, 64, 256)
MODALITIES, SIZE_PX, SESSIONS_PER_SHARD = 3, 224, 16
CPUS_PER_GPU = 16

WIDTH = 120

REMEDIES = {
    "CPUs": "more CPU nodes: ingest needs no GPU, and no node waits for another",
    "GPUs": "more GPUs: nothing else is short",
    "network between GPUs": "a larger batch, so that a GPU computes longer between two exchanges (the learning rate is "
    "scaled by `sqrt(batch_size / 1024)`), fewer GPUs, or links faster than 400 Gbit/s a GPU",
    "nodes' network": "more nodes of fewer CPUs each, or faster links to the store",
    "GETs of the object store": "cohorts under several prefixes, which the store scales apart; or fewer CPUs at "
    "once, since a throttled request is tried again and costs the next one",
    "PUTs of the object store": "a larger `sessions_per_shard`: fewer, larger files",
    "driver, which hands out shards": "a larger `sessions_per_shard`, for fewer shards, or several ingests, each of a "
    "cohort of its own",
    "requests in flight of the workers": "more workers on each GPU's node, or a store that answers sooner",
}


def text() -> str:
    sections = (_opening, _measured, _ingest, _training, _cpus, _inference, _limits, _driver)
    return "\n\n".join(_wrapped(section()) for section in sections) + "\n"


def _opening() -> str:
    return f"""# Sizing: what a cohort and a cluster come to

Written by `python -m tests.benchmarks.sizing` from the model of `bfp submit --dry-run`
(`platform/bfp/drivers/sizing.py`); a test holds the two in step. The plans are of the paper's form: sessions of
{MODALITIES} modalities, 1 mm, {SIZE_PX} pixels, registered rigidly, no brain mask, no N4; ViT-L/14 by
`jobs/pretrain.yaml` (`dinov2-long`, batches of 1,024).

**~ marks what goes beyond what was measured**: on two CPU cores, on one H100, with up to 2,000 scans and a store of
18,736 stacks. All plans for clusters do. Run `bfp submit --dry-run` for yours, and look again after the first hour:
`bfp status` tells the rates that it has by then."""


def _measured() -> str:
    small, large = sizing.SMALL, sizing.LARGE
    rows = [
        ("decode and resample a scan", f"{sizing.SCAN_S} s of a core", "A whole ingest"),
        ("register a scan rigidly", f"{sizing.REGISTRATION_S} s of a core", "Inference"),
        ("deepbet, a session", f"at most {sizing.DEEPBET_S:g} CPU seconds", "DESIGN, brain masks: 4 s of two cores"),
        ("N4, a scan", f"{sizing.N4_S} s of a core (0.3 to 2.4)", "One scan to slices"),
        ("a DICOM series to NIfTI", f"{sizing.SERIES_S} s of a core", "One scan to slices"),
        ("a worker's wait between two shards", f"{sizing.BETWEEN_SHARDS_S} s", "A whole ingest"),
        ("pixels to lz4", f"{sizing.COMPRESSION_RATE / 1e9:g} GB/s of a core", "The store's layout"),
        ("a stored stack", f"{sizing.COMPRESSED:.2f} of its pixels, {_stack_bytes() / 1e3:.1f} kB", "ten real scans"),
        ("planned reading", f"{sizing.READ_RATE / 1e9:g} GB/s of a core", "Reading back"),
        ("footer of a shard's stacks", f"{sizing.FOOTER_BYTES / 1e3:.0f} kB", "a part of 2,880 stacks, written so"),
        (f"ViT-S/14 on one {sizing.GPU}", _rate(small), "A step of pretraining on a GPU"),
        (f"ViT-L/14 on one {sizing.GPU}", _rate(large), "A step of pretraining on a GPU"),
        ("prediction on a CPU", f"{sizing.CPU_RATE / 1e9:g} billion operations a second", "ViT-S and ViT-B: 77 to 84"),
        ("training state", f"{sizing.STATE_BYTES} bytes a parameter", "0.70 GB of ViT-S/14, as estimated"),
    ]
    table = _table(["what", "figure", "section of tests/benchmarks/README.md, or source"], rows)
    return f"""## What was measured

{table}

Between and beyond the two ViTs a rate is the operations of a stack by a utilisation between the two, by the width's
logarithm; without `compile: true` by {sizing.UNCOMPILED} of that."""


def _rate(row: sizing.Measured) -> str:
    return f"{row.stacks_s:g} stacks a second, utilisation {row.utilisation:.2f}"


# ingest ---------------------------------------------------------------------------------------------------------------


def _shards(scans: int) -> int:
    return math.ceil(scans / MODALITIES / SESSIONS_PER_SHARD)


def _cost(scans: int) -> sizing.Cost:
    sessions = scans // MODALITIES
    counts = sizing.Scans(sessions, scans, registered=scans - sessions)
    return sizing.preparing(counts, slice_spacing_mm=1.0, neighbours=False)


def ingest_of(scans: int, *, cpus: int) -> sizing.Ingest:
    return sizing.ingest(_cost(scans), scans=scans, shards=_shards(scans), size_px=SIZE_PX, workers=cpus)


def _stack_bytes() -> float:
    return sizing.COMPRESSED * MODALITIES * SIZE_PX**2


def _ingest() -> str:
    rows = []
    for scans in SCANS:
        whole, requests = ingest_of(scans, cpus=1), sizing.ingest_requests(scans=scans, shards=_shards(scans))
        rows.append(
            [
                f"{scans:,}",
                about(whole.stacks),
                about_bytes(sizing.SCAN_BYTES * scans),
                about_bytes(whole.size_bytes),
                f"{_shards(scans):,}",
                f"~{number_text(whole.cpu_s / 3600)}",
                f"~{requests.lists:,}",
                about(requests.gets),
                about(requests.puts),
            ]
        )
    whole_table = _table(
        ["scans", "stacks", "source", "store", "shards", "CPU hours", "pages listed", "GETs", "PUTs, all conditional"],
        rows,
    )
    by_cluster, found = [], dict[str, None]()
    for gpus in GPUS:
        cpus, nodes = gpus * CPUS_PER_GPU, gpus // sizing.NODE_GPUS
        limits = _ingest_limits(cpus=cpus, nodes=nodes)
        first = sizing.first_bottleneck(limits)
        found[first] = None
        rate = limits[first]
        hours = [_time(max(ingest_of(scans, cpus=cpus).seconds, scans / rate)) for scans in SCANS]
        requests = sizing.ingest_requests(scans=SCANS[-1], shards=_shards(SCANS[-1]))
        by_cluster.append(
            [
                f"{cpus:,} ({gpus} GPUs)",
                *hours,
                about(rate),
                about(rate * requests.gets / SCANS[-1]),
                about(rate * requests.puts / SCANS[-1]),
                f"{about_bytes(rate * sizing.SCAN_BYTES)}/s",
                first,
            ]
        )
    cluster_table = _table(
        [
            "CPUs",
            *(f"{scans:,} scans" for scans in SCANS),
            "scans a second",
            "GETs a second",
            "PUTs a second",
            "read",
            "first bottleneck",
        ],
        by_cluster,
    )
    return f"""## Ingest

{whole_table}

A file of {sizing.SCAN_BYTES / 1e6:g} MB is assumed. A bias field (N4) or deepbet costs {sizing.N4_S:g} s a scan or
{sizing.DEEPBET_S:g} s a session more, where the whole of a session is {_cost(3).seconds:.2f} s here. How long, with
{CPUS_PER_GPU} CPUs beside each GPU, all of them for ingest:

{cluster_table}

{_remedies(found)} The driver's {sizing.SHARDS_RATE:g} shards a second were measured with two workers on a busy machine;
what Ray takes for a thousand was not. However many CPUs there are, an ingest ends no sooner than its longest shard."""


def _ingest_limits(*, cpus: int, nodes: int) -> dict[str, float]:
    scans = SCANS[-1]
    shards = _shards(scans)
    return sizing.ingest_limits(
        ingest_of(scans, cpus=1),
        scans=scans,
        shards=shards,
        requests=sizing.ingest_requests(scans=scans, shards=shards),
        cpus=cpus,
        nodes=nodes,
    )


# training -------------------------------------------------------------------------------------------------------------


class Plan:
    """A pretraining of the catalogue on so many GPUs."""

    def __init__(self, gpus: int, *, batch_size: int | None = None) -> None:
        spec = load(str(JOB))
        assert isinstance(spec, Pretrain)
        vit = vit_of(spec)
        assert vit is not None
        self.gpus, self.nodes = gpus, max(gpus // sizing.NODE_GPUS, 1)
        self.batch_size = batch_size or spec.train.batch_size
        heads, views = heads_of(spec), views_of(spec, patch_px=vit.patch_px, size_px=SIZE_PX)
        self.parameters = sizing.network_parameters(vit, heads, size_px=SIZE_PX)
        self.checkpoint_bytes = sizing.checkpoint_bytes(vit, heads, size_px=SIZE_PX)
        self.rate = sizing.training_rate(vit, heads, views, compiled=spec.compute.compile)
        whole = dataclasses.replace(views, drop_path=0.0)
        self.drop_path = views.drop_path
        self.rate_without = sizing.training_rate(vit, heads, whole, compiled=spec.compute.compile).stacks_s
        self.left_out = 1 - sizing.operations(vit, heads, views) / sizing.operations(vit, heads, whole)
        self.stacks_a_gpu = self.batch_size // gpus
        self.micro_batches = math.ceil(self.stacks_a_gpu / sizing.MEASURED_STACKS)
        assert spec.train.steps_per_epoch is not None
        self.stacks = round(spec.train.epochs * spec.train.steps_per_epoch) * spec.train.batch_size
        self.steps = self.stacks // self.batch_size
        self.checkpoints = self.steps // spec.train.checkpoint_every
        self.step = sizing.step(
            self.rate,
            parameters=self.parameters,
            batch_size=self.batch_size,
            gpus=gpus,
            micro_batches=self.micro_batches,
        )
        self.limits = sizing.training_limits(
            self.step, batch_size=self.batch_size, size_px=SIZE_PX, gpus=gpus, nodes=self.nodes
        )
        self.first = sizing.first_bottleneck(self.limits)
        self.stacks_s = self.limits[self.first]
        self.seconds = self.stacks / self.stacks_s


def _training() -> str:
    plans = [Plan(gpus) for gpus in GPUS]
    plans += [Plan(256, batch_size=4096)]
    rows = [
        [
            f"{plan.gpus}",
            f"{plan.batch_size:,}",
            f"{plan.stacks_a_gpu}" + (f" in {plan.micro_batches}" if plan.micro_batches > 1 else ""),
            f"~{plan.step.computing_s * 1e3:.0f} / {plan.step.moving_s * 1e3:.0f} ms",
            about(plan.stacks_s),
            _time(plan.seconds),
            f"{about_bytes(plan.stacks_s * sizing.reading_bytes(size_px=SIZE_PX))}/s",
            about(plan.stacks_s * sizing.reading_requests()),
            plan.first,
        ]
        for plan in plans
    ]
    table = _table(
        [
            "GPUs",
            "batch",
            "stacks a GPU",
            "computing / moving",
            "stacks a second",
            "all steps",
            "read",
            "GETs a second",
            "first bottleneck",
        ],
        rows,
    )
    plan, fast = plans[0], sizing.LARGE.stacks_s
    seen = (f"{scans:,} scans ~{number_text(plan.stacks / ingest_of(scans, cpus=1).stacks)} times" for scans in SCANS)
    without_s = plan.stacks / (8 * plan.rate_without)
    written_tb = plan.checkpoint_bytes * plan.checkpoints / 1e12
    return f"""## Pretraining: ViT-L/14, `dinov2-long`

{plan.steps:,} steps of {plan.batch_size:,} stacks whatever the cohort, whose stacks are seen so often:
{"; ".join(seen)}. A checkpoint is ~{plan.checkpoint_bytes / 1e9:.1f} GB
({plan.parameters / 1e6:.0f} million parameters with both heads); two stay, and all {plan.checkpoints} that are written
come to ~{written_tb:.1f} TB.

{table}

- *Computing*: {fast:g} stacks a second and GPU were measured with the heads of `dinov2-fast` and no drop path.
~{plan.rate.stacks_s:.0f} follow from the operations of this recipe, of which a drop path of {plan.drop_path:g} leaves
out {plan.left_out:.0%}. If that saves no time, 8 GPUs take ~{without_s / 86400:.1f} days and not
~{plan.seconds / 86400:.1f}. How fast a GPU is with fewer than 48 stacks was not measured.
- *Moving*: all weights travel {sizing.GATHERS} times a step and micro-batch (FSDP2, float32), at
{sizing.INSIDE_LINK_RATE / 1e9:g} GB/s within a node of {sizing.NODE_GPUS} and {sizing.GPU_LINK_RATE / 1e9:g} GB/s a GPU
between nodes, while the GPUs compute. No run on two GPUs was ever timed.
- *Memory*: {sizing.MEASURED_STACKS} stacks took 64 of a GPU's 80 GB. 8 GPUs want `gradient_accumulation: 2` or
`activation_checkpointing: true`.

{_remedies(dict.fromkeys(plan.first for plan in plans))}"""


def _cpus() -> str:
    whole = ingest_of(SCANS[-1], cpus=1)
    plan = Plan(8)
    a_gpu = plan.stacks_s / plan.gpus
    made = whole.cpu_s / whole.stacks
    reading = sizing.reading_cpus(a_gpu, size_px=SIZE_PX)
    rows = [
        [
            f"{cpus}",
            *(_time(ingest_of(SCANS[-1], cpus=cpus * gpus).seconds) for gpus in GPUS),
        ]
        for cpus in (4, 8, 16, 32)
    ]
    table = _table(["CPUs a GPU", *(f"{gpus} GPUs" for gpus in GPUS)], rows)
    return f"""## CPUs for each GPU

- *Reading while training*: ~{reading:.2f} of a core for ~{a_gpu:.0f} stacks a second; claim `cpus_per_worker: 2`, for
the loop and its threads. Reading from an object store was not timed: {sizing.FETCHES_AT_ONCE} requests at once, of
{sizing.ANSWER_S * 1e3:.0f} ms each, would give a worker ~{sizing.reading_rate():,.0f} stacks a second.
- *Ingest beside training*, making new stacks as fast as a GPU takes them: ~{made * a_gpu:.1f} cores. Stacks are seen
again and again, so that fewer do. A run pins its snapshot: what is ingested meanwhile is for the next one.
- *Ingest before training* of {SCANS[-1]:,} scans, by CPUs alone:

{table}"""


# inference ------------------------------------------------------------------------------------------------------------


def _inference() -> str:
    session, tokens = _cost(MODALITIES), (SIZE_PX // 14) ** 2
    parameters = {"ViT-S/14": 22e6, "ViT-L/14": 304e6}
    rows: list[Sequence[str]] = []
    for cpus, gpus in ((16, 0), (128, 0), (16, 1), (128, 8), (512, 32)):
        cells = [f"{cpus} CPUs, {counted(gpus, 'GPU')}" if gpus else f"{cpus} CPUs"]
        for count in parameters.values():
            if gpus:
                on_gpu = sizing.predicting_gpu_s(tokens=tokens + 1, stacks=session.stacks)
                limits = {"CPUs": cpus / session.seconds, "GPUs": gpus / on_gpu}
            else:
                on_cpu = sizing.predicting_s(parameters=count, tokens=tokens, stacks=session.stacks)
                limits = {"CPUs": cpus / (session.seconds + on_cpu)}
            first = sizing.first_bottleneck(limits)
            cells.append(f"{about(3600 * limits[first])} ({first})")
        rows.append(cells)
    needed = session.seconds / sizing.predicting_gpu_s(tokens=tokens + 1, stacks=session.stacks)
    return f"""## Inference: sessions an hour

{_table(["machine", *parameters], rows)}

A session of {MODALITIES} modalities and {session.stacks} slices takes {session.seconds:.2f} s of a core before the
model sees it. A GPU's rate follows from 64 stacks' crops through a ViT-L in 140 ms (A step of pretraining on a GPU),
and is taken for ViT-S as well: ~{needed:.0f} CPUs keep one busy. Inference of raw scans wants CPUs, and one GPU for
many."""


def _limits() -> str:
    rows = [
        ("CPUs beside each GPU", f"{CPUS_PER_GPU}", "assumed"),
        ("a file of a scan", f"{sizing.SCAN_BYTES / 1e6:g} MB", "assumed"),
        ("network of a node of 8 GPUs", f"{sizing.NODE_RATE / 1e9:g} GB/s", "assumed (100 Gbit/s)"),
        ("network between GPUs", f"{sizing.GPU_LINK_RATE / 1e9:g} GB/s each", "assumed (400 Gbit/s)"),
        ("within a node", f"{sizing.INSIDE_LINK_RATE / 1e9:g} GB/s each", "assumed, of NVLink's 450"),
        ("GETs, PUTs of one prefix", f"{sizing.GETS_RATE:,.0f}, {sizing.PUTS_RATE:,.0f} a second", "what S3 documents"),
        ("one answer of the store", f"{sizing.ANSWER_S * 1e3:.0f} ms", "assumed"),
        ("requests for a row group in training", f"{sizing.OPEN_REQUESTS + 1}", "counted: size, footer in two, pixels"),
        ("requests for a shard in ingest", "scans + a look, 2 to 3 tables, the commit", "counted in the code"),
    ]
    return f"""## What else the plans stand on

{_table(["what", "figure", "from"], rows)}"""


# the driver -----------------------------------------------------------------------------------------------------------

DRIVER: list[Sequence[str]] = [
    ("discovery in a bucket, listing to shards", "210", "", "1,179 MB"),
    ("sessions to shards and their names", "11.7", "3.1", "653 MB"),
    ("every shard as Ray is handed it, 144 MB", "40.5", "7.1", "810 MB"),
    ("471 shards of no work through Ray Data", "14.1", "5.6", "272 MB"),
    ("a second submission reads all commits, on disk", "22.9", "13.0", "1,009 MB"),
    ("all read again, and a snapshot of 50 MB taken", "20.3", "20.0", "1,626 MB"),
    ("the store opened", "1.4", "1.4", "394 MB"),
    ("progress told 20,834 times, warnings of all workers", "1.0", "0.2", "94 MB"),
    ("200,000 figures logged, 20 at a time, on disk", "29.3", "6.6", "592 MB"),
    ("the same before: a write for each figure", "81.4", "15.7", "593 MB"),
    ("the same as segments, in memory", "3.6", "3.5", "611 MB"),
    ("these figures read back while it runs", "5.9", "1.7", "763 MB"),
    ("the end of the run: figures to a table", "6.9", "2.2", "820 MB"),
    ("summary of all scans", "44", "47", "1,824 MB"),
    ("the same before: all columns read", "704", "206", "4,392 MB"),
    ("blocks of the report, and its page", "21", "25", "1,824 MB"),
    ("6 million stacks: subjects held out", "1.6", "1.5", "1,192 MB"),
    ("the same before: a Python object a stack", "28.8", "6.6", "1,973 MB"),
    ("6 million stacks: units of reading", "3.3", "3.1", "2,083 MB"),
    ("the same before: all columns sorted", "412", "5.9", "2,334 MB"),
    ("6 million stacks: subjects counted", "0.2", "0.3", "2,083 MB"),
    ("the same before: a Python object a stack", "73.7", "11.8", "2,730 MB"),
]

DRIVER_NOTES = """Two cores, with three to ten times as much other work on them: seconds of the wall say little, and
those of CPU are up to twice what a quiet machine takes. "Before" is what it was before it was mended for this page; the
summary before ran beside the most other work, where opening the store took 3.9 s of CPU. Memory is the most that the
process had by then. Discovery on a quieter machine: tests/benchmarks/README.md, "Listing a bucket".

- *Ingest* wants a head of ~2 GB for 1,000,000 scans; what it takes grows as the scans do. On an object store
each of the two readings of all commits is 20,840 GETs, 16 at once: ~40 s at 30 ms.
- *The journal* of a run on an object store gets a segment each 10 s. They are folded each hour (360), so that who
looks at a run of a week reads 360 at the most and not 60,000.
- *Pretraining* of 60 million stacks would want ~20 GB of the driver, and ~0.6 GB of each worker for its plan: ten times
what 6 million take. Filter with `where`, or begin with a part.
- *The board* of a pretraining gave 624 answers a second to four processes on this machine; each GPU's worker asks once
a second. 256 are served, 1,000 would be late to hear of a stop."""


def _driver() -> str:
    return f"""## The driver's own load: `python -m tests.campaigns.driver_load`

{_table(["1,000,000 scans, 20,840 shards, 1,000 workers", "seconds", "CPU seconds", "peak memory"], DRIVER)}

{DRIVER_NOTES}"""


# words ----------------------------------------------------------------------------------------------------------------


def about(value: float) -> str:
    """~1.2 million, ~45,300, ~1,230, ~0.83."""
    if value >= 1e6:
        return f"~{number_text(value / 1e6)} million"
    return f"~{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"~{number_text(value)}"


def about_bytes(size: float) -> str:
    for unit, name in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB")):
        if size >= unit:
            return f"~{number_text(size / unit)} {name}"
    return f"~{number_text(size / 1e6)} MB"


def _time(seconds: float) -> str:
    return f"~{duration_text(seconds)}"


def _remedies(found: dict[str, None]) -> str:
    return "What to do. " + " ".join(f"*{name}*: {REMEDIES[name]}." for name in found)


def _wrapped(section: str) -> str:
    """Paragraphs and items of lists in lines of at most WIDTH; tables and headings as they are."""
    blocks = []
    for block in section.split("\n\n"):
        if block.startswith(("|", "#")):
            blocks.append(block)
            continue
        items = re.split(r"\n(?=- )", block)
        lines = (
            textwrap.fill(
                " ".join(item.split()), WIDTH, break_on_hyphens=False, subsequent_indent="  " * item.startswith("-")
            )
            for item in items
        )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")

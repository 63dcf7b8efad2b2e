"""What a job costs, told before it runs: time, bytes and requests, from figures that were measured.

One model for the plans that `bfp submit --dry-run` shows and for infra/SIZING.md (`tests.benchmarks.sizing` writes it).
Plain numbers in, plain numbers out; light: no torch, no ray, and nothing is opened. Rates are of one core or one GPU.

Each constant names where it comes from: [README] is tests/benchmarks/README.md, with the section; [code] is a number
that bfp itself sets; [vendor] and [assumed] were not measured here, and what follows from them is an extrapolation.

Letters: P parameters of a network, N patches of a crop, B stacks of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bfp.specs.backbones import BackboneFacts, backbones

RAY_START_S = 15.0  # DESIGN, "Quiet": import, start of Ray, the first line

# scans to stacks: seconds of one core, of scans with skull and noise at 1 mm and 224 pixels ---------------------------

SCAN_S = 0.07  # decode and resample: 0.054 with Ray and all, of 2 mm scans [README, A whole ingest]
REGISTRATION_S = 0.5  # rigid, of a scan: within 0.8 s of CPU for three modalities [README, Inference]
DEEPBET_S = 8.0  # CPU seconds at the most: 4 s of two cores [DESIGN, "Brain masks"]; a session's T1w
N4_S = 1.6  # the median of sixteen real scans, 0.3 to 2.4 [README, One scan to slices]
SERIES_S = 0.15  # a DICOM series to a NIfTI file [README, One scan to slices]
SHARDS_RATE = 33.0  # a second that one driver handed out, of no work, to 2 workers [tests.campaigns.driver_load]
BETWEEN_SHARDS_S = 0.15  # a worker waits for Ray Data [README, A whole ingest]
DISCOVERY_S = 1.3e-4  # a scan, listing to shards, of a bucket [README, Listing a bucket]
LONGEST_SHARD = 4.0  # times the mean: `cohorts.shards.LONGEST` [code]
HEAD_MM = 180.0  # of slices with foreground: 155 to 190 of the scans of [README, One scan to slices]
COMPRESSED = 0.43  # what lz4 left of the channels that are not empty: 0.29 to 0.47 of ten real scans
COMPRESSION_RATE = 0.9e9  # pixels of 8 bits a second: 0.95 [README, The store's layout]
SCAN_BYTES = 10e6  # of a file at 1 mm, compressed: [assumed]

# reading a store ------------------------------------------------------------------------------------------------------

READ_RATE = 2.2e9  # pixels a second of CPU, the lesser of two [README, Reading back]
GROUP_STACKS = 15.0  # of a row group: 16, the last of a session fewer [code]
FOOTER_BYTES = 143_361  # of a part of 2,880 stacks, written so: 192 row groups, ten columns
OPEN_REQUESTS = 3  # pyarrow asks for the size, the last 64 KiB, and the rest of the footer
TABLE_REQUESTS = 3  # of a small part: the size, the end with the footer, the columns
FETCHES_AT_ONCE = 32  # `batches.reader.REMOTE_THREADS` [code]
ANSWER_S = 0.03  # of an object store to one request: DESIGN, "Training reads the store"

# prediction -----------------------------------------------------------------------------------------------------------

CPU_RATE = 60e9  # operations a second of one CPU: ViT-S and ViT-B came to 77e9 to 84e9
GPU_TOKEN_RATE = 650e3  # tokens a second through a ViT-L: 64 stacks' crops in 140 ms [README, A step on a GPU]

# training: one H100 80GB HBM3, bf16, compiled [README, A step of pretraining on a GPU] --------------------------------

GPU = "H100"
PEAK = 778e12  # operations a second of a product of large matrices
UNCOMPILED = 0.76  # of the rate: 598 of 771 stacks a second of ViT-S, 130 of 172 of ViT-L (at a batch of 48)
MEASURED_STACKS = 64  # of a GPU at once, ViT-L
STATE_BYTES = 16  # a parameter: student, teacher and two moments of AdamW in float32 [code]
GATHERS = 7  # of all weights, 4 bytes each: teacher once; student forward, backward and gradients twice each [code]

# what a cluster and its store are thought to do -----------------------------------------------------------------------

NODE_GPUS = 8  # [assumed], as all of these
GPU_LINK_RATE = 50e9  # bytes a second and GPU between nodes: 400 Gbit/s
INSIDE_LINK_RATE = 300e9  # within a node, NVLink: 450 GB/s each way [vendor]
NODE_RATE = 12.5e9  # bytes a second and node from the object store: 100 Gbit/s
GETS_RATE = 5500.0  # requests a second of one prefix, which S3 promises to serve [vendor]
PUTS_RATE = 3500.0  # likewise
PAGE_KEYS = 1000  # of a listing [vendor]


# preparing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scans:
    """What is prepared: how many sessions and scans, and how many of these are registered, masked, corrected (N4) and
    converted (DICOM)."""

    sessions: int
    scans: int
    registered: int = 0
    masked: int = 0
    corrected: int = 0
    converted: int = 0


class Cost(NamedTuple):
    """What preparing comes to. filled: the channels of all stacks that are not empty; seconds: of one CPU, up to the
    stacks in memory."""

    stacks: int
    filled: int
    seconds: float


def preparing(scans: Scans, *, slice_spacing_mm: float, neighbours: bool) -> Cost:
    """neighbours: each scan makes stacks of its own; otherwise each session does, a channel of each of its scans.

    How many volumes a 4-D scan has is not known before it is opened; each scan is counted as one.
    """
    slices = round(HEAD_MM / slice_spacing_mm)
    stacks = slices * (scans.scans if neighbours else scans.sessions)
    filled = (3 if neighbours else 1) * slices * scans.scans
    seconds = (
        SCAN_S * scans.scans
        + SERIES_S * scans.converted
        + REGISTRATION_S * scans.registered
        + DEEPBET_S * scans.masked
        + N4_S * scans.corrected
    )
    return Cost(stacks, filled, seconds)


class Ingest(NamedTuple):
    """What an ingest comes to. cpu_s: of all CPUs together; seconds: from start to end; size_bytes: of the stacks."""

    stacks: int
    size_bytes: int
    cpu_s: float
    seconds: float


def ingest(cost: Cost, *, scans: int, shards: int, size_px: int, workers: int) -> Ingest:
    """Of so many workers, of one CPU each. It ends no sooner than the longest shard, of at most LONGEST_SHARD means,
    nor than one driver has handed out all of them."""
    compression_s = 3 * cost.stacks * size_px**2 / COMPRESSION_RATE
    cpu_s = cost.seconds + compression_s + BETWEEN_SHARDS_S * shards
    longest_s = min(max(math.log(max(shards, 1)), 1.0), LONGEST_SHARD) * cpu_s / max(shards, 1)
    working_s = max(cpu_s / max(workers, 1), longest_s, shards / SHARDS_RATE)
    seconds = RAY_START_S + DISCOVERY_S * scans + working_s
    return Ingest(cost.stacks, round(COMPRESSED * cost.filled * size_px**2), cpu_s, seconds)


class Requests(NamedTuple):
    """To an object store. lists: pages of listings; gets: with those that ask for a size; conditional: of the puts."""

    lists: int
    gets: int
    puts: int
    conditional: int


def ingest_requests(*, scans: int, shards: int, rejecting: float = 0.3) -> Requests:
    """From the cohort's listing to the snapshot; rejecting: the share of shards with a row of `rejected`.

    Of each shard: a look whether it is committed, its scans, a put of its stacks, of its scans and of what it rejects,
    and its commit. At the end its commit is read twice (before the summary and before the snapshot), its table of scans
    four times (summary, histograms, two pictures), and of what it rejects once.
    """
    parts = 2 + rejecting
    tables = (4 + rejecting) * TABLE_REQUESTS
    objects = shards * (parts + 1)
    lists = math.ceil(scans / PAGE_KEYS) + 3 * math.ceil(shards / PAGE_KEYS) + 3 * math.ceil(objects / PAGE_KEYS)
    puts = round(shards * (parts + 1)) + 4  # store.json, the sessions and their commit, the snapshot
    return Requests(lists, round(scans + shards * (1 + 2 + tables)), puts, puts)


# predicting -----------------------------------------------------------------------------------------------------------


def predicting_s(*, parameters: float, tokens: int, stacks: int) -> float:
    """Seconds of one CPU for the forward passes of so many stacks: two operations a weight and token."""
    return 2 * parameters * tokens * stacks / CPU_RATE


def predicting_gpu_s(*, tokens: int, stacks: int) -> float:
    """Seconds of one GPU for a ViT-L; of smaller ones not more."""
    return tokens * stacks / GPU_TOKEN_RATE


# training -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heads:
    """The projection heads; ibot_prototypes and ibot_bottleneck are 0 where one head serves both."""

    hidden: int
    bottleneck: int
    prototypes: int
    ibot_bottleneck: int = 0
    ibot_prototypes: int = 0

    def parameters(self, width: int) -> int:
        own = _head_parameters(width, self.hidden, self.bottleneck, self.prototypes)
        if not self.ibot_prototypes:
            return own
        return own + _head_parameters(width, self.hidden, self.ibot_bottleneck, self.ibot_prototypes)


def _head_parameters(width: int, hidden: int, bottleneck: int, prototypes: int) -> int:
    """Three linear maps with their biases, the prototypes' directions and their lengths."""
    return (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * bottleneck + (bottleneck + 1) * prototypes


@dataclass(frozen=True, slots=True)
class Views:
    """The crops of one stack: two large ones and some small; predicted: the patches of the large ones that are hidden,
    on average; drop_path: the share of samples that skip a branch of the student."""

    large_px: int
    small_px: int
    small_count: int
    predicted: float
    drop_path: float = 0.0


def scaled(facts: BackboneFacts, *, width: int, depth: int) -> BackboneFacts:
    """The same backbone of another width and depth; its parameters as the products of its blocks, about."""
    products = round(facts.block_products * (width / facts.width) ** 2)
    parameters = round(facts.parameters * products * depth / (facts.block_products * facts.depth))
    return BackboneFacts(
        facts.patch_px, facts.size_px, facts.mean, facts.std, width, depth, facts.prefix, products, parameters
    )


def network_parameters(vit: BackboneFacts, heads: Heads, *, size_px: int) -> int:
    """P: of a student or a teacher that is trained at that size."""
    positions = (size_px // vit.patch_px) ** 2 + 1
    return vit.parameters + (positions + 1) * vit.width + heads.parameters(vit.width)  # one row is the mask token


def checkpoint_bytes(vit: BackboneFacts, heads: Heads, *, size_px: int) -> int:
    """One checkpoint: student, EMA teacher and both moments of AdamW, with all heads."""
    return STATE_BYTES * network_parameters(vit, heads, size_px=size_px)


def operations(vit: BackboneFacts, heads: Heads, views: Views) -> float:
    """Matrix operations of one step for one stack, as `pretraining.work.step_flops` counts them."""
    taught = 2 * _forward(vit, views.large_px)
    kept = 1 - views.drop_path
    studied = 0.0
    for count, size_px in ((2, views.large_px), (views.small_count, views.small_px)):
        embedding = _embedding(vit, size_px)
        studied += count * (3 * kept * (_forward(vit, size_px) - embedding) + 2 * embedding)
    cls_row = 2.0 * _head_products(vit.width, heads.hidden, heads.bottleneck, heads.prototypes)
    patch_row = cls_row
    if heads.ibot_prototypes:
        patch_row = 2.0 * _head_products(vit.width, heads.hidden, heads.ibot_bottleneck, heads.ibot_prototypes)
    return taught + studied + cls_row * (2 + 3 * (2 + views.small_count)) + patch_row * 4 * views.predicted


def _forward(vit: BackboneFacts, size_px: int) -> float:
    tokens = (size_px // vit.patch_px) ** 2 + vit.prefix
    return _embedding(vit, size_px) + vit.depth * (2 * tokens * vit.block_products + 4 * tokens**2 * vit.width)


def _embedding(vit: BackboneFacts, size_px: int) -> float:
    return 2.0 * (size_px // vit.patch_px) ** 2 * vit.width * 3 * vit.patch_px**2


def _head_products(width: int, hidden: int, bottleneck: int, prototypes: int) -> int:
    return width * hidden + hidden**2 + hidden * bottleneck + bottleneck * prototypes


class Measured(NamedTuple):
    """A row of [README, A step of pretraining on a GPU]: ViTs of patches of 14, compiled, at `FAST` and `VIEWS`."""

    encoder: str
    stacks_s: float

    @property
    def utilisation(self) -> float:
        return self.stacks_s * operations(backbones()[self.encoder], FAST, VIEWS) / PEAK


FAST = Heads(hidden=2048, bottleneck=256, prototypes=65536)
VIEWS = Views(large_px=224, small_px=98, small_count=8, predicted=2 * 256 * 0.5 * 0.3)
SMALL = Measured("vit_small_patch14_dinov2", 858.0)
LARGE = Measured("vit_large_patch14_dinov2", 170.0)


class Rate(NamedTuple):
    """Stacks a second of one GPU; measured: whether just this was, and not another shape, method or size of crops."""

    stacks_s: float
    utilisation: float
    measured: bool


def training_rate(vit: BackboneFacts, heads: Heads, views: Views, *, compiled: bool) -> Rate:
    """By the operations, and a utilisation between the two that were measured by the width's logarithm."""
    small, large = (backbones()[row.encoder] for row in (SMALL, LARGE))
    between = math.log(vit.width / small.width) / math.log(large.width / small.width)
    between = min(max(between, 0.0), 1.0)
    used = SMALL.utilisation + between * (LARGE.utilisation - SMALL.utilisation)
    used *= 1.0 if compiled else UNCOMPILED
    alike = [row for row, facts in ((SMALL, small), (LARGE, large)) if _alike(vit, facts)]
    measured = bool(alike) and heads == FAST and views == VIEWS and compiled
    return Rate(used * PEAK / operations(vit, heads, views), used, measured)


def _alike(vit: BackboneFacts, other: BackboneFacts) -> bool:
    return (vit.patch_px, vit.width, vit.depth) == (other.patch_px, other.width, other.depth)


class Step(NamedTuple):
    """A step of all GPUs: seconds of arithmetic, and of weights that travel; both go on at once."""

    computing_s: float
    moving_s: float

    @property
    def seconds(self) -> float:
        return max(self.computing_s, self.moving_s)


def step(rate: Rate, *, parameters: int, batch_size: int, gpus: int, micro_batches: int = 1) -> Step:
    """What a step takes on so many GPUs.

    Assumed, since one GPU is all that was measured: a GPU is as fast with its share of the batch as with
    MEASURED_STACKS, and weights travel at the links' full rates, all the while that GPUs compute.
    """
    link = INSIDE_LINK_RATE if gpus <= NODE_GPUS else GPU_LINK_RATE
    travelling = GATHERS * micro_batches * 4 * parameters if gpus > 1 else 0  # less the share that a GPU has itself
    return Step(batch_size / (gpus * rate.stacks_s), travelling / link)


def reading_bytes(*, size_px: int) -> float:
    """Bytes from an object store for one stack: its share of a row group, and of a footer that is read again."""
    return COMPRESSED * 3 * size_px**2 + FOOTER_BYTES / GROUP_STACKS


def reading_requests() -> float:
    """GETs for one stack. A worker keeps few of a large store's files open, so most row groups open theirs again."""
    return (OPEN_REQUESTS + 1) / GROUP_STACKS


def reading_rate() -> float:
    """Stacks a second that one worker can read from an object store."""
    return FETCHES_AT_ONCE / (ANSWER_S * (OPEN_REQUESTS + 1)) * GROUP_STACKS


def reading_cpus(stacks_s: float, *, size_px: int) -> float:
    """Cores that are busy with reading so many stacks a second."""
    return stacks_s * 3 * size_px**2 / READ_RATE


# which comes first ----------------------------------------------------------------------------------------------------


def ingest_limits(
    whole: Ingest, *, scans: int, shards: int, requests: Requests, cpus: int, nodes: int
) -> dict[str, float]:
    """How many scans a second each part of a cluster lets through. whole, shards, requests: of all of these scans."""
    return {
        "CPUs": cpus * scans / whole.cpu_s,
        "nodes' network": nodes * NODE_RATE / (SCAN_BYTES + whole.size_bytes / scans),
        "GETs of the object store": GETS_RATE * scans / requests.gets,
        "PUTs of the object store": PUTS_RATE * scans / requests.puts,
        "driver, which hands out shards": SHARDS_RATE * scans / shards,
    }


def training_limits(step: Step, *, batch_size: int, size_px: int, gpus: int, nodes: int) -> dict[str, float]:
    """How many stacks a second each part of a cluster lets through."""
    return {
        "GPUs": batch_size / step.computing_s,
        "network between GPUs": batch_size / step.moving_s if step.moving_s else math.inf,
        "nodes' network": nodes * NODE_RATE / reading_bytes(size_px=size_px),
        "GETs of the object store": GETS_RATE / reading_requests(),
        "requests in flight of the workers": gpus * reading_rate(),
    }


def first_bottleneck(limits: Mapping[str, float]) -> str:
    """The part that lets through the least."""
    return min(limits, key=lambda name: limits[name])

"""How fast a GPU trains: a step of pretraining beside the most matrix operations that the card does.

    python -m tests.benchmarks.gpu [ROW …] [--store STORE]

A row is ENCODER:BATCH, with `:compile` and `:DROP_PATH` where wanted. Each is trained for a while, one after the other,
in bf16, with the preset `dinov2-fast` and the crops of `brain` (2 of 224 and 8 of 98 pixels, cut on the GPU). Printed:

`step`         median over windows of steps, each window ended by waiting for the GPU
`utilisation`  the matrix operations of a step, recomputation not counted, over its time, as a share of the peak that a
               product of two bf16 matrices of 8192 × 8192 reached first (`bfp.pretraining.work`)
`host`         how long the host takes to ask for a step, as a share of the step: at 1 the GPU waits for the host
`memory`       the most that tensors took

and, with a store (of 224 pixels), what `bfp submit` logs while it trains the last row from there: stacks a second,
utilisation, and the share of the time that waited for stacks.

`attention`    forward and backward of a batch's crops alone: each size by itself, all of them laid end to end, and the
               small ones padded to the size of the large ones
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bfp.batches.plan import BatchPlan, units_of
from bfp.batches.reader import read
from bfp.models.encoder import create
from bfp.pretraining import checkpoint
from bfp.pretraining.crops import LARGE_CROPS
from bfp.pretraining.loop import Recipe, one_step, prepare, train
from bfp.pretraining.step import TrainState
from bfp.pretraining.work import matrix_peak, step_flops
from bfp.storage import place
from bfp.store.reader import SliceStore
from tests.benchmarks.pretrain import LARGE_PX, SMALL_CROPS, SMALL_PX, Setting, draws, recipe
from tests.pretraining.makers import make_stacks

GPU = torch.device("cuda")
ROWS = ("vit_small_patch14_dinov2:128", "vit_large_patch14_dinov2:64:compile")
WARM_UP, WINDOWS, WINDOW = 6, 3, 8  # steps before anything is timed; windows, and steps in each
FROM_STORE = 5  # windows as they are logged


class Row(NamedTuple):
    encoder: str
    batch_size: int
    compiled: bool
    drop_path: float

    @classmethod
    def parse(cls, text: str) -> Row:
        encoder, batch_size, *more = text.split(":")
        drop_path = [float(part) for part in more if part != "compile"]
        return cls(encoder, int(batch_size), "compile" in more, drop_path[0] if drop_path else 0.0)

    def recipe(self) -> Recipe:
        what = recipe(Setting(self.encoder, self.batch_size, "bf16"), drop_path=self.drop_path)
        return dataclasses.replace(what, compiled=self.compiled, ssl=dataclasses.replace(what.ssl, constant_masks=True))

    def start(self) -> TrainState:
        vit = create(self.encoder, size_px=LARGE_PX, layer_scale=1e-5, seed=1)
        return prepare(vit, recipe=self.recipe(), device=GPU, workers=1)


def measure(row: Row, peak: float) -> str:
    what, state = row.recipe(), row.start()
    stacks = make_stacks(row.batch_size, shape=(LARGE_PX, LARGE_PX)).to(GPU)
    predicted = 0

    def step() -> None:
        nonlocal predicted
        now = what.schedules.at(state.step)
        result = one_step(state, stacks, draws=draws(what, state.step), now=now, recipe=what, group=None)
        predicted = len(result.targets.patches)

    for _ in range(WARM_UP):
        step()
    asked_s, took_s = [], []
    for _ in range(WINDOWS):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        step()
        asked_s.append(time.perf_counter() - began_s)  # of one: of several, those behind would wait for room
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        for _ in range(WINDOW):
            step()
        torch.cuda.synchronize()
        took_s.append((time.perf_counter() - began_s) / WINDOW)
    median_s = statistics.median(took_s)
    flops = step_flops(state.student, crops=what.crops, ssl=what.ssl, stacks=row.batch_size, predicted=predicted)
    rate, used, asked = row.batch_size / median_s, flops / median_s / peak, statistics.median(asked_s) / median_s
    memory_gb = torch.cuda.max_memory_allocated() / 1e9
    return (
        f"{median_s * 1e3:7.1f} ms  {rate:7.0f} stacks/s  utilisation {used:.3f}  host {asked:.2f}  {memory_gb:.1f} GB"
    )


class _Enough(Exception):
    pass


def from_store(row: Row, uri: str) -> str:
    """What the training loop itself logs, its own figures, monitors and reading included."""
    store = SliceStore.open(place(uri))
    order = BatchPlan(units_of([store.stack_index()]), batch_size=row.batch_size, seed=1)
    logged: list[dict[str, float]] = []

    def log(step: int, found: dict[str, float]) -> None:
        logged.append(found)
        if len(logged) > FROM_STORE:
            raise _Enough

    what, state = row.recipe(), row.start()
    with tempfile.TemporaryDirectory() as folder:
        writer = checkpoint.Writer(
            place(folder), schedules=what.schedules, keep=1, keep_every=None, before_marker=lambda step: None
        )
        with suppress(_Enough):
            train(
                state,
                recipe=what,
                batches=read([store], order, pinned=True),
                group=None,
                log=log,
                log_every=10,
                writer=writer,
                save_every=what.schedules.steps,
                stop=lambda: False,
            )
    rate, wait, used = (
        statistics.median([found[name] for found in logged[1:]])
        for name in ("samples_per_s", "data_wait_share", "flop_utilisation")
    )
    return f"{rate:7.0f} stacks/s  utilisation {used:.3f}  waiting for stacks {wait:.2%}"


def attention(batch_size: int, *, heads: int = 16, width: int = 64) -> dict[str, float]:
    """Milliseconds for one layer's attention, by how the crops are laid out; checks that all say the same."""
    from torch.nn.attention.varlen import varlen_attn

    lengths = [
        ((px // 14) ** 2 + 1, count * batch_size) for px, count in ((LARGE_PX, LARGE_CROPS), (SMALL_PX, SMALL_CROPS))
    ]
    (long, _), (short, _) = lengths
    apart = [
        torch.randn(3, n, heads, T, width, device=GPU, dtype=torch.bfloat16, requires_grad=True) for T, n in lengths
    ]
    packed = torch.cat([own.detach().transpose(2, 3).flatten(1, 2) for own in apart], dim=1).requires_grad_()
    ends = torch.tensor([T for T, n in lengths for _ in range(n)], device=GPU, dtype=torch.int32).cumsum(
        0, dtype=torch.int32
    )
    ends = F.pad(ends, (1, 0))
    filled = torch.cat([apart[0].detach(), F.pad(apart[1].detach(), (0, 0, 0, long - short))], dim=1).requires_grad_()
    mask = torch.ones(filled.shape[1], 1, 1, long, dtype=torch.bool, device=GPU)
    mask[len(apart[0][0]) :, ..., short:] = False

    def by_size() -> Tensor:
        found = [F.scaled_dot_product_attention(*own.unbind()) for own in apart]
        return torch.cat([own.transpose(1, 2).flatten(0, 1) for own in found])

    def end_to_end() -> Tensor:
        found: Tensor = varlen_attn(*packed.unbind(), ends, ends, long, long)
        return found

    def padded() -> Tensor:
        found = F.scaled_dot_product_attention(*filled.unbind(), attn_mask=mask).transpose(1, 2)
        return torch.cat([found[: len(apart[0][0])].flatten(0, 1), found[len(apart[0][0]) :, :short].flatten(0, 1)])

    ways: dict[str, Callable[[], Tensor]] = {"by size": by_size, "end to end": end_to_end, "padded": padded}
    reference = by_size().float()
    took = {}
    for name, way in ways.items():
        assert torch.allclose(way().float(), reference, atol=2e-2), f"attention {name} differs"
        gradient = torch.randn_like(way())
        spans = []
        for _ in range(12):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            way().backward(gradient)
            end.record()
            torch.cuda.synchronize()
            spans.append(begin.elapsed_time(end))
        took[name] = statistics.median(spans[2:])
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS, metavar="ROW")
    parser.add_argument("--store", help="a slice store of 224 pixels")
    given = parser.parse_args()
    peak = matrix_peak(GPU, torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, peak {peak / 1e12:.0f} TFLOP/s")
    rows = {text: Row.parse(text) for text in given.rows}
    for text, row in rows.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            print(f"{text:45} {measure(row, peak)}", flush=True)
        except torch.cuda.OutOfMemoryError:
            print(f"{text:45} out of memory", flush=True)
    if given.store:
        print(f"{text + ', from the store':45} {from_store(row, given.store)}", flush=True)
    took = attention(row.batch_size)
    print("attention  " + "  ".join(f"{name} {span:.2f} ms" for name, span in took.items()))


if __name__ == "__main__":
    sys.exit(main())

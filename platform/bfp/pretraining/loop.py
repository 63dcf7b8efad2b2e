"""Steps until done: crops, masks and a step for each batch; figures, checkpoints, and a way to stop in between.

`worker` is what each training worker runs: it builds the state, finds the last checkpoint and calls `train`. It runs
by itself, or on every rank of an initialised process group; then parameters, gradients and moments are sharded over
the workers (FSDP2). One worker alone is not sharded: the results are the same and a step is faster.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.distributed import DeviceMesh, ProcessGroup
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from bfp.errors import JobFailed
from bfp.models.vit import Backbone
from bfp.pretraining import checkpoint, monitors
from bfp.pretraining.crops import LARGE_CROPS, CropSettings, Normalisation, multi_crop
from bfp.pretraining.device import send_ahead
from bfp.pretraining.draws import Draws
from bfp.pretraining.masks import block_masks, evened, head_patches, masked
from bfp.pretraining.optimiser import weight_norm
from bfp.pretraining.schedules import Length, Now, Schedules
from bfp.pretraining.step import (
    Network,
    Part,
    SslSettings,
    StepResult,
    TrainState,
    kept_samples,
    make_network,
    start,
    train_step,
    twin,
)
from bfp.pretraining.tripwire import Tripwire, verdict
from bfp.pretraining.work import matrix_peak, memory_peaks, step_flops
from bfp.storage import Place

Log = Callable[[int, dict[str, float]], None]  # steps done, figures by name
OpenBatches = Callable[[int, int, int], Iterator[Tensor]]  # steps done, rank, workers -> uint8 (B / workers, 3, H, W)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what is learned.

    batch_size: stacks in a step, over all workers. micro_batches: in how many a worker's share is computed, one after
    the other (see `step.train_step`). recompute: the student's activations, to save memory; compiled: see
    `models.vit.Backbone`.
    """

    ssl: SslSettings
    schedules: Schedules
    crops: CropSettings
    normalisation: Normalisation
    batch_size: int
    seed: int
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batches: int = 1
    recompute: bool = False
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often figures are logged and checkpoints saved, in steps; keep, keep_every: see `checkpoint.Writer`."""

    log_every: int
    save_every: int
    keep: int
    keep_every: int | None = None


def worker(
    vit: VisionTransformer,
    *,
    mask_token: Tensor | None = None,
    recipe: Recipe,
    cadence: Cadence,
    checkpoints: Place,
    open_batches: OpenBatches,
    device: torch.device,
    log: Log,
    note: Callable[[str], None],
    logged: Callable[[int], None],
    stop: Callable[[], bool],
    tripwire: Tripwire | None = None,
) -> TrainState:
    """Train from the last checkpoint, or from `vit` where there is none, to the last step or until `stop` says so.

    vit: the encoder to start from, made for large_px images, equal on all workers; mask_token as in `Backbone`. log,
    and note, which is told what the user should know, are called on rank 0 alone; so is logged, which returns when what
    was logged up to a step will not be lost: not before is that step's checkpoint complete. open_batches gives this
    worker's share of each batch, from the first step that is not yet done. tripwire: asked on rank 0 alone.
    Raises JobFailed when training diverges, the batches end early, or features get worse and that is to end it;
    StorageError where a checkpoint cannot be written.
    """
    group = dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None
    rank, workers = (dist.get_rank(), dist.get_world_size()) if group else (0, 1)
    state = prepare(vit, mask_token=mask_token, recipe=recipe, device=device, workers=workers)
    done = checkpoint.steps(checkpoints)
    if done:
        marker = checkpoint.load(state, checkpoints, step=done[-1])
        before = [Length(*length) for length in marker["earlier"]]
        schedules = recipe.schedules.going_on(state.step, steps=marker["steps"], earlier=before)
        recipe = replace(recipe, schedules=schedules)
        if rank == 0 and marker["steps"] != schedules.steps:
            note(
                f"extended from {marker['steps']:,} to {schedules.steps:,} steps: learning rate, weight decay, "
                f"momentum and temperature go from where they stood at step {state.step:,} to the curves of the new "
                f"length, which they reach at step {schedules.rewarmed_at:,}"
            )
    with checkpoint.Writer(
        checkpoints,
        schedules=recipe.schedules,
        keep=cadence.keep,
        keep_every=cadence.keep_every,
        before_marker=logged,
    ) as writer:
        train(
            state,
            recipe=recipe,
            batches=open_batches(state.step, rank, workers),
            group=group,
            log=log,
            log_every=cadence.log_every,
            writer=writer,
            save_every=cadence.save_every,
            stop=stop,
            tripwire=tripwire,
        )
    return state


def prepare(
    vit: VisionTransformer,
    *,
    mask_token: Tensor | None = None,
    recipe: Recipe,
    device: torch.device,
    workers: int,
) -> TrainState:
    """A state before its first step: student and teacher alike, on the device, sharded over several workers."""
    torch.manual_seed(recipe.seed)  # the heads' weights: the same on every worker
    backbone = Backbone(vit, mask_token=mask_token, recompute=recipe.recompute, compiled=recipe.compiled)
    student = make_network(backbone, recipe.ssl, workers=workers).to(device)
    teacher = twin(student)
    if device.type == "cpu" and recipe.precision == "bf16":
        # torch's fused attention is slow backwards there: 73 ms forward and backward for 256 heads of 197 tokens, 39 ms
        # unfused. Forward alone, which is all that the teacher does, it takes 6 ms, unfused 17.
        for module in student.modules():
            if isinstance(module, Attention):
                module.fused_attn = False  # type: ignore[misc]  # final for TorchScript's sake only
    if workers > 1:
        mesh = dist.init_device_mesh(device.type, (workers,))
        shard(student, mesh)
        shard(teacher, mesh)
    return start(student, teacher, recipe.ssl)


def shard(network: Network, mesh: DeviceMesh) -> None:
    """Shard a network's parameters over the mesh: each branch of a block and each head by itself, the rest together.

    By branches and not by blocks, since stochastic depth calls the parts of a block one by one (see `models.vit`) and
    a parameter is whole only while what it was sharded with is being called.
    """
    block: Any
    for block in network.backbone.vit.blocks:
        fully_shard([block.norm1, block.attn, block.ls1], mesh=mesh)
        fully_shard([block.norm2, block.mlp, block.ls2], mesh=mesh)
    for head in (network.dino_head, network.ibot_head):
        if head is not None:
            fully_shard(head, mesh=mesh)
    # By default the outermost module stays whole after a forward pass, and only a backward pass would shard it again,
    # which the teacher never has.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def train(
    state: TrainState,
    *,
    recipe: Recipe,
    batches: Iterator[Tensor],
    group: ProcessGroup | None,
    log: Log,
    log_every: int,
    writer: checkpoint.Writer,
    save_every: int,
    stop: Callable[[], bool],
    tripwire: Tripwire | None = None,
) -> None:
    """Do the steps that are left. batches: uint8 (B / workers, 3, H, W), the next one first.

    A checkpoint is saved every `save_every` steps, at the end, and when `stop` ends it early: after the step at which
    any worker says so.
    """
    rank, workers = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
    # On the CPU, since asking a GPU at every step would wait for it.
    asking: Any = dist.new_group(backend="gloo") if group else None
    share = recipe.batch_size // workers
    device = state.cls_centre.device
    if tripwire is not None and state.step == 0 and (found := probed(state, tripwire, group)):
        log(0, found)
    peak = matrix_peak(device, torch.bfloat16 if recipe.precision == "bf16" else torch.float32)
    window = Window(recipe.batch_size)
    ahead = send_ahead(batches, device)
    while state.step < recipe.schedules.steps:
        writer.check()
        stacks = _next(ahead, state.step, window)  # (B / workers, 3, H, W)
        draws = Draws(recipe.seed, state.step, first=rank * share, count=share, total=recipe.batch_size)
        now = recipe.schedules.at(state.step)
        result = one_step(state, stacks, draws=draws, now=now, recipe=recipe, group=group)
        window.add(result)

        last = state.step == recipe.schedules.steps
        log_due = last or state.step % log_every == 0
        stopping = not last and _any(stop(), asking)
        save_due = last or stopping or state.step % save_every == 0
        probe_due = tripwire is not None and (last or state.step % tripwire.every == 0)
        worse = None
        if save_due:
            window.checkpoint_wait_s += writer.wait()
        if log_due or save_due or probe_due:
            found = window.close(group) | {"weight_norm": weight_norm(state.student).item()}
            fail_on_divergence(found, state.step, now, writer=writer)
            if tripwire is not None and probe_due:
                seen = probed(state, tripwire, group)
                worse = _shared(verdict(seen), group) if tripwire.stop and not last else None
                found |= seen
                window.open()
            if rank == 0:
                predicted = len(result.targets.patches)
                flops = step_flops(state.student, crops=recipe.crops, ssl=recipe.ssl, stacks=share, predicted=predicted)
                found["flop_utilisation"] = flops * found["samples_per_s"] / recipe.batch_size / peak
                log(state.step, found | memory_peaks(device) | monitors.figures(result) | now._asdict())
        if save_due or worse:
            writer.save(state)
        if worse:
            raise JobFailed(
                f"step {state.step:,}: {worse}, under another name. The checkpoint of this step stays; "
                "`--set probe.on_worse=warn` goes on from it"
            )
        if stopping:
            return
        del result  # its targets are as large as those that the next step makes


def one_step(
    state: TrainState, stacks: Tensor, *, draws: Draws, now: Now, recipe: Recipe, group: ProcessGroup | None
) -> StepResult:
    """From stacks to an updated state. stacks: uint8 (B / workers, 3, H, W) on the device, the places of `draws`."""
    size = draws.count // recipe.micro_batches
    parts = [
        _part(state, own, replace(draws, first=draws.first + number * size, count=size), recipe=recipe)
        for number, own in enumerate(stacks.split(size))
    ]
    if recipe.crops.teacher_views == "own":
        everyone = group if recipe.ssl.scope == "global" else None
        masks = evened([part.masked for part in parts], group=everyone)
        parts = [part._replace(masked=own) for part, own in zip(parts, masks, strict=True)]
    precision = torch.autocast(stacks.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bf16")
    return train_step(state, parts, now=now, ssl=recipe.ssl, group=group, precision=precision)


def _part(state: TrainState, stacks: Tensor, draws: Draws, *, recipe: Recipe) -> Part:
    """The views of some stacks, what is hidden of them, and which samples go where."""
    ssl, device, backbone = recipe.ssl, stacks.device, state.student.backbone
    crops = multi_crop(stacks, draws, settings=recipe.crops, normalisation=recipe.normalisation)
    side = recipe.crops.large_px // backbone.patch_px
    masks = block_masks(
        draws,
        grid=(side, side),
        ratio=ssl.mask_ratio,
        probability=ssl.mask_probability,
        constant=ssl.constant_masks,
    )
    if crops.head is None:
        predicted = masked(masks, device=device)
    else:
        head = F.avg_pool2d(crops.head.float(), backbone.patch_px).flatten(1)  # (2·B, N)
        predicted = head_patches(masks, head=head, draws=draws, smallest_ratio=ssl.mask_ratio[0])
    keep = None
    if ssl.drop_path:
        blocks = len(backbone.vit.blocks)
        choose = partial(kept_samples, draws, blocks=blocks, drop_path=ssl.drop_path, device=device)
        keep = choose("large", crops=LARGE_CROPS), choose("small", crops=recipe.crops.small_count)
    return Part(crops, predicted, keep)


class Window:
    """Means of the figures since the last log, the rate, the share of the time that waited for data, and the seconds
    that waited for a checkpoint, if any did.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.open()

    def open(self) -> None:
        """Begin to count, from now on."""
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0
        self.waited_s = 0.0
        self.checkpoint_wait_s = 0.0
        self.opened_s = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """Count a step; nothing is waited for."""
        self.names = list(result.figures)
        values = torch.stack(list(result.figures.values()))
        self.sums = values if self.sums is None else self.sums + values
        self.steps += 1

    def close(self, group: ProcessGroup | None) -> dict[str, float]:
        """The figures of this window, meaned over the workers; opens the next one."""
        assert self.sums is not None, "a window closes after a step"
        if group is not None:
            dist.all_reduce(self.sums, group=group)
            self.sums /= dist.get_world_size(group)
        found = dict(zip(self.names, (self.sums / self.steps).tolist(), strict=True))
        elapsed_s = time.perf_counter() - self.opened_s
        found["samples_per_s"] = self.steps * self.batch_size / elapsed_s
        found["data_wait_share"] = self.waited_s / elapsed_s
        if self.checkpoint_wait_s:
            found["checkpoint_wait_s"] = self.checkpoint_wait_s
        self.open()
        return found


def fail_on_divergence(found: dict[str, float], step: int, now: Now, *, writer: checkpoint.Writer) -> None:
    """Raise JobFailed, with what is known, where a figure is not finite. The state must not be saved then."""
    broken = [name for name, value in found.items() if not math.isfinite(value)]
    if broken:
        saved = writer.saved
        sound = "no checkpoint was saved before"
        if saved is not None:
            sound = (
                f"the checkpoint of step {saved} is sound: `bfp export RUN FOLDER --step {saved}` takes its encoder "
                "out, and `encoder: FOLDER` starts from it"
            )
        norms = ", ".join(f"{name} {value:.3g}" for name, value in found.items() if name.startswith("gradient_norm"))
        raise JobFailed(
            f"training diverged at or shortly before step {step}: {', '.join(broken)} not finite "
            f"(learning rate {now.learning_rate:.2g}, teacher temperature {now.teacher_temperature:.3g}, {norms}); "
            f"{sound}. Under another name lower ssl.learning_rate or ssl.clip_norm, or lengthen ssl.warmup_epochs; "
            "with bf16, try fp32"
        )


@torch.no_grad()
def teacher_weights(state: TrainState) -> dict[str, Tensor]:
    """The teacher's ViT as a plain timm state dict of float32 on the CPU: what is exported. Every worker calls it."""
    return {name: _whole(value) for name, value in state.teacher.backbone.vit.state_dict().items()}


def teacher_mask_token(state: TrainState) -> Tensor:
    """float32 (1, D) on the CPU, for who trains this encoder further. Every worker calls it."""
    return _whole(state.teacher.backbone.mask_token.detach())


def _whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).float().cpu()


def probed(state: TrainState, tripwire: Tripwire, group: ProcessGroup | None) -> dict[str, float]:
    """The probe's figures on rank 0, none elsewhere. Every worker calls it; the others do not wait for the figures."""
    weights = teacher_weights(state)
    return tripwire.judge(weights) if group is None or dist.get_rank(group) == 0 else {}


def _next(batches: Iterator[Tensor], step: int, window: Window) -> Tensor:
    began_s = time.perf_counter()
    try:
        return next(batches)
    except StopIteration:
        raise JobFailed(f"the batches ended after step {step}; more steps were planned") from None
    finally:
        window.waited_s += time.perf_counter() - began_s


def _shared(text: str | None, group: ProcessGroup | None) -> str | None:
    """What rank 0 says, on every worker."""
    said = [text]
    if group is not None:
        dist.broadcast_object_list(said, src=0, group=group)
    return said[0]


def _any(flag: bool, group: ProcessGroup | None) -> bool:
    """Whether any worker says so. group: of gloo."""
    if group is None:
        return flag
    said = torch.tensor(flag, dtype=torch.uint8)
    dist.all_reduce(said, dist.ReduceOp.MAX, group=group)
    return bool(said.item())

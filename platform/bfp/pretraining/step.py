"""One step of DINOv2 pretraining, and the state that it changes.

Order (Oquab et al. 2023, arXiv 2304.07193, and the released code): teacher, targets, student, losses, backward, clip,
AdamW, then the teacher follows. The teacher sees the global crops whole; the student sees them with patches hidden,
and the local crops. Centres used are those of the steps before.

Reported and optimised differ, as in the released code: iBOT and KoLeo are reported at half of what is optimised.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from bfp.models.heads import Head
from bfp.models.vit import Backbone
from bfp.pretraining.crops import LARGE_CROPS, Crops
from bfp.pretraining.cross_entropy import softmax
from bfp.pretraining.device import send
from bfp.pretraining.dino import dino_loss
from bfp.pretraining.draws import Draws
from bfp.pretraining.ibot import ibot_loss
from bfp.pretraining.koleo import koleo_loss
from bfp.pretraining.masks import Masked
from bfp.pretraining.optimiser import adamw, clip, local, set_rates
from bfp.pretraining.schedules import Now
from bfp.pretraining.targets import sinkhorn, updated_centre


@dataclass(frozen=True, slots=True)
class SslSettings:
    """The method's numbers that do not change with the step.

    ibot_prototypes and ibot_bottleneck count only when the head is not shared. head_layers: linear maps before the
    prototypes. scope: over several workers, "global" takes KoLeo and the centres over the global batch, "local" as
    published (KoLeo in each worker, the patch centre as the mean of the workers' means). Sinkhorn always spans the
    global batch. constant_masks: every batch hides the same number of patches (see `masks`). drop_path: share of the
    samples that skip a residual branch of the student.
    """

    prototypes: int
    ibot_prototypes: int
    bottleneck: int
    ibot_bottleneck: int
    hidden: int
    shared_head: bool
    batch_norm_head: bool
    centring: Literal["softmax", "sinkhorn"]
    scope: Literal["global", "local"]
    student_temperature: float
    layer_decay: float
    patch_embed_rate: float
    clip_norm: float
    drop_path: float
    dino_weight: float
    ibot_weight: float
    koleo_weight: float
    mask_ratio: tuple[float, float]
    mask_probability: float
    constant_masks: bool = False
    head_layers: int = 3
    centre_momentum: float = 0.9


class Logits(NamedTuple):
    """cls (2·B, K), patches (M, K') of the hidden patches, local crops (L·B, K); crop-major."""

    cls: Tensor
    patches: Tensor
    local: Tensor


class Outputs(NamedTuple):
    """What a network says of a batch; crop-major.

    cls (2·B, D) and patches (2·B, N, D): the backbone's tokens of the global crops; patches without a gradient.
    rows: what the heads made, one tensor for each (FSDP wants outputs that are no views: see `logits`).
    local: L·B.
    """

    cls: Tensor
    patches: Tensor
    rows: tuple[Tensor, ...]
    local: int

    def logits(self) -> Logits:
        """The heads' rows by what they are of."""
        first, *own = self.rows
        if own:
            cls, local = first.split([len(self.cls), self.local])
            return Logits(cls, own[0], local)
        return Logits(*first.split([len(self.cls), len(first) - len(self.cls) - self.local, self.local]))


class Network(nn.Module):
    """Backbone and heads: what student and teacher are. ibot_head is None where the DINO head serves both."""

    def __init__(self, backbone: Backbone, dino_head: Head, ibot_head: Head | None) -> None:
        super().__init__()
        self.backbone, self.dino_head, self.ibot_head = backbone, dino_head, ibot_head

    def forward(
        self,
        large: Tensor,
        indices: Tensor,
        *,
        masks: Tensor | None = None,
        small: Tensor | None = None,
        keep: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    ) -> Outputs:
        """The tokens and logits of a batch, crop-major.

        large: (2·B, 3, H, W), normalised. indices: (M,) of the patches wanted, in (2·B · N). masks: bool (2·B, N) of
        the patches to hide. small: local crops (L·B, 3, h, w). keep: for the large and the small crops, which samples
        go through each residual branch (see `Backbone`).
        """
        tokens = self.backbone(large, masks, keep[0] if keep else None)
        cls = tokens.cls.contiguous()
        wanted = tokens.patches.flatten(0, 1).index_select(0, indices)  # (M, D)
        local_cls = cls[:0]
        if small is not None and len(small):
            local_cls = self.backbone(small, None, keep[1] if keep else None).cls
        rows: tuple[Tensor, ...] = (
            (self.dino_head(cls, local_cls), self.ibot_head(wanted))
            if self.ibot_head
            else (self.dino_head(cls, wanted, local_cls),)
        )
        return Outputs(cls, tokens.patches.detach(), rows, len(local_cls))

    def parts(self) -> dict[str, nn.Module]:
        """The modules whose gradients are clipped each by itself."""
        parts = {"backbone": self.backbone, "dino_head": self.dino_head, "ibot_head": self.ibot_head}
        return {name: part for name, part in parts.items() if part is not None}


def make_network(backbone: Backbone, ssl: SslSettings, *, workers: int = 1) -> Network:
    """A network of this backbone (used, not copied) with new heads."""

    def head(prototypes: int, bottleneck: int) -> Head:
        return Head(
            width=backbone.width,
            hidden=ssl.hidden,
            bottleneck=bottleneck,
            prototypes=prototypes,
            layers=ssl.head_layers,
            batch_norm=ssl.batch_norm_head,
            across_workers=workers > 1 and ssl.scope == "global",
        )

    own = None if ssl.shared_head else head(ssl.ibot_prototypes, ssl.ibot_bottleneck)
    return Network(backbone, head(ssl.prototypes, ssl.bottleneck), own)


@dataclass(slots=True)
class TrainState:
    """Everything that a step changes, and all that resuming needs. step: how many steps are done."""

    student: Network
    teacher: Network
    optimiser: torch.optim.AdamW
    cls_centre: Tensor  # (1, K)
    patch_centre: Tensor  # (1, K')
    step: int = 0


def start(student: Network, teacher: Network, ssl: SslSettings) -> TrainState:
    """A state before its first step; the teacher must equal the student (see `twin`)."""
    device = next(student.parameters()).device
    return TrainState(
        student=student,
        teacher=teacher,
        optimiser=adamw(
            student,
            depth=len(student.backbone.vit.blocks),
            layer_decay=ssl.layer_decay,
            patch_embed_rate=ssl.patch_embed_rate,
        ),
        cls_centre=torch.zeros(1, ssl.prototypes, device=device),
        patch_centre=torch.zeros(1, ssl.prototypes if ssl.shared_head else ssl.ibot_prototypes, device=device),
    )


def twin(student: Network) -> Network:
    """The teacher at the start: equal weights, never a gradient."""
    return copy.deepcopy(student).eval().requires_grad_(False)


class Part(NamedTuple):
    """Some of a worker's stacks: all of them, or those of a micro-batch.

    crops: normalised, crop-major. keep: which samples go through each residual branch of the student.
    """

    crops: Crops
    masked: Masked
    keep: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None


class Targets(NamedTuple):
    """The teacher's probabilities: cls (2·B, K) of the global crops, patches (M, K') of the hidden patches."""

    cls: Tensor
    patches: Tensor


class StepResult(NamedTuple):
    """What one step found; all on the device, nothing waited for.

    figures: scalars by name: the losses as reported, what was optimised, gradient norms before clipping.
    cls (2·B, D), patches (2·B, N, D): the teacher's tokens.
    """

    figures: dict[str, Tensor]
    cls: Tensor
    patches: Tensor
    targets: Targets


def train_step(
    state: TrainState,
    parts: Sequence[Part],
    *,
    now: Now,
    ssl: SslSettings,
    group: ProcessGroup | None = None,
    precision: AbstractContextManager[object],
) -> StepResult:
    """Do one step and count it.

    parts: this worker's stacks, in micro-batches of one size whose gradients are added up. Targets and centres are of
    all of them; KoLeo seeks neighbours, and batch normalisation has its statistics, within each. group: the workers
    that share the batch, None for one. precision: an autocast context for the networks' forward passes.
    """
    with precision, torch.no_grad():
        taught = [
            state.teacher(part.crops.large if part.crops.taught is None else part.crops.taught, part.masked.indices)
            for part in parts
        ]
    logits = [output.logits() for output in taught]
    targets = make_targets(
        state, _joined([own.cls for own in logits]), _joined([own.patches for own in logits]), now, ssl=ssl, group=group
    )
    cls_tokens, patch_tokens = (
        _joined([output.cls for output in taught]),
        _joined([output.patches for output in taught]),
    )
    del taught, logits
    found = []
    for part, cls, patches in zip(
        parts,
        targets.cls.chunk(len(parts)),
        targets.patches.split([len(part.masked.indices) for part in parts]),
        strict=True,
    ):
        crops, masked = part.crops, part.masked
        with precision:
            predicted = state.student(
                crops.large, masked.indices, masks=masked.masks, small=crops.small, keep=part.keep
            )
        own = losses(predicted, Targets(cls, patches), masked, ssl=ssl, group=group)
        (own["loss"] / len(parts)).backward()
        found.append({name: value.detach() for name, value in own.items()})
    figures = {name: torch.stack([own[name] for own in found]).mean() for name in found[0]}
    norms = clip(state.student.parts(), limit=ssl.clip_norm)
    set_rates(state.optimiser, now)
    state.optimiser.step()
    state.optimiser.zero_grad()
    follow(state.teacher, state.student, momentum=now.momentum)
    state.step += 1
    figures |= {f"gradient_norm_{name}": norm for name, norm in norms.items()}
    return StepResult(figures, cls_tokens, patch_tokens, targets)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


@torch.no_grad()
def make_targets(
    state: TrainState, cls: Tensor, patches: Tensor, now: Now, *, ssl: SslSettings, group: ProcessGroup | None
) -> Targets:
    """The teacher's logits, cls (2·B, K) and patches (M, K'), as targets.

    Softmax centres move afterwards: this batch enters at the next step.
    """
    temperature = now.teacher_temperature
    if ssl.centring == "sinkhorn":
        return Targets(*(sinkhorn(logits, temperature=temperature, group=group) for logits in (cls, patches)))
    targets = Targets(
        softmax(cls, centre=state.cls_centre, temperature=temperature),
        softmax(patches, centre=state.patch_centre, temperature=temperature),
    )
    move = partial(updated_centre, momentum=ssl.centre_momentum, scope=ssl.scope, group=group)
    state.cls_centre, state.patch_centre = move(state.cls_centre, cls), move(state.patch_centre, patches)
    return targets


def losses(
    predicted: Outputs, targets: Targets, masked: Masked, *, ssl: SslSettings, group: ProcessGroup | None
) -> dict[str, Tensor]:
    """The loss terms as DINOv2 reports them, and `loss`, which is what is optimised; scalars of this worker's share."""
    B = len(targets.cls) // LARGE_CROPS
    logits = predicted.logits()
    dino = dino_loss(
        student_global=logits.cls.unflatten(0, (LARGE_CROPS, B)),
        student_local=logits.local.unflatten(0, (-1, B)),
        targets=targets.cls.unflatten(0, (LARGE_CROPS, B)),
        temperature=ssl.student_temperature,
    )
    ibot = ibot_loss(
        student=logits.patches,
        targets=targets.patches,
        weights=masked.weights,
        crops=LARGE_CROPS * B,
        temperature=ssl.student_temperature,
    )
    neighbours = group if ssl.scope == "global" else None
    first, second = (koleo_loss(cls, group=neighbours) for cls in predicted.cls.chunk(LARGE_CROPS))
    koleo = ssl.koleo_weight * (first + second)
    dino_total = ssl.dino_weight * (dino.local_crops + dino.global_crops)
    return {
        "loss": dino_total + ssl.ibot_weight * ibot + koleo,
        "dino_local": dino.local_crops,
        "dino_global": dino.global_crops,
        "ibot": ibot / 2,
        "koleo": koleo / 2,
    }


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """teacher ← momentum · teacher + (1 - momentum) · student, over all parameters."""
    torch._foreach_lerp_(local(teacher.parameters()), local(student.parameters()), 1 - momentum)


def kept_samples(
    draws: Draws, name: str, *, crops: int, blocks: int, drop_path: float, device: torch.device
) -> list[Tensor]:
    """For each of the 2 · blocks residual branches, which max(⌊n · (1 - drop_path)⌋, 1) of n crops take it: (kept,).

    crops: views of each stack, n = crops · count. The choice is among this worker's own, as in DINOv2, so it is the one
    draw that depends on how the batch is split.
    """
    scores = draws.uniform(f"drop path {name}", 2 * blocks, crops).transpose(1, 2, 0).reshape(2 * blocks, -1)
    kept = max(int(scores.shape[1] * (1 - drop_path)), 1)
    chosen = send(torch.from_numpy(scores.argsort(axis=1)[:, :kept].copy()), device)
    return list(chosen.unbind())

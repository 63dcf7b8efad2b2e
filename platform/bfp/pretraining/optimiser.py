"""How parameters are updated: AdamW with a rate and a weight decay for each, and gradients clipped by module (DINOv2).

Rate: the backbone's by `models.layer_decay`; the heads' 1; the patch embedding's a further factor. Weight decay: on
everything, tokens and both parts of the weight-normalised prototypes included, but not on biases, norms and LayerScale.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bfp.models.heads import GroupNorm1d, Prototypes
from bfp.models.layer_decay import depth_rate
from bfp.pretraining.schedules import Now

BETAS = (0.9, 0.999)
EPS = 1e-8


class Multipliers(NamedTuple):
    """What a parameter's rate and weight decay are multiplied with; whether it is a prototype, or of the backbone.

    A mask token that did not come with the backbone is neither: it is as new as the heads.
    """

    rate: float
    decay: float
    last_layer: bool
    backbone: bool


def multipliers(
    network: nn.Module, *, depth: int, layer_decay: float, patch_embed_rate: float
) -> dict[str, Multipliers]:
    """The multipliers of every parameter of a network of `backbone.…` and heads, by name.

    depth: the backbone's number of blocks.
    """
    found = {}
    old = "backbone.vit." if getattr(network.get_submodule("backbone"), "new_mask_token", True) else "backbone."
    for path, module in network.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            plain = name == "bias" or isinstance(module, nn.LayerNorm | GroupNorm1d | LayerScale)
            found[full] = Multipliers(
                rate=_rate(full, depth=depth, layer_decay=layer_decay, patch_embed_rate=patch_embed_rate),
                decay=0.0 if plain else 1.0,
                last_layer=isinstance(module, Prototypes),
                backbone=full.startswith(old),
            )
    return found


def _rate(name: str, *, depth: int, layer_decay: float, patch_embed_rate: float) -> float:
    if not name.startswith("backbone."):
        return 1.0
    own = name.removeprefix("backbone.").removeprefix("vit.")
    rate = depth_rate(own, depth=depth, layer_decay=layer_decay)
    return rate * patch_embed_rate if own.startswith("patch_embed.") else rate


def adamw(network: nn.Module, *, depth: int, layer_decay: float, patch_embed_rate: float) -> torch.optim.AdamW:
    """AdamW over a network's parameters, one group for each kind of multipliers; its moments stand at zero."""
    parameters = dict(network.named_parameters())
    groups: dict[Multipliers, list[nn.Parameter]] = {}
    for name, kind in multipliers(
        network, depth=depth, layer_decay=layer_decay, patch_embed_rate=patch_embed_rate
    ).items():
        groups.setdefault(kind, []).append(parameters[name])
    optimiser = torch.optim.AdamW(
        [{"params": members, "kind": kind} for kind, members in groups.items()], betas=BETAS, eps=EPS, fused=True
    )
    # Made now rather than at the first step, so that a checkpoint always finds them.
    for parameter in parameters.values():
        optimiser.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimiser


def set_rates(optimiser: torch.optim.Optimizer, now: Now) -> None:
    """Give each group its rate and weight decay of this step."""
    for group in optimiser.param_groups:
        kind: Multipliers = group["kind"]
        rate = now.last_layer_rate if kind.last_layer else now.backbone_rate if kind.backbone else now.learning_rate
        group["lr"] = rate * kind.rate
        group["weight_decay"] = now.weight_decay * kind.decay


def clip(modules: dict[str, nn.Module], *, limit: float) -> dict[str, Tensor]:
    """Scale each module's gradients down to a norm of at most `limit`; the norms before, by the module's name.

    Where parameters are sharded, the norm is that over all shards.
    """
    gradients = {
        name: [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        for name, module in modules.items()
    }
    norms = dict(zip(modules, _norms(list(gradients.values())), strict=True))
    for name, own in gradients.items():
        torch._foreach_mul_(local(own), (limit / (norms[name] + 1e-6)).clamp(max=1.0))
    return norms


@torch.no_grad()
def weight_norm(network: nn.Module) -> Tensor:
    """The norm of all parameters, over all shards; a scalar."""
    return _norms([list(network.parameters())])[0]


def _norms(groups: list[list[Tensor]]) -> list[Tensor]:
    """The norm of each group of tensors, over all shards; scalars."""
    squares = torch.stack([torch.stack(torch._foreach_norm(local(group))).square().sum() for group in groups])
    if any(isinstance(tensor, DTensor) for group in groups for tensor in group):
        dist.all_reduce(squares)
    return list(squares.sqrt().unbind())


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This worker's shard of each tensor; the tensor itself where it is not sharded."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

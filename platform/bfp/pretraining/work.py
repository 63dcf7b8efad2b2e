"""How hard a worker's device works: the matrix operations of a step, the most that the device can do, and memory.

Model FLOP utilisation (Chowdhery et al. 2022, arXiv 2204.02311, appendix B) is what a step has to multiply and add,
over its time, as a share of the device's peak. Counted are the products of the layers and of attention, 2 operations
a multiply-add, as they are executed: what stochastic depth leaves out is not, nor what activation checkpointing or a
fused attention computes again. A backward pass is two forward ones, of the patch embedding one, since pixels want no
gradient.

The peak is not taken from a data sheet but measured, by a product of square matrices in the type that networks
compute in: utilisation is a share of what this device does here.
"""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from torch import nn

from bfp.pretraining.crops import LARGE_CROPS, CropSettings
from bfp.pretraining.step import Network, SslSettings

_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices: large enough to be limited by arithmetic
_TRIES = 5


def step_flops(network: Network, *, crops: CropSettings, ssl: SslSettings, stacks: int, predicted: int) -> float:
    """The matrix operations of one step of student, teacher and heads. stacks: of this worker; predicted: patches."""
    backbone = network.backbone
    large, small = LARGE_CROPS * stacks, crops.small_count * stacks
    taught = _backbone_flops(network, samples=large, kept=large, size_px=crops.large_px)
    studied = 0.0
    for samples, size_px in ((large, crops.large_px), (small, crops.small_px)):
        kept = max(int(samples * (1 - ssl.drop_path)), 1) if samples else 0
        studied += 3 * _backbone_flops(network, samples=samples, kept=kept, size_px=size_px)
        studied -= samples * _embedding_flops(backbone.vit.patch_embed.proj, size_px // backbone.patch_px)
    cls_row = _linear_flops(network.dino_head) + _prototype_flops(network.dino_head)
    patch_head = network.ibot_head or network.dino_head
    patch_row = _linear_flops(patch_head) + _prototype_flops(patch_head)
    heads = cls_row * (large + 3 * (large + small)) + patch_row * 4 * predicted
    return taught + studied + heads


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The most matrix operations a second that a product of square matrices reached, of a few."""
    side = _SIDE.get(device.type, _SIDE["cpu"])
    own = torch.Generator(device).manual_seed(0)  # nobody else's draws move
    left, right = torch.randn(2, side, side, device=device, generator=own).to(dtype).unbind()
    best_s = float("inf")
    for _ in range(_TRIES):
        _wait(device)
        began_s = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        best_s = min(best_s, time.perf_counter() - began_s)
    return 2 * side**3 / best_s


def memory_peaks(device: torch.device) -> dict[str, float]:
    """The most memory that this process has held so far, MB: resident on the host, and of tensors on a GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"host_memory_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    if device.type == "cuda":
        found["device_memory_peak_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found


def _backbone_flops(network: Network, *, samples: int, kept: int, size_px: int) -> float:
    """A forward pass; kept: how many samples go through each residual branch."""
    vit, side = network.backbone.vit, size_px // network.backbone.patch_px
    tokens = side**2 + vit.num_prefix_tokens
    block: Any = vit.blocks[0]
    width = block.attn.num_heads * block.attn.head_dim
    branches = tokens * _linear_flops(block) + 4 * tokens**2 * width  # the products with keys, and with values
    return samples * _embedding_flops(vit.patch_embed.proj, side) + kept * len(vit.blocks) * branches


def _embedding_flops(proj: Any, side: int) -> float:
    return 2.0 * side**2 * proj.out_channels * proj.in_channels * proj.kernel_size[0] * proj.kernel_size[1]


def _linear_flops(module: nn.Module) -> float:
    """Of all linear layers inside, for one row."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    return 2.0 * sum(layer.in_features * layer.out_features for layer in layers)


def _prototype_flops(head: nn.Module) -> float:
    prototypes: Any = head.last_layer
    return 2.0 * prototypes.weight_v.numel()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""The backbone in training: a timm Vision Transformer that can hide patches and take crops of any size.

timm's own forward knows neither masked patches nor DINOv2's way of resampling positions, and it returns class,
register and patch tokens in one tensor. `Backbone` runs timm's layers in order and adds these three; its `vit` is the
plain timm model, so what is exported is what was trained. At the size that `vit` was made for, without masks, both
give the same tokens.

Positions (Oquab et al. 2023, arXiv 2304.07193, and the released code): DINOv2 trains with a bicubic resampling whose
scale is (patches + 0.1) / (positions), without antialiasing: `PositionResampling(offset=0.1, antialias=False)`. Its
released register models are run with `PositionResampling(offset=0.0, antialias=True)`, which is also what timm does.

Departure from DINOv2: stochastic depth is told which samples keep a branch, rather than drawing them, so that
the draw can depend on the place in the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bfp.errors import InputError


@dataclass(frozen=True, slots=True)
class PositionResampling:
    """How position embeddings are brought to another number of patches: always bicubic.

    offset is added to the patch counts when the scale is computed; 0 means exact sizes.
    """

    offset: float = 0.1
    antialias: bool = False


class Tokens(NamedTuple):
    """What a backbone says of b images, after its final norm: cls (b, D), registers (b, R, D), patches (b, N, D)."""

    cls: Tensor
    registers: Tensor
    patches: Tensor


class Backbone(nn.Module):
    """A timm ViT with a mask token of its own.

    vit: a VisionTransformer with a class token, learned positions and no classifier; it is used, not copied.
    mask_token (1, D) stands in for the embedding of a hidden patch, before the position is added (Zhou et al. 2021).
    It starts at zero where none is given, and is then as new as the heads (new_mask_token).
    recompute: keep only what goes into each block for the backward pass, which computes the rest again (activation
    checkpointing, Chen et al. 2016, arXiv 1604.06174).
    compiled: compile a block, once for all blocks and each size of crops (torch.compile).
    """

    def __init__(
        self,
        vit: VisionTransformer,
        *,
        mask_token: Tensor | None = None,
        positions: PositionResampling | None = None,
        recompute: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if vit.cls_token is None or vit.pos_embed is None:
            raise InputError(
                f"{type(vit).__name__} has no class token or no learned positions, which DINOv2 needs; "
                "choose a backbone like vit_small_patch14_dinov2"
            )
        self.vit = vit
        self.new_mask_token = mask_token is None
        self.mask_token = nn.Parameter(torch.zeros(1, vit.embed_dim) if mask_token is None else mask_token.clone())
        self.resampling = positions or PositionResampling()
        self.recompute = recompute
        self._run: Callable[..., Tensor] = torch.compile(run_block, dynamic=False) if compiled else run_block

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return int(self.vit.embed_dim)

    @property
    def patch_px(self) -> int:
        """Side of a patch, in pixels."""
        return int(self.vit.patch_embed.patch_size[0])

    def forward(self, images: Tensor, masks: Tensor | None = None, keep: Sequence[Tensor] | None = None) -> Tokens:
        """The tokens of a batch.

        images: float (b, 3, H, W), normalised, H and W multiples of the patch size.
        masks: bool (b, N), true where a patch is hidden behind the mask token; None hides none.
        keep: stochastic depth: for each residual branch (two a block, in order) the indices of the samples that go
            through it; their branch is scaled by b / len(indices). None sends every sample through every branch.
        """
        tokens = self.embed(images, masks)
        for number, block in enumerate(self.vit.blocks):
            own = (block, tokens, *(keep[2 * number : 2 * number + 2] if keep is not None else ()))
            recompute = self.recompute and torch.is_grad_enabled()
            tokens = checkpoint(self._run, *own, use_reentrant=False) if recompute else self._run(*own)
        tokens = self.vit.norm(tokens)
        prefix = self.vit.num_prefix_tokens
        return Tokens(cls=tokens[:, 0], registers=tokens[:, 1:prefix], patches=tokens[:, prefix:])

    def embed(self, images: Tensor, masks: Tensor | None) -> Tensor:
        """What the first block takes: all tokens with their positions, (b, 1 + R + N, D). As in `forward`."""
        vit = self.vit
        rows, columns = (size // self.patch_px for size in images.shape[-2:])
        proj = vit.patch_embed.proj  # a convolution of windows that do not overlap: faster as a product
        tiles = images.unflatten(3, (columns, -1)).unflatten(2, (rows, -1)).permute(0, 2, 4, 1, 3, 5)
        pixels = tiles.flatten(3).flatten(1, 2)  # (b, N, 3 · patch_px²)
        patches = vit.patch_embed.norm(F.linear(pixels, proj.weight.flatten(1), proj.bias))  # (b, N, D)
        if masks is not None:
            patches = torch.where(masks.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        assert vit.cls_token is not None, "checked when made"
        prefix = vit.cls_token if vit.reg_token is None else torch.cat([vit.cls_token, vit.reg_token], dim=1)
        prefix_positions, patch_positions = self.positions(rows, columns)
        prefix = (prefix + prefix_positions) if prefix_positions.shape[1] else prefix
        tokens = torch.cat([prefix.expand(len(images), -1, -1), patches + patch_positions], dim=1)
        return vit.norm_pre(tokens)  # (b, 1 + R + N, D)

    def positions(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Positions for rows × columns patches: of prefix tokens (1, P, D), P possibly 0, and of patches (1, N, D)."""
        vit = self.vit
        prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
        assert vit.pos_embed is not None, "checked when made"
        ours, stored = vit.pos_embed[:, :prefix], vit.pos_embed[:, prefix:]
        stored_rows, stored_columns = vit.patch_embed.grid_size
        if (rows, columns) == (stored_rows, stored_columns):
            return ours, stored
        grid = stored.float().reshape(1, stored_rows, stored_columns, -1).permute(0, 3, 1, 2)
        antialias, offset = self.resampling.antialias, self.resampling.offset
        if offset:
            scale = ((rows + offset) / stored_rows, (columns + offset) / stored_columns)
            grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", antialias=antialias)
        else:
            grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=antialias)
        assert grid.shape[-2:] == (rows, columns), f"positions came out {tuple(grid.shape[-2:])}, not {(rows, columns)}"
        return ours, grid.flatten(2).transpose(1, 2).to(stored.dtype)


def run_block(block: Block, tokens: Tensor, attend: Tensor | None = None, feed: Tensor | None = None) -> Tensor:
    """One transformer block, where perhaps only some samples of the batch go through each branch.

    tokens (b, T, D); attend and feed are indices into b, for the attention and the feed-forward branch. What is
    dropped is not computed, which is why DINOv2 does it this way.
    """
    if attend is None or feed is None:
        return cast(Tensor, block(tokens))
    tokens = _add_branch(tokens, attend, lambda kept: block.ls1(block.attn(block.norm1(kept))))
    return _add_branch(tokens, feed, lambda kept: block.ls2(block.mlp(block.norm2(kept))))


def _add_branch(tokens: Tensor, kept: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    residual = branch(tokens[kept])
    return tokens.index_add(0, kept, residual.to(tokens.dtype), alpha=len(tokens) / len(kept))

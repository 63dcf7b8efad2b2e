"""A network that is taught the tissue of every pixel: how much of it the pixels can tell at all, for `learning`.

A U-Net (Ronneberger et al. 2015, arXiv 1505.04597) of three levels, batch-normalised, 12 to 48 wide; cross-entropy by
AdamW in one cycle, grey values changed a little. It learns from the label maps of the people that pretraining learns
from without any, and is as small as an encoder that two cores train meanwhile.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bfp.pretraining.labelled import read_stacks
from bfp.pretraining.probe import stacks_with_labels
from bfp.store.reader import SliceStore, labels_of

WIDTHS = (12, 24, 48)
STACKS, EPOCHS, BATCH, RATE = 2500, 4, 16, 3e-3


class UNet(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(*pair) for pair in zip((3, *WIDTHS), WIDTHS, strict=False))
        self.up = nn.ModuleList(
            _block(low + high, high) for low, high in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(WIDTHS[0], classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (b, classes, H, W) of images (b, 3, H, W), H and W multiples of 4."""
        levels: list[Tensor] = []
        for block in self.down:
            images = block(F.max_pool2d(images, 2) if levels else images)
            levels.append(images)
        images = levels.pop()
        for block in self.up:
            images = block(torch.cat([F.interpolate(images, scale_factor=2.0), levels.pop()], dim=1))
        scores: Tensor = self.out(images)
        return scores


def _block(from_width: int, to_width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (from_width, to_width):
        layers += [nn.Conv2d(width, to_width, 3, padding=1, bias=False), nn.BatchNorm2d(to_width), nn.ReLU()]
    return nn.Sequential(*layers)


def taught(store: SliceStore, *, segmentation: str, seed: int) -> UNet:
    """A network that learned the classes of a segmentation from a store's label maps. Output 0: none of them."""
    classes = list(store.classes(segmentation).values())
    chosen = stacks_with_labels(store, store.stack_index(), segmentation=segmentation, share=0.3, most=STACKS)
    read = list(read_stacks(store, chosen))
    pixels = torch.from_numpy(np.concatenate([stacks.pixels for stacks in read]))
    labels = np.concatenate([labels_of(stacks.rows.combine_chunks()) for stacks in read])
    wanted = torch.from_numpy(sum((number + 1) * np.isin(labels, list(of)) for number, of in enumerate(classes)))
    torch.manual_seed(seed)
    network = UNet(1 + len(classes))
    optimiser = torch.optim.AdamW(network.parameters())
    steps = len(pixels) // BATCH
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for own in torch.randperm(len(pixels))[: steps * BATCH].view(steps, BATCH):
            gamma, scale = (1 + 0.4 * (2 * torch.rand(2, BATCH, 1, 1, 1) - 1)).unbind()
            loss = F.cross_entropy(network((pixels[own] / 255) ** gamma * scale), wanted[own])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            rate.step()
    return network.eval()


@torch.inference_mode()
def shares_by(network: UNet, pixels: np.ndarray, *, patch_px: int) -> np.ndarray:
    """The share of each class in each patch, float32 (n, N, C), as the network has it. pixels: uint8 (n, 3, H, W)."""
    found = []
    for at in range(0, len(pixels), 128):
        said = network(torch.from_numpy(pixels[at : at + 128]) / 255).softmax(dim=1)[:, 1:]
        found.append(F.avg_pool2d(said, patch_px).flatten(2).transpose(1, 2).numpy())
    return np.concatenate(found)

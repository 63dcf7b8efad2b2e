"""What a step needs from the host, on the training device without waiting for it.

A copy from ordinary memory to a GPU waits until the GPU has done what it was told before; one from pinned memory does
not. So whatever goes there is pinned first, and the next batch is copied while the GPU computes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """These values of the host on the device; nothing is waited for."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def send_ahead(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The batches on the device. For a GPU each is copied, in a stream of its own, before the one before is used."""
    if device.type != "cuda":
        yield from (send(batch, device) for batch in batches)
        return
    copying = torch.cuda.Stream(device)
    ready: Tensor | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            following = send(batch, device)
        if ready is not None:
            yield ready
        torch.cuda.current_stream(device).wait_stream(copying)
        following.record_stream(torch.cuda.current_stream(device))
        ready = following
    if ready is not None:
        yield ready

"""How many GPUs there are, and how many a fine-tuning or a benchmark works on; a pretraining's stand in its spec.

Those of this machine are told without importing torch or ray: a dry run has to know them. Ray counts in the same way:
what NVIDIA's driver sees (NVML), less what CUDA_VISIBLE_DEVICES hides.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bfp.specs.finetune import FinetuneCompute


def gpus_here() -> int:
    """The NVIDIA GPUs that a job started here can use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = _gpus_of_the_driver()
    return count if visible is None else min(count, len([name for name in visible.split(",") if name]))


def gpus_of(compute: FinetuneCompute) -> float:
    """What is asked for, else one where there is one, of a Ray that is up."""
    import ray

    return min(1.0, ray.cluster_resources().get("GPU", 0.0)) if compute.gpus is None else compute.gpus


def _gpus_of_the_driver() -> int:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return 0  # no driver
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return 0  # a driver that is out of order: `bfp doctor` says more
    nvml.nvmlShutdown()
    return count.value

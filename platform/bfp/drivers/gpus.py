"""How many GPUs a fine-tuning or a benchmark works on; those of a pretraining stand in its spec."""

from __future__ import annotations

from bfp.specs.finetune import FinetuneCompute


def gpus_of(compute: FinetuneCompute) -> float:
    """What is asked for, else one where there is one."""
    import ray

    return min(1.0, ray.cluster_resources().get("GPU", 0.0)) if compute.gpus is None else compute.gpus

"""The five kinds of job, by name: one discriminated union on `kind`."""

from __future__ import annotations

from bfp.specs.benchmark import Benchmark
from bfp.specs.finetune import Finetune
from bfp.specs.infer import Infer
from bfp.specs.ingest import Ingest
from bfp.specs.pretrain import Pretrain

Spec = Ingest | Pretrain | Finetune | Benchmark | Infer

KINDS: dict[str, type[Spec]] = {
    "ingest": Ingest,
    "pretrain": Pretrain,
    "finetune": Finetune,
    "benchmark": Benchmark,
    "infer": Infer,
}

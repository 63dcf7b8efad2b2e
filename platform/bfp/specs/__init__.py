"""The typed specs: what a job is, as strict pydantic models; one discriminated union on `kind`.

    fields, cohorts, preprocessing, encoders     what the kinds share
    ingest, pretrain, finetune, benchmark, infer one module a kind; `kinds` unites them
    document     a YAML file as plain values, each with its line
    problems     every mistake of a spec, in words
    files        `load` and `dump`: a spec from a YAML file and back
    profile      bfp.toml: the targets by name; `clusters` has the fields of each, `paths` which paths a spec names
    submitting   what may change when a name is submitted again
    template     `bfp init`: a spec with every field and its meaning
    profile_template   the same for bfp.toml
    schema       the JSON Schemas under schemas/

This package imports neither torch nor ray, and is read by `cli`, `targets` and `drivers` alone; what lies below takes
plain values.
"""

from __future__ import annotations

from bfp.specs.benchmark import Benchmark
from bfp.specs.files import dump, load, loads
from bfp.specs.finetune import Finetune
from bfp.specs.infer import Infer
from bfp.specs.ingest import Ingest
from bfp.specs.kinds import KINDS, Spec
from bfp.specs.pretrain import Pretrain

__all__ = ["KINDS", "Benchmark", "Finetune", "Infer", "Ingest", "Pretrain", "Spec", "dump", "load", "loads"]

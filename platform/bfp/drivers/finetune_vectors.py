"""What a fine-tuning's approaches are learned from: a vector of each session, of its stacks or of what else is known.

1. each stack becomes a vector: the spread of the encoder's patch tokens (frozen), kept
2. the vectors of a session are pooled by slice position to one
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bfp.drivers.finetune_material import Material
from bfp.drivers.gpus import gpus_of
from bfp.runs import Run
from bfp.specs.encoders import parse_encoder
from bfp.specs.finetune import Finetune

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from bfp.models.encoder import LoadedEncoder
    from bfp.models.pooling import Pooling

POSITION_BANDS = 20
"""Bands of height, about 7 mm each. Of 8 and 20 the better on the sessions that chose `EncoderVectors`."""

MODEL, UNTRAINED, HISTOGRAMS, COVARIATES = "encoder", "untrained", "histograms", "covariates"
FROZEN, MEAN, NEIGHBOURS = "frozen", "mean", "neighbours"
SITE, PERMUTED, ORACLE = "site", "permuted", "oracle"
NO_RIVALS = (PERMUTED, ORACLE)
"""Approaches that are there to be compared with and not to be beaten."""


def approaches_of(spec: Finetune, material: Material) -> list[str]:
    """The model and its baselines, in the order in which they are shown."""
    asked = {
        FROZEN: spec.trains,
        MEAN: spec.pooling == "attention",
        NEIGHBOURS: spec.baselines.neighbours and material.task.type != "survival",
        UNTRAINED: spec.baselines.untrained and parse_encoder(spec.encoder).origin != "random",
        HISTOGRAMS: spec.baselines.histograms,
        COVARIATES: bool(spec.baselines.covariates),
        SITE: bool(material.site),
        PERMUTED: spec.baselines.permuted,
        ORACLE: spec.baselines.oracle is not None,
    }
    return [MODEL, *(name for name, wanted in asked.items() if wanted)]


def pooling_of(spec: Finetune, material: Material) -> Pooling:
    """Of vectors of an encoder at rest. What attention has to beat is pooling by position."""
    from bfp.models.pooling import Pooling

    return Pooling(bands=1 if spec.pooling == "mean" else POSITION_BANDS, parts=parts_of(material))


def parts_of(material: Material) -> tuple[str, ...]:
    return material.shown if material.store.form == "neighbours" else ("",)


def vectors_of(
    spec: Finetune, run: Run, material: Material, encoder: LoadedEncoder
) -> tuple[dict[str, np.ndarray], pa.Table]:
    """One vector a session for each approach on vectors, (n, F) each; and the encoder's of each stack."""
    import ray

    from bfp.features.describe import Describe, EncoderVectors, Histograms
    from bfp.features.doubles import check_parted, doubles
    from bfp.features.kept import Extraction
    from bfp.features.sessions import pool_sessions
    from bfp.finetuning.covariates import covariate_vectors
    from bfp.models.encoder import untrained
    from bfp.models.pooling import Pooling

    approaches, pooling = approaches_of(spec, material), pooling_of(spec, material)
    describe: dict[str, Describe] = {HISTOGRAMS: Histograms()} if HISTOGRAMS in approaches else {}  # cheap: goes first
    describe[MODEL] = EncoderVectors(encoder)
    if UNTRAINED in approaches:
        describe[UNTRAINED] = EncoderVectors(untrained(encoder))
    vectors: dict[str, np.ndarray] = {}
    tables: dict[str, pa.Table] = {}
    workers = spec.compute.workers or int(ray.cluster_resources()["CPU"])
    with Extraction(workers=workers, gpus=gpus_of(spec.compute), batch_size=spec.compute.batch_size) as extraction:
        for name, own in describe.items():
            run.phase(f"features: {name}", total=material.index.num_rows, unit="stacks")
            tables[name] = extraction.features(
                material.store,
                material.index,
                own,
                shown=material.shown,
                kept=run.folder / "features",
                on_done=run.progress,
                stopping=lambda: run.stopping,
            )
            if not vectors:  # planes are the same in every table
                homes = dict(zip(material.labelled.persons, material.folds.tolist(), strict=True))
                source = str(material.store.place)
                check_parted(doubles(tables[name]), homes, source=source, note=run.note, warn=run.warn)
            vectors[name] = pool_sessions(tables[name], material.labelled.sessions, pooling)
    if COVARIATES in approaches:
        vectors[COVARIATES] = covariate_vectors(material.covariates)
    if SITE in approaches:
        vectors[SITE] = covariate_vectors(material.site)
    if PERMUTED in approaches:
        vectors[PERMUTED] = vectors[MODEL]
    if MEAN in approaches:
        mean = Pooling(bands=1, parts=pooling.parts)
        vectors[MEAN] = pool_sessions(tables[MODEL], material.labelled.sessions, mean)
    if material.oracle is not None:
        vectors[ORACLE] = covariate_vectors({ORACLE: material.oracle})
    if FROZEN in approaches:
        vectors[FROZEN] = vectors.pop(MODEL)
    return {name: vectors[name] for name in approaches if name in vectors}, tables[MODEL]

"""A made store whose classes the encoder at rest does not tell, as trainings take it, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bfp.cohorts.sessions import Key
from bfp.features.describe import EncoderVectors
from bfp.features.extraction import describe_chunk, plan_chunks
from bfp.finetuning.crossvalidation import Study
from bfp.finetuning.logistic import Logistic
from bfp.finetuning.network import Pooled
from bfp.finetuning.session_stacks import KeptVectors, Places, StoredPixels
from bfp.finetuning.splits import grouped_folds
from bfp.finetuning.tuning import Epoch, Trial, TunedFold, Tuning, tune
from bfp.models.encoder import LoadedEncoder, load
from bfp.models.pooling import Pooling
from bfp.storage import Place
from bfp.store.reader import SliceStore
from tests.finetuning.makers import COHORT, SIZE_PX, make_labelled_store

SHOWN = ("T1w", "T2w", "FLAIR")
SHAPE = {"width": 32, "depth": 2, "heads": 2, "layer_scale": 1.0}
MEAN = Pooling(bands=1, parts=("",))
FULL = Tuning(
    tune="full",
    epochs=6,
    warmup_epochs=1,
    learning_rate=1.0,
    min_learning_rate=1e-6,
    weight_decay=0.05,
    sessions_per_step=4,
    slices_per_session=8,
    label_smoothing=0.1,
    class_balanced=False,
    layer_decay=0.65,
    drop_path=0.2,
)


class World(NamedTuple):
    store: SliceStore
    sessions: list[Key]
    study: Study
    encoder: LoadedEncoder
    features: pa.Table
    vectors: KeptVectors
    pixels: StoredPixels


def make_world(folder: Path, *, subjects: int = 30, stripes: float = 40.0, signal: float = 0.0) -> World:
    store = SliceStore.open(make_labelled_store(folder, subjects=subjects, signal=signal, stripes=stripes))
    encoder = load(origin="random", name="vit_small_patch14_dinov2", uri=None, size_px=SIZE_PX, **SHAPE)
    index, describe = store.stack_index(), EncoderVectors(encoder)
    chunks = plan_chunks(store, index, identity=describe.identity, shown=SHOWN)
    features = pa.concat_tables([describe_chunk(store, each, describe, shown=SHOWN, batch_size=64) for each in chunks])
    sessions = [Key(COHORT, f"{number:02}", "") for number in range(subjects)]
    classes, persons = np.arange(subjects) % 2, [f"{key.cohort}/{key.subject}" for key in sessions]
    folds = grouped_folds(
        persons=persons, classes=classes, strata=[""] * subjects, class_names=["CN", "AD"], folds=3, seed=0
    )
    study = Study(Logistic(2), classes, persons, folds, strengths=[0.001, 0.1], seed=0)
    return World(
        store,
        sessions,
        study,
        encoder,
        features,
        KeptVectors.of(features, sessions, parts=("",)),
        StoredPixels(store, index, sessions, shown=SHOWN, parts=("",)),
    )


def rare_stacks(*, sessions: int = 120, stacks: int = 30, width: int = 8) -> tuple[Study, KeptVectors]:
    """Vectors of which two a session, anywhere, tell the class: the others are noise."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(sessions * stacks, width)).astype(np.float32)
    classes, places = np.arange(sessions) % 2, []
    for n in range(sessions):
        rows = np.arange(n * stacks, (n + 1) * stacks)
        vectors[random.choice(rows, 2, replace=False), 0] += 5 * classes[n]
        places.append(Places(rows, np.linspace(0, 1, stacks, dtype=np.float32), np.zeros(stacks, dtype=np.int64)))
    persons = [f"{n}" for n in range(sessions)]
    folds = np.arange(sessions) // 2 % 3
    return Study(Logistic(2), classes, persons, folds, strengths=[0.001, 0.1], seed=0), KeptVectors(places, vectors)


def a_trial(world: World, *, tuning: Tuning = FULL, pooling: Pooled = MEAN, fold: int = 0, **fields) -> Trial:
    rests = tuning.tune == "frozen"
    told = {
        "study": world.study,
        "learned": world.study.folds != fold,
        "tested": world.study.folds == fold,
        "stacks": world.vectors if rests else world.pixels,
        "vectors": world.vectors,
        "encoder": None if rests else world.encoder,
        "pooling": pooling,
        "tuning": tuning,
        "number": fold,
        "epochs": None,
        "batch_size": 64,
    }
    return Trial(**(told | fields))


def train(trial: Trial, kept: Place, *, stop_after: int | None = None) -> TunedFold | Epoch:
    """What is told last; stop_after: it is left after so many epochs."""
    told: list[TunedFold | Epoch] = []
    for each in tune(trial, kept=kept, device="cpu"):
        told.append(each)
        if isinstance(each, Epoch) and each.number == stop_after:
            break
    return told[-1]

"""What pretraining makes an encoder learn, on people whom it never saw.

    python -m tests.benchmarks.learning FOLDER [--seeds 1 2 3] [--steps 800]

For each seed two cohorts are made, as `bfp demo` makes them, of other people: one to pretrain on, without labels, and
one to judge on. Both are ingested and the first is pretrained on, by the demo's specs and the code that `bfp submit`
runs; only `--steps` is ours. The encoder is taken out after an eighth, a quarter, a half and all of the steps. Printed
of each of these, of the same encoder untrained, and of what needs no encoder:

tissue        residual R² of the shares of tissue in a patch from its token (`bfp.metrics.tissue`), on 30 % of them
disease       AUROC of disease against control, 5 folds by subject, as `bfp submit finetune.yaml` does it
age           R² of age in years by ridge regression on the same vectors, 5 folds
few labels    AUROC on all other sessions, learned from 10, 30 or 100 of each class, the mean of DRAWS draws; of one
              strength of the regression, FEW_STRENGTH, since so few cannot choose

and how much the last encoder is above each of the others, on the same subjects, with 95 % intervals (over subjects; of
few labels, the middle 95 % of the draws); then the mean over seeds of what is over subjects, who are others for each.
Nothing is chosen here: what is in the specs was found on cohorts of other seeds. Run again, it goes on where it
stopped.

How much there is to be had of disease, two readings say that know more than any encoder: the spread over patches of the
shares of tissue by the true maps, and by a network that was taught the maps of those whom the encoder learned from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bfp.cli.demo import precision
from bfp.cli.jobs import run_job
from bfp.demo.cohort import make_cohort
from bfp.demo.plan import Groups
from bfp.drivers.finetune_vectors import POSITION_BANDS
from bfp.drivers.plan import cpus_here
from bfp.drivers.pretrain_export import export_checkpoint
from bfp.features.describe import Describe, EncoderVectors, Histograms
from bfp.finetuning.covariates import covariate_vectors
from bfp.finetuning.crossvalidation import Study, gather, run_fold
from bfp.finetuning.logistic import Logistic
from bfp.finetuning.splits import grouped_folds
from bfp.metrics.auroc import auroc, weighted_auroc
from bfp.metrics.bootstrap import Interval, subject_bootstrap
from bfp.metrics.over_folds import difference, over_folds
from bfp.metrics.tissue import patch_shares
from bfp.models.encoder import LoadedEncoder, load, untrained
from bfp.models.pooling import Pooling
from bfp.pretraining.labelled import read_stacks
from bfp.pretraining.probe import probe, stacks_with_labels
from bfp.runs import RunFolder
from bfp.specs import load as load_spec
from bfp.specs.finetune import Finetune
from bfp.storage import place
from bfp.store.reader import SliceStore, labels_of, pixels_of
from bfp.targets import Local
from tests.benchmarks.taught import shares_by, taught

LEARNED_FROM, JUDGED_ON = Groups(control=66, disease=66, tumour=18), Groups(control=120, disease=120, tumour=0)
PARTS = (8, 4, 2, 1)  # the encoder is taken out after the steps divided by each
FOLDS, PROBED_SHARE, PATCH_PX = 5, 0.3, 8
FEW, DRAWS, FEW_STRENGTH = (10, 30, 100), 40, 0.01
UNTRAINED, HISTOGRAMS, ORACLE, AGE_AND_SEX = "untrained", "histograms", "oracle (true severity)", "age and sex"
MAPS, TAUGHT = "oracle (true tissue)", "taught tissue"


class Answer(NamedTuple):
    """By reading: what it comes to, and how much the first is above it."""

    values: dict[str, Interval]
    gains: dict[str, Interval]


class Cohort(NamedTuple):
    """Sessions, one a subject: their stacks' pixels uint8 (n, 3, H, W), heights and sessions (n,), what is known."""

    store: SliceStore
    pixels: np.ndarray
    heights: np.ndarray
    session_of: np.ndarray
    subjects: list[str]
    known: list[dict[str, str]]

    def of(self, name: str) -> list[str]:
        return [labels[name] for labels in self.known]


def encoders_of(folder: Path, *, seed: int, steps: int) -> dict[str, LoadedEncoder]:
    """By the steps that they learned, the longest first, then the untrained one; makes whatever is not there yet."""

    def spec(kind: str, *changes: str) -> Any:
        with as_file(files("bfp.demo").joinpath("jobs", f"{kind}.yaml")) as file:
            return load_spec(file, overrides=[f"output={folder}/runs", *changes])

    cohorts = (("learned", LEARNED_FROM), ("judged", JUDGED_ON))
    for number, (name, groups) in enumerate(cohorts):
        make_cohort(
            folder / name,
            subjects=groups,
            seed=10_000 * seed + number,
            workers=cpus_here(),
            progress=lambda done, total: None,
            prefix=name[0],
        )
    with Local() as target:
        for name, _ in cohorts:
            ingest = [f"store={folder}/store-{name}", f"cohorts[0].bids={folder}/{name}", f"name=ingest-{name}"]
            submit(target, spec("ingest", *ingest))
        each = steps // max(PARTS)
        pretrain = spec(
            "pretrain",
            f"store={folder}/store-learned",
            f"seed={seed}",
            f"train.steps_per_epoch={steps // 4}",
            f"train.checkpoint_every={each}",
            f"train.keep_every={each}",
            "probe=null",
            *precision("pretrain"),
        )
        submit(target, pretrain)
    run, found = RunFolder(place(f"{folder}/runs/pretrain")), {}
    for part in reversed(PARTS):
        at = folder / f"encoder-{steps // part}"
        if not (at / "config.json").exists():
            export_checkpoint(run, place(str(at)), step=steps // part)
        size_px = SliceStore.open(place(f"{folder}/store-judged")).size_px
        found[f"{steps // part} steps"] = load(origin="folder", name=None, uri=str(at), size_px=size_px)
    return {**found, UNTRAINED: untrained(found[f"{steps} steps"])}


def submit(target: Local, spec: Any) -> None:
    run_job(spec, target, plan=target.plan(spec))


def read(store: SliceStore) -> Cohort:
    index = store.stack_index()
    groups = sorted(set(zip(index["file"].to_pylist(), index["row_group"].to_pylist(), strict=True)))
    tables = [store.read_row_group(store.stack_files()[file], group) for file, group in groups]
    whose = [subject for table in tables for subject in table["subject"].to_pylist()]
    rows = {row["subject"]: dict(row["labels"]) for row in store.sessions().to_pylist()}
    subjects = sorted(set(whose))
    return Cohort(
        store=store,
        pixels=np.concatenate([pixels_of(table) for table in tables]),
        heights=np.concatenate([table["height"].to_numpy() for table in tables]),
        session_of=np.searchsorted(subjects, whose),
        subjects=subjects,
        known=[rows[subject] for subject in subjects],
    )


def vectors_of(cohort: Cohort, describe: Describe) -> np.ndarray:
    """(sessions, F), as fine-tuning makes them."""
    batches = range(0, len(cohort.pixels), 128)
    stacks = np.concatenate([describe(torch.from_numpy(cohort.pixels[at : at + 128])) for at in batches])
    return pooled(stacks, heights=cohort.heights, session_of=cohort.session_of)


def pooled(stacks: np.ndarray, *, heights: np.ndarray, session_of: np.ndarray) -> np.ndarray:
    pooling = Pooling(bands=POSITION_BANDS, parts=("",))
    return np.stack(
        [
            pooling.pool(stacks[mine], heights=heights[mine], parts=[""] * int(mine.sum()))
            for mine in (session_of == number for number in range(session_of.max() + 1))
        ]
    )


def true_tissue(cohort: Cohort) -> np.ndarray:
    """(sessions, F): the spread over patches of the shares of tissue in them, by the label maps."""
    store, most = cohort.store, len(cohort.pixels)
    found = stacks_with_labels(store, store.stack_index(), segmentation="tissue", share=PROBED_SHARE, most=most)
    classes, patch_px = store.classes("tissue"), PATCH_PX
    stacks = np.empty((len(found), len(classes)), np.float32)
    for read in read_stacks(store, found):
        labels = labels_of(read.rows.combine_chunks())
        stacks[read.at] = patch_shares(labels, classes=classes, patch_px=patch_px).std(axis=1)
    whose = np.searchsorted(cohort.subjects, found["subject"].to_pylist())
    return pooled(stacks, heights=found["height"].to_numpy(), session_of=whose)


def taught_tissue(cohort: Cohort, folder: Path, *, seed: int) -> np.ndarray:
    """(sessions, F): as `true_tissue`, of the maps that a network makes of the pixels."""
    kept = folder / "taught-tissue.npy"
    if not kept.exists():
        network = taught(SliceStore.open(place(f"{folder}/store-learned")), segmentation="tissue", seed=seed)
        np.save(kept, shares_by(network, cohort.pixels, patch_px=PATCH_PX).std(axis=1))
    return pooled(np.load(kept), heights=cohort.heights, session_of=cohort.session_of)


# the four questions --------------------------------------------------------------------------------------------------


def tissue(cohort: Cohort, encoders: Mapping[str, LoadedEncoder], *, seed: int) -> Answer:
    found = probe(
        cohort.store,
        cohort.store.stack_index(),
        encoders,
        segmentation="tissue",
        share=PROBED_SHARE,
        device=torch.device("cpu"),
        seed=seed,
    )
    return Answer(found.r2, found.gain)


def disease(cohort: Cohort, vectors: Mapping[str, np.ndarray], *, seed: int) -> Answer:
    study = study_of(cohort, seed=seed)
    said = {
        name: gather([run_fold(study, own, fold) for fold in range(FOLDS)], study).said for name, own in vectors.items()
    }
    judged: dict[str, Any] = {"folds": study.folds, "subjects": cohort.subjects, "seed": seed}
    first, *others = said
    return Answer(
        {name: over_folds(weighted_auroc, study.targets, own, **judged).mean for name, own in said.items()},
        {name: difference(weighted_auroc, study.targets, said[first], said[name], **judged).mean for name in others},
    )


def study_of(cohort: Cohort, *, seed: int) -> Study:
    classes = np.array([value == "disease" for value in cohort.of("diagnosis")]).astype(np.int64)
    folds = grouped_folds(
        persons=cohort.subjects,
        classes=classes,
        strata=[""] * len(classes),
        class_names=["control", "disease"],
        folds=FOLDS,
        seed=seed,
    )
    strengths = Finetune.model_fields["regularisation"].get_default(call_default_factory=True)
    return Study(Logistic(2), classes, cohort.subjects, folds, strengths, seed)


def age(cohort: Cohort, vectors: Mapping[str, np.ndarray], *, seed: int) -> Answer:
    years, folds = np.array(cohort.of("age"), dtype=float), study_of(cohort, seed=seed).folds
    errors = {}
    for name, own in vectors.items():
        predicted = np.empty_like(years)
        for fold in range(FOLDS):
            train = folds != fold
            filled = np.where(np.isnan(own), np.nanmean(own[train], axis=0), own)
            model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 6, 13)))
            predicted[~train] = model.fit(filled[train], years[train]).predict(filled[~train])
        errors[name] = (predicted - years) ** 2

    def r2(error: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def statistic(weights: np.ndarray) -> np.ndarray:
            mean = (weights @ years) / weights.sum(axis=1)
            spread = (weights * (years - mean[:, None]) ** 2).sum(axis=1)
            return 1 - (weights @ error) / spread

        return statistic

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
        return subject_bootstrap(statistic, subjects=cohort.subjects, seed=seed)

    first, *others = errors

    def above(name: str) -> Interval:
        ours, theirs = r2(errors[first]), r2(errors[name])
        return interval(lambda weights: ours(weights) - theirs(weights))

    return Answer({name: interval(r2(error)) for name, error in errors.items()}, {name: above(name) for name in others})


def few_labels(cohort: Cohort, vectors: Mapping[str, np.ndarray], *, each: int, seed: int) -> Answer:
    study = replace(study_of(cohort, seed=seed), strengths=[FEW_STRENGTH])
    scores: dict[str, list[float]] = {name: [] for name in vectors}
    for draw in range(DRAWS):
        random = np.random.default_rng([seed, each, draw])
        chosen = np.zeros(len(study.targets), dtype=bool)
        for k in range(2):
            chosen[random.choice(np.flatnonzero(study.targets == k), each, replace=False)] = True
        for name, own in vectors.items():
            head = study.fit(own, chosen).head
            scores[name].append(auroc(study.targets[~chosen], head.probabilities(own[~chosen])) or np.nan)

    def middle(values: np.ndarray) -> Interval:
        return Interval(float(values.mean()), *map(float, np.quantile(values, (0.025, 0.975))))

    first, *others = scores
    return Answer(
        {name: middle(np.array(own)) for name, own in scores.items()},
        {name: middle(np.array(scores[first]) - np.array(scores[name])) for name in others},
    )


# the table -----------------------------------------------------------------------------------------------------------


def judge(folder: Path, *, seed: int, steps: int) -> dict[str, Answer]:
    """By question: what each reading comes to, and how much the first is above each of the others."""
    encoders = encoders_of(folder, seed=seed, steps=steps)
    cohort = read(SliceStore.open(place(f"{folder}/store-judged")))
    vectors = {name: vectors_of(cohort, EncoderVectors(encoder)) for name, encoder in encoders.items()}
    vectors[HISTOGRAMS] = vectors_of(cohort, Histograms())
    truth = covariate_vectors({"severity": cohort.of("severity")})
    people = covariate_vectors({name: cohort.of(name) for name in ("age", "sex")})
    vectors |= {TAUGHT: taught_tissue(cohort, folder, seed=seed), MAPS: true_tissue(cohort)}
    return {
        "tissue R²": tissue(cohort, encoders, seed=seed),
        "disease AUROC": disease(cohort, {**vectors, AGE_AND_SEX: people, ORACLE: truth}, seed=seed),
        "age R²": age(cohort, vectors, seed=seed),
        **{f"AUROC, {each} of each class": few_labels(cohort, vectors, each=each, seed=seed) for each in FEW},
    }


def over_seeds(found: Sequence[dict[str, Answer]]) -> dict[str, Answer]:
    """The means of what has intervals over subjects; intervals as of independent normal estimates."""

    def mean(intervals: Sequence[Interval]) -> Interval:
        value = float(np.mean([each.value for each in intervals]))
        half = float(np.sqrt(np.sum([((each.high - each.low) / 2) ** 2 for each in intervals]))) / len(intervals)
        return Interval(value, value - half, value + half)

    def means(of: Sequence[dict[str, Interval]]) -> dict[str, Interval]:
        return {name: mean([each[name] for each in of]) for name in of[0]}

    questions = [question for question in found[0] if not question.startswith("AUROC,")]
    return {
        question: Answer(*map(means, zip(*(each[question] for each in found), strict=True))) for question in questions
    }


def shown(found: Mapping[str, Answer]) -> str:
    lines = []
    for question, (values, gains) in found.items():
        lines.append(question)
        for name, value in values.items():
            above = f"   above it {_text(gains[name], '+.3f')}" if name in gains else ""
            lines.append(f"  {name:24} {_text(value, '.3f')}{above}")
    return "\n".join(lines)


def _text(interval: Interval, form: str) -> str:
    return f"{interval.value:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=800)
    given = parser.parse_args()
    if given.steps % max(PARTS):
        parser.error(f"--steps {given.steps}: give a multiple of {max(PARTS)}")
    found = []
    for seed in given.seeds:
        began_s = time.perf_counter()
        found.append(judge(given.folder.resolve() / f"seed-{seed}", seed=seed, steps=given.steps))
        print(
            f"seed {seed}, {given.steps} steps, {(time.perf_counter() - began_s) / 60:.0f} min\n{shown(found[-1])}",
            flush=True,
        )
    print(f"{len(found)} seeds\n{shown(over_seeds(found))}")


if __name__ == "__main__":
    main()

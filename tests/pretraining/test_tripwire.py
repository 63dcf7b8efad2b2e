"""The probe while training: what it finds, when it trips, and what a run does then."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bfp.batches.held_out import held_out, is_held_out
from bfp.errors import InputError, JobFailed
from bfp.metrics.bootstrap import Interval
from bfp.models.encoder import load
from bfp.pretraining import checkpoint
from bfp.pretraining.labelled import labelled_sessions
from bfp.pretraining.loop import Cadence, worker
from bfp.pretraining.probe import stacks_with_labels
from bfp.pretraining.session_probe import KNN, LINEAR, SessionProbe, probe_sessions
from bfp.pretraining.tripwire import TRIPPED, Tripwire, Watch, verdict
from bfp.storage import place
from bfp.store.reader import SliceStore
from tests.pretraining.makers import make_recipe, open_batches
from tests.pretraining.test_loop import run_two_workers
from tests.store.makers import MadeSession, make_store

SHARE, SUBJECTS = 0.4, 48
CPU = torch.device("cpu")


def is_sick(subject: str) -> bool:
    return int(subject[1:]) % 2 == 1


def paint(subject: str, noise: np.ndarray) -> np.ndarray:
    """A brightness of the scan's own, by far the most of what differs, and in the sick a chequered texture."""
    brightness = np.random.default_rng(int(subject[1:])).uniform(40, 180)
    row, column = np.indices(noise.shape[2:])
    texture = 30 * (row // 7 % 2 ^ column // 7 % 2) if is_sick(subject) else 0
    return (brightness + noise / 16 + texture).astype(np.uint8)


def make_labelled_store(folder: Path) -> SliceStore:
    subjects = [f"s{number:02d}" for number in range(SUBJECTS)]
    labels = {
        subject: {
            "group": "sick" if is_sick(subject) else "well",
            "age": f"{20 + number}",
            "coin": "ab"[number // 2 % 2],
        }
        for number, subject in enumerate(subjects)
    }
    labels["s00"] = {"age": "20"}
    sessions = [MadeSession("made", subject, stacks=4) for subject in subjects]
    at = make_store(folder, sessions=sessions, size_px=56, segmentation="tissue", labels=labels, paint=paint)
    return SliceStore.open(at)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    return make_labelled_store(tmp_path_factory.mktemp("tripwire") / "store")


def sessions_of(store: SliceStore, *, target: str = "group", most: int = 1000):
    return labelled_sessions(store.stack_index(), store.sessions(), target=target, share=SHARE, most=most)


def make_encoder(size_px: int = 56):
    shape = {"width": 24, "depth": 2, "heads": 3, "layer_scale": 1.0}
    return load(origin="random", name="vit_small_patch14_dinov2", uri=None, size_px=size_px, seed=3, **shape)


def make_watch(store: SliceStore, *, stop: bool = True, every: int = 2, tissue: bool = False) -> Watch:
    stacks = stacks_with_labels(store, store.stack_index(), segmentation="tissue", share=SHARE, most=100)
    return Watch(
        store=store,
        every=every,
        stop=stop,
        bf16=tissue,
        seed=0,
        sessions=sessions_of(store),
        tissue=stacks if tissue else None,
        classes=store.classes("tissue"),
        held=is_held_out(stacks, share=SHARE),
    )


def blind(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights that see nothing of an image."""
    return {**weights, "patch_embed.proj.weight": torch.zeros_like(weights["patch_embed.proj.weight"])}


def test_sessions_with_a_label_are_taken_evenly_and_told_apart(store: SliceStore) -> None:
    found = sessions_of(store)
    assert found.names == ["sick", "well"]
    assert len(found.subjects) == SUBJECTS - 1  # s00 has no group
    assert [found.names[k] == "sick" for k in found.classes] == [is_sick(each[-3:]) for each in found.subjects]
    assert list(found.held_out) == [held_out("made", each[-3:], share=SHARE) for each in found.subjects]
    assert [found.subjects[at] for at in found.session_of] == [
        f"made/{subject}" for subject in found.stacks["subject"].to_pylist()
    ]
    few = sessions_of(store, most=SUBJECTS)
    assert len(few.stacks) == SUBJECTS
    assert len(few.subjects) == SUBJECTS - 1


def test_a_label_that_cannot_be_judged_is_refused_in_words(store: SliceStore) -> None:
    with pytest.raises(InputError, match="no session carries a label sex; found age, coin, group"):
        sessions_of(store, target="sex")
    with pytest.raises(InputError, match=r"needs two values that 2 subjects each have, .* found 20 "):
        sessions_of(store, target="age")


def test_an_encoder_that_sees_beats_one_that_does_not(store: SliceStore) -> None:
    seeing, unseeing = make_encoder(), make_encoder()
    unseeing.model.load_state_dict(blind(unseeing.model.state_dict()))
    found = probe_sessions(store, sessions_of(store), {"a": seeing, "b": unseeing}, device=CPU, seed=0)
    for way, interval in found.aurocs["a"].items():
        assert interval.value > 0.8, way
        assert found.aurocs["b"][way].value == 0.5
        assert found.gains[way].low > 0
    assert sum(found.sessions) == SUBJECTS - 1


def test_what_no_pixel_tells_is_not_found_on_subjects_that_nothing_was_learned_from(store: SliceStore) -> None:
    found = probe_sessions(
        store, sessions_of(store, target="coin"), {"a": make_encoder(), "b": make_encoder()}, device=CPU, seed=0
    )
    assert all(interval.low < 0.5 for interval in found.aurocs["a"].values())
    assert {tuple(gain) for gain in found.gains.values()} == {(0.0, 0.0, 0.0)}


def test_the_wire_trips_at_the_second_probe_in_a_row_that_is_worse(store: SliceStore) -> None:
    encoder = make_encoder()
    good = encoder.model.state_dict()
    wire = Tripwire(make_watch(store, tissue=True), encoder, CPU)
    found = [wire.judge(weights) for weights in (good, blind(good), good, blind(good), blind(good))]
    assert [figures[TRIPPED] for figures in found] == [0, 0, 0, 0, 1]
    assert found[0]["probe_auroc_linear_gain"] == found[0]["probe_tissue_r2_gain"] == 0
    assert found[2]["probe_auroc_knn"] == found[0]["probe_auroc_knn"] > 0.8
    assert found[4]["probe_auroc_linear"] == 0.5
    assert verdict(found[1]) is None
    assert "logistic regression 0.500, at the start " in verdict(found[4])


@pytest.mark.parametrize(("target", "trips"), [("group", 1.0), ("coin", 0.0)])
def test_what_told_nothing_at_the_start_cannot_tell_less(store: SliceStore, monkeypatch, target, trips) -> None:
    fallen = Interval(-0.2, -0.3, -0.1)
    monkeypatch.setattr(SessionProbe, "gains", lambda *told, **more: {KNN: fallen, LINEAR: fallen})
    encoder, watch = make_encoder(), make_watch(store)
    watch = dataclasses.replace(watch, sessions=sessions_of(store, target=target))
    wire = Tripwire(watch, encoder, CPU)
    found = [wire.judge(encoder.model.state_dict())[TRIPPED] for _ in range(2)]
    assert found == [0.0, trips]


def test_an_encoder_that_is_trained_at_another_size_is_read_at_the_stores(store: SliceStore) -> None:
    encoder = make_encoder(28)
    wire = Tripwire(make_watch(store, tissue=True), encoder, CPU)
    assert wire.judge(encoder.model.state_dict())["probe_auroc_linear"] > 0.8
    assert encoder.model.patch_embed.img_size == (28, 28)


def train(store: SliceStore, folder: Path, *, stop: bool, logged: dict[int, dict[str, float]]):
    """A run whose rate ruins what it started from."""
    recipe = make_recipe(steps=8)
    schedules = dataclasses.replace(recipe.schedules, learning_rate=3.0, momentum=(0.0, 0.0), warmup_steps=0)
    return worker(
        make_encoder().model,
        recipe=dataclasses.replace(recipe, schedules=schedules),
        cadence=Cadence(log_every=100, save_every=100, keep=2),
        checkpoints=place(str(folder)),
        open_batches=open_batches,
        device=CPU,
        log=logged.__setitem__,
        note=lambda text: None,
        logged=lambda step: None,
        stop=lambda: False,
        tripwire=Tripwire(make_watch(store, stop=stop), make_encoder(), CPU),
    )


def test_a_run_that_ruins_its_features_is_stopped_and_leaves_a_checkpoint(store: SliceStore, tmp_path: Path) -> None:
    logged: dict[int, dict[str, float]] = {}
    with pytest.raises(JobFailed, match=r"step 4: the features have become worse .* at the start .*on_worse=warn"):
        train(store, tmp_path, stop=True, logged=logged)
    assert checkpoint.steps(place(str(tmp_path))) == [4]
    assert list(logged) == [0, 2, 4]
    assert "loss" not in logged[0]
    assert {"loss", "probe_auroc_knn", "probe_s", "samples_per_s"} <= set(logged[2])


def test_a_stopped_run_that_is_only_to_warn_goes_on_and_is_compared_with_its_start(
    store: SliceStore, tmp_path: Path
) -> None:
    logged: dict[int, dict[str, float]] = {}
    with pytest.raises(JobFailed):
        train(store, tmp_path, stop=True, logged=logged)
    assert train(store, tmp_path, stop=False, logged=logged).step == 8
    assert list(logged) == [0, 2, 4, 6, 8]
    starts = [figures["probe_auroc_knn"] - figures["probe_auroc_knn_gain"] for figures in logged.values()]
    assert starts == pytest.approx([logged[0]["probe_auroc_knn"]] * 5)
    assert [step for step, figures in logged.items() if verdict(figures)] == [4, 8]


TRIPPING = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from bfp.errors import JobFailed
from bfp.storage import place
from bfp.store.reader import SliceStore
from tests.pretraining.test_tripwire import train
folder, rank, port = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
logged = {}
try:
    train(SliceStore.open(place(str(folder / "store"))), folder / "checkpoints", stop=True, logged=logged)
    said = "nothing"
except JobFailed as error:
    said = str(error)
(folder / f"said-{rank}").write_text(f"{len(logged)} {said}")
dist.destroy_process_group()
"""


def test_of_two_workers_one_reads_and_both_end(tmp_path: Path) -> None:
    make_labelled_store(tmp_path / "store")
    run_two_workers(tmp_path, TRIPPING)
    first, second = ((tmp_path / f"said-{rank}").read_text() for rank in range(2))
    assert first.startswith("3 step 4: the features have become worse")
    assert second == f"0{first[1:]}"
    assert checkpoint.steps(place(str(tmp_path / "checkpoints"))) == [4]

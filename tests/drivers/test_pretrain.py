"""kind: pretrain: from a store to an encoder, and to the same encoder whatever happened on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bfp.batches.held_out import held_out
from bfp.cli.looking import export_model
from bfp.drivers import pretrain
from bfp.drivers.acquaintance import acquaintance
from bfp.drivers.pretrain_export import export_checkpoint
from bfp.drivers.pretrain_material import crops_of, material_of
from bfp.drivers.pretrain_results import Probed, methods
from bfp.drivers.stores import encoder_arguments
from bfp.errors import InputError, Interrupted
from bfp.models.encoder import load, untrained
from bfp.models.encoder_alone import encoder_alone, read_encoder_alone
from bfp.pretraining.natural import Colours
from bfp.pretraining.probe import ProbeResult
from bfp.reports.blocks import Picture, results_from_json
from bfp.runs import Event, Run, RunFolder
from bfp.specs import Pretrain, dump
from bfp.storage import place
from bfp.store.reader import SliceStore
from tests.processes import below
from tests.store.makers import MadeSession, make_store

SESSIONS, STEPS = 16, 120
TRAIN = {"epochs": 2, "steps_per_epoch": STEPS // 2, "batch_size": 8, "checkpoint_every": 10, "log_every": 5}
PROBED = ("probe_auroc_knn", "probe_auroc_linear_gain", "probe_tissue_r2", "probe_worse")
SHORT = {"epochs": 1, "steps_per_epoch": 10, "batch_size": 8, "log_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    make_store(folder / "store", sessions=SESSIONS, segmentation="tissue")
    return folder


def spec_for(folder: Path, name: str, **changes: Any) -> Pretrain:
    """A pretraining of seconds: 28 pixels, patches of 14, two blocks of width 32."""
    fields: dict[str, Any] = {
        "kind": "pretrain",
        "name": name,
        "output": str(folder / "runs"),
        "store": str(folder / "store"),
        "encoder_shape": {"width": 32, "depth": 2, "heads": 2, "layer_scale": 1.0},
        "ssl": {"prototypes": 16, "ibot_prototypes": 16, "hidden": 32, "bottleneck": 16, "ibot_bottleneck": 16},
        "crops": {"local_size_px": 14, "local_count": 2},
        "train": TRAIN,
        "probe": {"segmentation": "tissue"},
    }
    return Pretrain.model_validate({**fields, **changes})


def submit(spec: Pretrain, listener: Callable[[Run, Event], None] | None = None) -> RunFolder:
    """What the target does, on the Ray that is up."""
    at = place(spec.output) / spec.name
    run = Run(at, spec_yaml=dump(spec), kind="pretrain", version="test", listener=lambda event: hear(run, event))
    hear = listener or (lambda run, event: None)
    with run:
        pretrain.execute(spec, run)
    return RunFolder(at)


def weights(run: RunFolder) -> str:
    """A hash of the exported encoder."""
    loaded = load(origin="folder", name=None, uri=str(run.folder), size_px=28)
    return str(loaded.description["weights"])


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_session: None) -> RunFolder:
    return submit(spec_for(folder, "undisturbed"))


def test_the_plan_counts_what_is_used_without_torch_or_ray(folder: Path) -> None:
    (folder / "spec.yaml").write_text(dump(spec_for(folder, "planned")))
    code = (
        "import sys, json\n"
        "from pathlib import Path\n"
        "from bfp.drivers import capacity_here, plan\n"
        "from bfp.specs import load\n"
        "planned = plan(load(Path('spec.yaml')), capacity=capacity_here(2))\n"
        "assert not {'torch', 'ray', 'timm'} & set(sys.modules)\n"
        "print(json.dumps(planned.figures))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    held = [number for number in range(SESSIONS) if held_out("made", f"s{number:02d}", share=0.25)]
    stacks = sum(12 + number % 5 for number in range(SESSIONS) if number not in held)
    assert figures == {
        "snapshots": [1],
        "stacks": stacks,
        "subjects": SESSIONS - len(held),
        "subjects_held_out": len(held),
        "steps": STEPS,
        "checkpoint_bytes_estimated": figures["checkpoint_bytes_estimated"],  # test_sizing has more of it
    }
    assert not (folder / "runs" / "planned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"probe": {"segmentation": "tissues"}},
            "probe.segmentation: .* has no segmentation tissues; it has tissue; or leave the probe out",
        ),
        ({"encoder": "meta:/nowhere.pth", "encoder_shape": None}, r"encoder: /nowhere\.pth: no such file of weights"),
        ({"encoder": "/nowhere", "encoder_shape": None}, "encoder: /nowhere: no encoder there"),
        ({"store": "/nowhere"}, "/nowhere: no slice store there"),
        (
            {"encoder": "random:vit_small_patch16_224", "crops": {"local_size_px": 16}},
            "28 pixels, not a multiple",
        ),
        (
            {"probe": {"segmentation": "tissue", "held_out": 0.01}},
            r"16 subjects to learn from and 0 held out .*; change probe\.held_out \(0\.01\); or leave",
        ),
        (
            {"probe": {"target": "group"}},
            "probe.target: group: .* no session carries a label group; found no labels at all",
        ),
        ({"train": {"batch_size": 4096}}, "fewer than one batch of 4096"),
        (
            {"train": {"batch_size": 64, "stacks_per_session": 3}, "probe": None},
            r"train\.stacks_per_session: 3: a pass has 3 steps, and up to 16 stacks .* that can be kept is 6, or",
        ),
        (
            {"where": {"modalities": ["T1"]}},
            r"where\.modalities: \[T1\]: keeps none .* has stacks of the cohorts made, in the modalities FLAIR, T1w",
        ),
        (
            {"probe": {"segmentation": "tissue", "held_out": 0.9999}},
            r"probe\.held_out: 0\.9999: leaves no subject to train on; lower it",
        ),
        (
            {"crops": {"local_size_px": 42}},
            r"crops\.local_size_px: 42: larger than a global crop, which has the 28 pixels of the stacks of",
        ),
        (
            {"encoder": "vit_small_patch14_dinov2", "encoder_shape": None},
            "no encoder there; .* write random:vit_small_patch14_dinov2 or timm:vit_small_patch14_dinov2",
        ),
    ],
)
def test_what_is_wrong_is_said_by_the_plan(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pretrain.plan(spec_for(folder, "wrong", **changes))


def test_the_plan_warns_of_what_no_store_has_and_tells_a_short_run_as_one(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text("s99\n")
    where = {"cohorts": ["made", "nope"], "exclude_subjects": str(tmp_path / "out.txt")}
    planned = pretrain.plan(spec_for(folder, "filtered", where=where, train={**SHORT, "epochs": 0.1}))
    cohort, subject, *_ = planned.warnings
    assert cohort.startswith("where.cohorts: nope: is in no store; ")
    assert subject == "where.exclude_subjects: no subject is called s99 (1 name of the list)"
    assert dict(planned.rows)["batches"].endswith("; every stack less than 0.1 times")


@pytest.mark.parametrize(
    ("ssl", "step", "said"),
    [
        (
            {},
            120,
            r"peak learning rate 8\.84e-05 \(0\.001 for .*\) after a warm-up of 60 steps, .* 1\. Augmentation",
        ),
        ({}, 31, r"learning rate 4\.49e-05 when it ended, still rising to 8\.84e-05 \(0\.001 for"),
        ({"backbone_rate": 0.1}, 120, "1. The encoder learned at 0.1 of the heads' rate. Aug"),
        (
            {"backbone_rate": 0.1, "freeze_backbone_epochs": 0.5},
            120,
            "after a warm-up of 15 steps.* in the first 30 steps and warmed up over the next 60 to 0.1 of the heads'",
        ),
        ({"freeze_backbone_epochs": 0.5}, 90, "over the next 60 to the heads' rate, which was not reached. Aug"),
        ({"freeze_backbone_epochs": 0.5}, 30, r"rested in all of these steps \(in the first 30 by plan\)"),
    ],
)
def test_the_methods_tell_the_rates_that_were_reached(folder: Path, ssl: dict[str, Any], step: int, said: str) -> None:
    ssl = {"learning_rate": 1e-3, "warmup_epochs": 1, "freeze_last_layer_epochs": 0, **ssl}
    spec = spec_for(folder, "rates", ssl=ssl, crops={"local_size_px": 14, "flip": 0.25})
    material = material_of(spec, run=place(str(folder / "runs" / "rates")))
    encoder = {"architecture": "vit", "width": 32, "depth": 2, "patch_px": 14}
    (text,) = methods(spec, material, encoder, Probed(), step=step, earlier=[])
    assert re.search(said, text), text
    assert "left-right flips (probability 0.25)" in text


def test_the_methods_tell_subjects_held_out_from_those_of_them_that_were_judged(folder: Path) -> None:
    spec = spec_for(folder, "methods")
    material = material_of(spec, run=place(str(folder / "runs" / "methods")))
    held_out = material.subjects[1]
    encoder = {"architecture": "vit", "width": 32, "depth": 2, "patch_px": 14}
    nothing = np.zeros((0, 1))
    for judged, said in (
        (held_out, ""),
        (held_out - 1, f"; {held_out - 1} of them have labelled stacks and were judged"),
    ):
        probed = ProbeResult([], {}, {}, {}, (9, 9), (5, judged), nothing, nothing)
        (_, text) = methods(spec, material, encoder, Probed(tissue=probed), step=STEPS, earlier=[])
        assert f"{held_out} subjects were held out from pretraining{said}. In patches" in text


def test_held_out_subjects_never_enter_the_order_of_training(folder: Path) -> None:
    material = material_of(spec_for(folder, "order"), run=place(str(folder / "runs" / "order")))
    (seen,) = material.training
    (everyone,) = material.indices
    assert {subject for subject in seen["subject"].to_pylist() if held_out("made", subject, share=0.25)} == set()
    assert len(seen) == material.order.units.stacks < len(everyone)


def test_a_run_leaves_an_encoder_with_its_figures_card_and_pictures(folder: Path, undisturbed: RunFolder) -> None:
    results = results_from_json(undisturbed.results())
    figures = results.figures
    assert figures["steps"] == STEPS
    assert figures["loss_last"] < figures["loss_first"]
    for name in ("pretrained", "untrained", "sorted_pixels"):
        assert figures[f"tissue_r2_{name}_low"] <= figures[f"tissue_r2_{name}"] <= figures[f"tissue_r2_{name}_high"]
    shown = {block.file for block in results.blocks if isinstance(block, Picture)}
    assert shown == {"pictures/patch-tokens.png", "pictures/views.png"}
    assert all((undisturbed.folder / file).exists() for file in shown)
    assert "Residual tissue R²" in (undisturbed.folder / "model" / "README.md").read().decode()
    config = json.loads((undisturbed.folder / "model" / "config.json").read())
    store = SliceStore.open(place(str(folder / "store")))
    assert config["bfp"]["stores"][0]["preprocessing"] == store.preprocessing
    alone = encoder_alone(undisturbed.folder)  # what infer takes it for
    assert alone == undisturbed.folder / "model"
    told = read_encoder_alone(alone)
    assert (told["preprocessing"], told["shown"]) == (store.preprocessing, store.preprocessing["stacks"]["channels"])
    logged = {row["step"] for row in undisturbed.metrics() if row["name"] == "loss"}
    assert set(range(5, STEPS + 1, 5)) <= logged


def test_whom_it_was_trained_on_is_known_of_the_encoder_and_held_out_subjects_are_not_among_them(
    folder: Path, undisturbed: RunFolder
) -> None:
    scans = SliceStore.open(place(str(folder / "store"))).scans()
    found = acquaintance(str(undisturbed.folder), [scans])
    names = [f"s{number:02d}" for number in range(SESSIONS)]
    assert found.met is not None
    assert found.met.by_name == {f"made/{name}" for name in names if not held_out("made", name, share=0.25)}
    assert f"of the {SESSIONS} subjects that are judged (made/s00" in found.told


def test_the_card_tells_data_preprocessing_recipe_figures_and_limits(folder: Path, undisturbed: RunFolder) -> None:
    told = (undisturbed.folder / "model" / "README.md").read().decode()
    held = sum(held_out("made", f"s{number:02d}", share=0.25) for number in range(SESSIONS))
    stacks = sum(12 + number % 5 for number in range(SESSIONS) if not held_out("made", f"s{number:02d}", share=0.25))
    assert f"| made | {SESSIONS - held} | {SESSIONS - held} | {stacks} | FLAIR, T1w, T2w |" in told
    assert f"{held} further subjects were held out" in told
    assert "- `register`: rigid" in told
    assert "16 prototypes" in told
    assert f"at step {STEPS}:\n\n- loss, nats: " in told
    assert "not a medical device" in told
    assert "from a checkpoint" not in told


@pytest.mark.long
def test_an_encoder_is_exported_from_a_checkpoint_while_the_run_goes_on(
    folder: Path, ray_session: None, tmp_path: Path
) -> None:
    exported: list[int] = []

    def export_once(run: Run, event: Event) -> None:
        if event["event"] == "progress" and event["done"] > 20 and not exported:
            exported.append(export_checkpoint(RunFolder(run.folder), place(str(tmp_path / "early")), step=None))
            assert RunFolder(run.folder).outcome() == "running"

    crops = {"local_size_px": 14, "local_count": 2, "fill": "repeat"}
    train = {**TRAIN, "epochs": 1, "keep_checkpoints": 20}
    submit(spec_for(folder, "exported", crops=crops, train=train, probe=None), export_once)
    run = RunFolder(place(str(folder / "runs" / "exported")))
    before = {entry.place: entry.place.read() for entry in run.folder.files()}
    (said,) = export_model(run, place(str(tmp_path / "again")), step=exported[0])
    assert said.endswith(f"again: the encoder after step {exported[0]}")
    export_checkpoint(run, place(str(tmp_path / "last")), step=STEPS // 2)
    assert {entry.place: entry.place.read() for entry in run.folder.files()} == before
    early, again, last = (
        load(origin="folder", name=None, uri=str(tmp_path / name), size_px=28) for name in ("early", "again", "last")
    )
    assert early.description["weights"] == again.description["weights"] != last.description["weights"]
    assert last.description["weights"] == weights(run)
    finished = load(origin="folder", name=None, uri=str(run.folder), size_px=28)
    assert torch.equal(last.mask_token, finished.mask_token)  # for a pretraining that starts from either
    assert not torch.equal(early.mask_token, last.mask_token)
    assert (early.fill, early.start) == ("repeat", last.start)
    assert f"after step {exported[0]} of {STEPS // 2}, from a checkpoint" in (tmp_path / "early/README.md").read_text()
    assert json.loads((tmp_path / "early" / "config.json").read_text())["bfp"]["steps"] == exported[0]
    with pytest.raises(InputError, match=r"--step: 7: .* no complete checkpoint of it; those of 10, 20, .* are there"):
        export_checkpoint(run, place(str(tmp_path / "none")), step=7)


def test_the_untrained_encoder_of_a_run_is_the_one_that_it_started_from(folder: Path, undisturbed: RunFolder) -> None:
    began = load(**encoder_arguments(spec_for(folder, "undisturbed"), size_px=28))
    trained = load(origin="folder", name=None, uri=str(undisturbed.folder), size_px=28)
    assert untrained(trained).description["weights"] == began.description["weights"] != weights(undisturbed)


def test_a_finished_run_submitted_again_changes_nothing_and_starts_nothing(
    folder: Path, undisturbed: RunFolder
) -> None:
    """Whether it has finished is asked before torch or a worker is."""
    before = {entry.place: entry.place.read() for entry in undisturbed.folder.files()}
    phases: list[str] = []
    submit(spec_for(folder, "undisturbed"), lambda run, event: phases.append(event.get("phase", "")))
    assert {phase for phase in phases if phase} == {"reading the store's index"}
    after = {entry.place: entry.place.read() for entry in undisturbed.folder.files()}
    assert {at.name for at in after if after[at] != before.get(at)} <= {"events.jsonl", "spec.yaml", "metrics.parquet"}
    assert dict(pretrain.plan(spec_for(folder, "undisturbed")).rows)["time"] == "none for training, which is done"


def test_a_label_is_probed_while_training_and_at_the_end(folder: Path, ray_session: None) -> None:
    labels = {f"s{number:02d}": {"group": "ab"[number // 2 % 2]} for number in range(SESSIONS)}
    make_store(folder / "labelled", sessions=SESSIONS, segmentation="tissue", labels=labels)
    probe = {"segmentation": "tissue", "target": "group", "held_out": 0.5, "every": 5}
    before: list[str] = []

    def read(run: Run, event: Event) -> None:
        if event.get("phase") == "probing":
            before.append((run.folder / "model" / "README.md").read().decode())

    run = submit(spec_for(folder, "labelled", store=str(folder / "labelled"), train=SHORT, probe=probe), read)
    assert "10 steps of 8 stacks, two" in before[0]
    assert "Not probed: the probe follows the last step." in before[0]
    logged = {name: {row["step"] for row in run.metrics() if row["name"] == name} for name in PROBED}
    assert all(steps == {0, 5, 10} for steps in logged.values()), logged
    results = results_from_json(run.results())
    for name in ("auroc_knn_pretrained", "auroc_linear_untrained", "tissue_r2_pretrained"):
        assert results.figures[f"{name}_low"] <= results.figures[name] <= results.figures[f"{name}_high"]
    assert {"Probe while training", "AUROC of group"} <= {block.title for block in results.blocks}
    told = (run.folder / "model" / "README.md").read().decode()
    assert "AUROC of group (a, b): the mean class token" in told
    assert "AUROC of group on held-out subjects" in told


def test_a_probe_that_cannot_be_made_after_all_leaves_a_whole_encoder_and_says_why(
    folder: Path, ray_session: None
) -> None:
    """Every subject has labels, and none of them is brain, which is known only when they are read."""
    make_store(folder / "no-brain", sessions=SESSIONS, segmentation="tissue", classes={"brain": [9]})
    run = submit(spec_for(folder, "no-brain", store=str(folder / "no-brain"), train=SHORT))
    (warning,) = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert warning.startswith("the encoder is done, and cannot be probed: 0 subjects to learn from")
    assert run.results()["figures"]["steps"] == 10
    assert "Not probed: its labels did not suffice." in (run.folder / "model" / "README.md").read().decode()


@pytest.mark.long
def test_a_run_that_is_stopped_goes_on_to_the_same_weights_but_not_without_its_checkpoints(
    folder: Path, undisturbed: RunFolder, tmp_path: Path
) -> None:
    def stop(run: Run, event: Event) -> None:
        if event.get("phase") == "training":
            run.ask_to_stop()

    spec = spec_for(folder, "stopped")
    with pytest.raises(Interrupted, match=f"stopped after step .* of {STEPS}, with a checkpoint"):
        submit(spec, stop)
    stopped = RunFolder(place(spec.output) / spec.name)
    checkpoints = stopped.folder.path / "checkpoints"
    checkpoints.rename(tmp_path / "away")
    gone = r"checkpoints: none is complete, and there was one of step \d+: training would begin"
    with pytest.raises(InputError, match=gone):
        pretrain.plan(spec)
    with pytest.raises(InputError, match=gone):
        submit(spec)
    (tmp_path / "away").rename(checkpoints)
    assert "Losses" in [block.title for block in results_from_json(stopped.results()).blocks]
    assert "left, at the" in dict(pretrain.plan(spec).rows)["time"]
    assert weights(submit(spec)) == weights(undisturbed)


def test_a_run_that_never_came_to_a_whole_checkpoint_begins_again(folder: Path, tmp_path: Path) -> None:
    """A kill may fall between the figure that says that a checkpoint is all but complete, and its marker."""
    spec = spec_for(tmp_path, "killed", store=str(folder / "store"))
    at = place(spec.output) / spec.name

    def announce(step: int) -> None:
        with Run(at, spec_yaml="", kind="pretrain", version="test") as run:
            run.figures(step, {pretrain.SAVED: step})

    announce(10)
    with pytest.raises(InputError, match="there was one of step 10"):
        pretrain.plan(spec)
    (at / "checkpoints" / "step-00000010" / "__0_0.distcp").write(b"")
    pretrain.plan(spec)
    announce(20)
    with pytest.raises(InputError, match="there was one of step 20"):
        pretrain.plan(spec)


@pytest.mark.long
def test_a_finished_run_with_more_epochs_goes_on_and_keeps_its_encoder_until_there_is_a_new_one(
    folder: Path, ray_session: None, tmp_path: Path
) -> None:
    spec = spec_for(folder, "extended", train=SHORT, probe=None)
    earlier, meanwhile, pages = weights(submit(spec)), set[str](), set[int]()

    def look(run: Run, event: Event) -> None:
        if event["event"] == "progress":
            meanwhile.add(weights(run))
            pages.add(run.results()["figures"]["steps"])

    longer = spec_for(folder, "extended", train={**SHORT, "epochs": 2}, probe=None)
    run = submit(longer, look)
    assert meanwhile == {earlier}
    assert pages == {10}
    assert weights(run) != earlier
    assert any(event.get("message", "").startswith("extended from 10 to 20 steps: ") for event in run.events())
    assert run.results()["figures"]["steps"] == 20
    told = (run.folder / "model" / "README.md").read().decode()
    assert "20 steps of 8 stacks, two" in told
    assert "first 10 steps long and was extended to 20: " in told
    assert "after a warm-up of 100 steps" in told
    export_checkpoint(run, place(str(tmp_path / "then")), step=10)
    then = (tmp_path / "then" / "README.md").read_text()
    assert "10 steps of 8 stacks, two" in then
    assert "extended to" not in then
    shutil.rmtree(run.folder.path / "checkpoints")
    pretrain.plan(longer)
    with pytest.raises(InputError, match="checkpoints: none is complete: the run ended after 20 steps"):
        pretrain.plan(spec_for(folder, "extended", train={**SHORT, "epochs": 3}, probe=None))


def test_a_lost_worker_comes_back_and_ends_with_the_same_weights(folder: Path, undisturbed: RunFolder) -> None:
    killed: list[int] = []

    def kill_once(run: Run, event: Event) -> None:
        if event["event"] == "progress" and event["done"] > 0 and not killed:
            killed.extend(training_workers())
            os.kill(killed[0], signal.SIGKILL)

    run = submit(spec_for(folder, "worker-lost"), kill_once)
    warnings = [event["message"] for event in run.events() if event["event"] == "warning"]
    assert any(message.startswith("a worker was lost after step") for message in warnings)
    assert weights(run) == weights(undisturbed)


@pytest.mark.long
def test_a_worker_told_to_end_saves_the_step_it_is_at_and_nothing_is_done_again(
    folder: Path, undisturbed: RunFolder
) -> None:
    """SIGTERM: as a node is taken away. No checkpoint was due, and no worker may be lost."""
    told: list[int] = []

    def tell_once(run: Run, event: Event) -> None:
        going = event["event"] == "progress" and event["done"] > 0
        if going and not told:
            told.extend(training_workers())
            os.kill(told[0], signal.SIGTERM)

    train = {**spec_for(folder, "same").train.model_dump(), "checkpoint_every": 1000}
    spec = spec_for(folder, "told-to-end", train=train, compute={"retries": 0})
    run = submit(spec, tell_once)
    losses = [row["step"] for row in run.metrics() if row["name"] == "loss"]
    assert losses == sorted(set(losses))
    said = [event["message"] for event in run.events() if event["event"] in ("note", "warning")]
    assert len([message for message in said if "told to end, and saved step" in message]) == 1
    assert weights(run) == weights(undisturbed)


def training_workers() -> list[int]:
    """The training workers of this process's Ray."""
    found = []
    for pid in below(os.getpid()):
        with suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


KILLED_DRIVER = """
import os, signal, sys
from pathlib import Path
from bfp.drivers import pretrain
from bfp.drivers.acquaintance import acquaintance
from bfp.drivers.pretrain_export import export_checkpoint
from bfp.drivers.pretrain_material import crops_of, material_of
from bfp.drivers.stores import encoder_arguments
from bfp.runs import Run
from bfp.specs import load
from bfp.storage import place
from bfp.targets.ray_here import start_ray

spec = load(Path(sys.argv[1]))
start_ray(cpus=1)


def die(event):
    if event["event"] == "progress" and event["done"] > 20:
        os.kill(os.getpid(), signal.SIGKILL)


with Run(place(spec.output) / spec.name, spec_yaml="", kind="pretrain", version="test", listener=die) as run:
    pretrain.execute(spec, run)
"""


@pytest.mark.long
def test_a_driver_killed_in_training_is_followed_by_one_that_ends_with_the_same_weights(
    folder: Path, undisturbed: RunFolder
) -> None:
    spec = spec_for(folder, "driver-killed")
    (folder / "killed.yaml").write_text(dump(spec))
    done = subprocess.run(
        [sys.executable, "-c", KILLED_DRIVER, str(folder / "killed.yaml")],
        env={**os.environ, "RAY_TRAIN_V2_ENABLED": "1"},
    )
    assert done.returncode == -signal.SIGKILL
    run = submit(spec)
    assert any("going on from the checkpoint of step" in event.get("message", "") for event in run.events())
    assert weights(run) == weights(undisturbed)


@pytest.mark.long
def test_two_workers_learn_as_one_does(folder: Path, ray_session: None) -> None:
    """The same batches and draws; sums over workers are rounded in another order, so losses agree to some digits."""
    ssl = {**spec_for(folder, "same").ssl.model_dump(), "drop_path": 0.0}  # which is drawn among a worker's own samples
    runs = [
        submit(spec_for(folder, f"workers-{workers}", compute={"workers": workers}, ssl=ssl, train=SHORT, probe=None))
        for workers in (1, 2)
    ]
    one, two = ({row["step"]: row["value"] for row in run.metrics() if row["name"] == "loss"} for run in runs)
    assert two == pytest.approx(one, rel=1e-3)


def test_the_plan_and_the_methods_say_what_stands_in_the_batches(folder: Path, tmp_path: Path) -> None:
    sessions = [MadeSession("large" if number % 4 else "small", f"s{number}", stacks=20) for number in range(16)]
    make_store(tmp_path / "store", sessions=sessions)
    train = {"epochs": 3, "batch_size": 4, "cohort_balance": 1.0}
    spec = spec_for(tmp_path, "batches", train=train, probe=None)
    told = dict(pretrain.plan(spec).rows)["batches"]
    assert (
        told
        == "at most 1 stack of a session in one; cohorts balanced: large 50%, each 2.0 times; small 50%, each 6.0 times"
    )
    encoder = {"architecture": "vit", "width": 32, "depth": 2, "patch_px": 14}
    material = material_of(spec, run=place(str(tmp_path / "runs" / "batches")))
    (text,) = methods(spec, material, encoder, Probed(), step=material.steps, earlier=[])
    assert "No batch held more than 1 stack of one session." in text
    assert "in proportion to its size to the power of 0: large 50%, small 50%." in text


def test_neighbouring_slices_are_never_hidden_as_modalities_are(folder: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", sessions=2)
    spec = spec_for(tmp_path, "form", probe=None)
    run = place(str(tmp_path / "runs" / "form"))
    assert crops_of(spec, material_of(spec, run=run), large_px=28).modality_views == spec.crops.modality_views > 0
    file = tmp_path / "store" / "store.json"
    told = json.loads(file.read_text())
    file.write_text(json.dumps({**told, "preprocessing": {**told["preprocessing"], "stacks": {"form": "neighbours"}}}))
    assert crops_of(spec, material_of(spec, run=run), large_px=28).modality_views == 0


def test_the_natural_crops_of_a_spec_are_those_that_its_methods_tell(folder: Path) -> None:
    spec = spec_for(folder, "natural", crops={"preset": "natural", "local_size_px": 14, "blur_probability": "declared"})
    material = material_of(spec, run=place(str(folder / "runs" / "natural")))
    settings = crops_of(spec, material, large_px=28)
    assert isinstance(settings.contrast, Colours)
    assert settings.contrast.blur == (1.0, 0.1, 0.5)
    encoder = {"architecture": "vit", "width": 32, "depth": 2, "patch_px": 14}
    (text,) = methods(spec, material, encoder, Probed(), step=material.steps, earlier=[])
    assert "blur (1 and 0.1 of the global crops, 0.5 of the local ones)" in text


def test_no_flip_swaps_front_and_back(folder: Path, tmp_path: Path) -> None:
    make_store(tmp_path / "store", sessions=SESSIONS, segmentation="tissue")
    file = tmp_path / "store" / "store.json"
    told = json.loads(file.read_text())
    flipping = spec_for(tmp_path, "flip", crops={"local_size_px": 14, "local_count": 2, "flip": 0.5})
    pretrain.plan(flipping)
    file.write_text(json.dumps({**told, "preprocessing": {**told["preprocessing"], "slice_axis": "sagittal"}}))
    with pytest.raises(InputError, match=r"crops\.flip: 0\.5: would swap front and back, .* are sagittal"):
        pretrain.plan(flipping)
    pretrain.plan(spec_for(tmp_path, "plain"))

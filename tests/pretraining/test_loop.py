"""Training as a whole: resumed equals uninterrupted, two workers equal one, failures leave the last checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from bfp.errors import JobFailed, StorageError
from bfp.pretraining import checkpoint, monitors
from bfp.pretraining.draws import Draws
from bfp.pretraining.loop import Cadence, one_step, prepare, shard, teacher_weights, worker
from bfp.pretraining.schedules import Length
from bfp.pretraining.step import start
from bfp.storage import place
from tests.pretraining.makers import make_recipe, make_vit, open_batches

CPU = torch.device("cpu")
CADENCE = Cadence(log_every=2, save_every=3, keep=2)


def run(
    folder,
    *,
    recipe,
    stop=lambda: False,
    log=lambda step, figures: None,
    note=lambda text: None,
    logged=lambda step: None,
    batches=open_batches,
    cadence=CADENCE,
):
    return worker(
        make_vit(),
        recipe=recipe,
        cadence=cadence,
        checkpoints=place(str(folder)),
        open_batches=batches,
        device=CPU,
        log=log,
        note=note,
        logged=logged,
        stop=stop,
    )


def save(state, folder, *, recipe, keep=1):
    kept = {"keep": keep, "keep_every": None, "before_marker": lambda step: None}
    with checkpoint.Writer(folder, schedules=recipe.schedules, **kept) as writer:
        writer.save(state)


def everything(state):
    return torch.cat([value.flatten() for kind in checkpoint.tensors(state).values() for value in kind.values()])


def stopping_after(steps):
    asked = iter([False] * (steps - 1) + [True])
    return lambda: next(asked, False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("centring", ["softmax", "sinkhorn"])
def test_stopped_and_resumed_is_bit_for_bit_uninterrupted(tmp_path, precision, centring):
    recipe = make_recipe(precision=precision, centring=centring, drop_path=0.2)
    cadence = dataclasses.replace(CADENCE, log_every=1)
    logged = {"straight": {}, "halves": {}}
    straight = run(tmp_path / "straight", recipe=recipe, cadence=cadence, log=logged["straight"].__setitem__)
    halfway = run(
        tmp_path / "halves", recipe=recipe, cadence=cadence, log=logged["halves"].__setitem__, stop=stopping_after(4)
    )
    assert halfway.step == 4
    resumed = run(tmp_path / "halves", recipe=recipe, cadence=cadence, log=logged["halves"].__setitem__)
    assert resumed.step == straight.step == 6
    assert torch.equal(everything(resumed), everything(straight))
    assert list(logged["halves"]) == list(logged["straight"]) == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "gradient_norm_backbone", *recipe.schedules.at(0)._fields):
        assert [found[name] for found in logged["halves"].values()] == [
            found[name] for found in logged["straight"].values()
        ], name


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    recipe = make_recipe(steps=2)
    first = run(tmp_path, recipe=recipe)
    logged = []
    again = run(tmp_path, recipe=recipe, log=lambda step, figures: logged.append(step))
    assert not logged
    assert torch.equal(everything(first), everything(again))


def test_figures_are_logged_at_their_steps_and_at_the_last(tmp_path):
    logged = {}
    run(tmp_path, recipe=make_recipe(steps=5), log=logged.__setitem__)
    assert list(logged) == [2, 3, 4, 5]  # a checkpoint logs too
    assert {"loss", "dino_local", "ibot", "koleo", "gradient_norm_backbone", "learning_rate"} <= set(logged[5])
    assert {"rank_cls", "teacher_entropy_sample", "samples_per_s", "data_wait_share"} <= set(logged[5])
    assert {"flop_utilisation", "host_memory_peak_mb"} <= set(logged[5])


@pytest.mark.long
def test_a_run_made_to_collapse_is_named_as_such(tmp_path):
    recipe = make_recipe(steps=40, centring="softmax", centre_momentum=1.0, koleo_weight=0.0)  # a centre that stays
    schedules = dataclasses.replace(recipe.schedules, learning_rate=1e-2, momentum=(0.9, 0.9))
    logged = {}
    run(tmp_path, recipe=dataclasses.replace(recipe, schedules=schedules), log=logged.__setitem__)
    assert "prototypes" in monitors.verdict(logged[40])


def test_divergence_fails_with_a_diagnosis_and_spoils_no_checkpoint(tmp_path):
    recipe = make_recipe(steps=20)
    broken = dataclasses.replace(recipe, schedules=dataclasses.replace(recipe.schedules, learning_rate=1e30))
    told = r"diverged at or shortly before step \d+: .*norm.*; no checkpoint was saved before\. .*ssl.learning_rate"
    with pytest.raises(JobFailed, match=told):
        run(tmp_path, recipe=broken)
    assert checkpoint.steps(place(str(tmp_path))) == []
    run(tmp_path, recipe=recipe, stop=stopping_after(4))
    told = r"the checkpoint of step 4 is sound: `bfp export RUN FOLDER --step 4` .*\. Under another name lower ssl"
    with pytest.raises(JobFailed, match=told):
        run(tmp_path, recipe=broken)
    assert max(checkpoint.steps(place(str(tmp_path)))) == 4


def test_batches_that_end_early_are_a_failure(tmp_path):
    def two(step, rank, workers):
        endless = open_batches(step, rank, workers)
        return iter([next(endless), next(endless)])

    with pytest.raises(JobFailed, match="ended after step 2"):
        run(tmp_path, recipe=make_recipe(), batches=two)


def test_training_goes_on_while_a_checkpoint_of_that_very_step_is_written(tmp_path, monkeypatch):
    steps_later, save_now = threading.Event(), checkpoint._dcp_save

    def save_later(*given):
        assert steps_later.wait(300), "training waited for its checkpoint"
        save_now(*given)

    def log(step, figures):
        if step == 5:
            steps_later.set()

    recipe = make_recipe()
    expected = everything(run(tmp_path / "stopped", recipe=recipe, stop=stopping_after(3))).clone()
    monkeypatch.setattr(checkpoint, "_dcp_save", save_later)
    run(tmp_path / "on", recipe=recipe, cadence=dataclasses.replace(CADENCE, log_every=1), log=log)
    state = prepare(make_vit(), recipe=recipe, device=CPU, workers=1)
    checkpoint.load(state, place(str(tmp_path / "on")), step=3)
    assert torch.equal(everything(state), expected)


def test_a_checkpoint_waits_for_the_one_before_and_says_how_long(tmp_path, monkeypatch):
    hash_of = checkpoint._sha256
    monkeypatch.setattr(checkpoint, "_sha256", lambda file: time.sleep(1) or hash_of(file))
    logged = {}
    cadence = dataclasses.replace(CADENCE, save_every=1, keep=9)
    run(tmp_path, recipe=make_recipe(steps=3), cadence=cadence, log=logged.__setitem__)
    assert checkpoint.steps(place(str(tmp_path))) == [1, 2, 3]
    assert "checkpoint_wait_s" not in logged[1]
    assert logged[2]["checkpoint_wait_s"] > 0


def test_a_checkpoint_that_cannot_be_written_ends_the_training_before_the_next_one(tmp_path):
    (tmp_path / "step-00000020").write_text("in the way")
    logged = {}
    cadence = dataclasses.replace(CADENCE, save_every=20)
    with pytest.raises(StorageError, match=r"step-00000020: .* a file stands where a folder should be"):
        run(tmp_path, recipe=make_recipe(steps=40), cadence=cadence, log=logged.__setitem__)
    assert 20 <= max(logged) < 30


def test_checkpoints_of_every_kth_step_stay_for_ever(tmp_path):
    cadence = dataclasses.replace(CADENCE, keep=1, keep_every=6)
    run(tmp_path, recipe=make_recipe(steps=15), cadence=cadence)
    assert checkpoint.steps(place(str(tmp_path))) == [6, 12, 15]


def test_a_checkpoint_is_complete_only_when_what_was_logged_is_kept(tmp_path):
    """Who goes on from it logs that no more."""
    kept = []

    def logged(step):
        kept.append((step, checkpoint.steps(place(str(tmp_path)))))

    run(tmp_path, recipe=make_recipe(), logged=logged)
    assert kept == [(3, []), (6, [3])]


def extended(recipe, steps):
    """The recipe of a run of 6 steps that was then given this many."""
    schedules = dataclasses.replace(recipe.schedules, steps=steps, earlier=(Length(6, until=6),))
    return dataclasses.replace(recipe, schedules=schedules)


@pytest.mark.parametrize("stopped_after", [None, 1])
def test_a_finished_run_is_extended_from_its_last_checkpoint_also_in_two_goes(tmp_path, stopped_after):
    recipe, notes = make_recipe(steps=6), []
    longer = make_recipe(steps=30)
    expected = run(tmp_path / "planned", recipe=extended(recipe, 30))
    run(tmp_path / "extended", recipe=recipe)
    if stopped_after:
        run(tmp_path / "extended", recipe=longer, note=notes.append, stop=stopping_after(stopped_after))
        assert checkpoint.steps(place(str(tmp_path / "extended")))[-1] == 7
    found = run(tmp_path / "extended", recipe=longer, note=notes.append)
    assert found.step == 30
    assert torch.equal(everything(found), everything(expected))
    (said,) = notes
    assert said.startswith("extended from 6 to 30 steps: ")
    assert "at step 6 to the curves of the new length" in said


def test_the_last_checkpoints_stay_and_incomplete_ones_go(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "__0_0.distcp").write_bytes(b"left by a kill")
    run(tmp_path, recipe=make_recipe(steps=9))
    assert checkpoint.steps(place(str(tmp_path))) == [6, 9]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["step-00000006", "step-00000009"]


def test_a_checkpoint_without_its_marker_does_not_exist(tmp_path):
    run(tmp_path, recipe=make_recipe())
    (tmp_path / "step-00000006.json").unlink()
    assert checkpoint.steps(place(str(tmp_path))) == [3]


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_changed_file_is_never_read(tmp_path, name):
    recipe = make_recipe(steps=3)
    run(tmp_path, recipe=recipe)
    file = tmp_path / "step-00000003" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    state = prepare(make_vit(), recipe=recipe, device=CPU, workers=1)
    with pytest.raises(StorageError, match="not what was written"):
        checkpoint.load(state, place(str(tmp_path)), step=3)
    file.unlink()
    with pytest.raises(StorageError, match="missing"):
        checkpoint.load(state, place(str(tmp_path)), step=3)


class Planted:
    def __reduce__(self):
        return os.mkdir, ("planted",)


def test_nothing_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(steps=3)
    run(tmp_path, recipe=recipe)
    file, marker = tmp_path / "step-00000003" / ".metadata", tmp_path / "step-00000003.json"
    file.write_bytes(pickle.dumps(Planted()))
    told = json.loads(marker.read_text())
    told["files"][".metadata"] = [file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()]
    marker.write_text(json.dumps(told))
    with pytest.raises(StorageError, match=r"its \.metadata asks for posix.mkdir"):
        checkpoint.load_teacher(make_vit(), place(str(tmp_path)), step=3)
    assert not Path("planted").exists()


def test_a_damaged_marker_is_named_and_other_files_are_none(tmp_path):
    recipe = make_recipe(steps=3)
    run(tmp_path, recipe=recipe)
    marker = tmp_path / "step-00000003.json"
    for name in ("step-best.json", "step-00000003 (copy).json"):
        (tmp_path / name).write_text(marker.read_text())
    assert checkpoint.steps(place(str(tmp_path))) == [3]
    for damaged in ("", "[]", '{"format": 2}', marker.read_text()[:-9]):
        marker.write_text(damaged)
        with pytest.raises(StorageError, match=r"step-00000003\.json: not a marker that bfp wrote, or damaged"):
            run(tmp_path, recipe=recipe)


def test_a_full_disk_is_named_and_nothing_half_written_stays(tmp_path, monkeypatch):
    def written_in_part(tensors, *, checkpoint_id, **more):
        (Path(checkpoint_id) / "__0_0.distcp").write_bytes(b"half")
        raise CheckpointException("", {0: (RuntimeError("unexpected pos 704 vs 598"), None)})

    monkeypatch.setattr(checkpoint.dcp, "save", written_in_part)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(StorageError, match="no space left; make room there"):
        run(tmp_path, recipe=make_recipe(steps=3))
    assert not list(tmp_path.rglob("*.*"))


def test_a_checkpoint_in_object_storage_is_read_back(tmp_path, s3_bucket):
    recipe = make_recipe(steps=3)
    folder = place(f"{s3_bucket}/checkpoints-{os.getpid()}")
    on_disk = run(tmp_path, recipe=recipe)
    save(on_disk, folder, recipe=recipe)
    fresh = prepare(make_vit(seed=9), recipe=recipe, device=CPU, workers=1)
    checkpoint.load(fresh, folder, step=checkpoint.steps(folder)[-1])
    assert torch.equal(everything(fresh), everything(on_disk))
    on_disk.step = 4
    save(on_disk, folder, recipe=recipe)
    assert checkpoint.steps(folder) == [4]
    assert {entry.place.parent.name for entry in folder.files() if entry.place.name.endswith(".distcp")} == {
        "step-00000004"
    }


def test_exported_weights_give_the_teachers_features_in_plain_timm(tmp_path):
    state = run(tmp_path, recipe=make_recipe(steps=3))
    plain = make_vit(seed=8).eval()
    plain.load_state_dict(teacher_weights(state))
    images = torch.randn(2, 3, 56, 56)
    taught, tokens = state.teacher.backbone(images), plain.forward_features(images)
    assert torch.allclose(tokens[:, 0], taught.cls, atol=1e-5)
    assert torch.allclose(tokens[:, plain.num_prefix_tokens :], taught.patches, atol=1e-5)


def test_a_checkpoint_that_was_pruned_is_no_longer_read_and_leaves_nothing(tmp_path):
    run(tmp_path, recipe=make_recipe(steps=9))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match=r"step 3, or it was removed .* those of steps 6, 9 are there"):
        checkpoint.load_teacher(make_vit(), place(str(tmp_path)), step=3)
    assert sorted(tmp_path.rglob("*")) == before


WORKER = """
import sys, torch, torch.distributed as dist
from bfp.pretraining.loop import teacher_weights
from tests.pretraining.test_loop import CASES, of_case, run, stopping_after
folder, rank, port = sys.argv[1], int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
found = {}
for case in CASES:
    recipe = of_case(case)
    for how in ("two", "one-to-two"):
        found[f"{case} {how}"] = teacher_weights(run(f"{folder}/{case}/{how}", recipe=recipe))
    told = stopping_after(4) if rank == 1 else lambda: False
    assert run(f"{folder}/{case}/halves", recipe=recipe, stop=told).step == 4
    found[f"{case} halves"] = teacher_weights(run(f"{folder}/{case}/halves", recipe=recipe))
if rank == 0:
    torch.save(found, f"{folder}/weights.pt")
dist.destroy_process_group()
"""
CASES = ("sinkhorn", "softmax", "own")


def of_case(case):
    """own: the teacher has views of its own, so that patches of the head are predicted."""
    recipe = make_recipe(centring="softmax" if case == "softmax" else "sinkhorn", batch_norm_head=True)
    crops = dataclasses.replace(recipe.crops, teacher_views="own" if case == "own" else "same")
    return dataclasses.replace(recipe, crops=crops)


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def run_two_workers(folder, program):
    """Run a program as each of two workers; its arguments are the folder, its rank and a port."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'platform'}", "OMP_NUM_THREADS": "1"}
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(rank), port],
            env=environment,
            cwd=root,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    for process in workers:
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said.decode()[-3000:]


def test_two_sharded_workers_equal_one_and_each_resumes_the_other(tmp_path):
    alone = {}
    for case in CASES:
        recipe = of_case(case)
        alone[case] = teacher_weights(run(tmp_path / case / "one", recipe=recipe))
        run(tmp_path / case / "one-to-two", recipe=recipe, stop=stopping_after(3))
    run_two_workers(tmp_path, WORKER)
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    for case in CASES:
        folder = tmp_path / case / "two"
        teacher = make_vit(seed=8)
        checkpoint.load_teacher(teacher, place(str(folder)), step=6)
        found[f"{case} two, read by one"] = teacher.state_dict()
        (folder / "step-00000006.json").unlink()
        found[f"{case} two-to-one"] = teacher_weights(run(folder, recipe=of_case(case)))
    for case in CASES:
        for name, value in found[f"{case} two"].items():
            assert torch.equal(found[f"{case} halves"][name], value), name
    for how, weights in found.items():
        for name, value in alone[how.split()[0]].items():
            # A fiftieth of a learning rate; without the teacher's slow pace Adam makes up to a whole one of rounding.
            assert torch.allclose(weights[name], value, atol=2e-5), f"{how}: {name}"


@pytest.mark.parametrize("changed", [{}, {"recompute": True}, {"compiled": True}])
def test_stochastic_depth_works_on_sharded_parameters(changed):
    """It calls the parts of a block one by one; a mesh of one worker shards as any other."""
    if "compiled" in changed and shutil.which("g++") is None:
        pytest.skip("torch compiles with g++ here, and there is none")
    recipe = dataclasses.replace(make_recipe(drop_path=0.4), **changed)
    (stacks,) = (batch for batch, _ in zip(open_batches(0, 0, 1), range(1), strict=False))
    draws = Draws(recipe.seed, 0, first=0, count=recipe.batch_size, total=recipe.batch_size)
    now = recipe.schedules.at(3)
    losses = []
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        for sharded in (False, True):
            state = prepare(make_vit(), recipe=recipe, device=CPU, workers=1)
            if sharded:
                mesh = dist.init_device_mesh("cpu", (1,))
                shard(state.student, mesh)
                shard(state.teacher, mesh)
                state = start(state.student, state.teacher, recipe.ssl)
            result = one_step(state, stacks, draws=draws, now=now, recipe=recipe, group=None)
            losses.append({name: value.item() for name, value in result.figures.items()})
    finally:
        dist.destroy_process_group()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)

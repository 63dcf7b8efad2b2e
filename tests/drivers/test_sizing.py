"""What jobs cost: the model agrees with what training counts and with what was measured; plans show nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bfp.batches.plan import WINDOW
from bfp.batches.reader import REMOTE_THREADS
from bfp.cohorts.shards import LONGEST
from bfp.drivers import Capacity, ingest, pretrain, sizing
from bfp.drivers.inputs import sessions_of
from bfp.drivers.preparing import cost_of
from bfp.drivers.pretrain_outlook import UNKNOWN, heads_of, views_of, vit_of
from bfp.models.vit import Backbone
from bfp.pretraining import checkpoint
from bfp.pretraining.step import make_network, start, twin
from bfp.pretraining.work import step_flops
from bfp.specs import Ingest, Pretrain
from bfp.specs.backbones import backbones
from tests.benchmarks import sizing as plans
from tests.cohorts.makers import touch
from tests.pretraining.makers import make_recipe, make_ssl, make_vit
from tests.store.makers import make_store

VIT_L = backbones()["vit_large_patch14_dinov2"]
LONG = sizing.Heads(hidden=2048, bottleneck=384, prototypes=131072, ibot_bottleneck=256, ibot_prototypes=131072)


def facts_of(vit):
    """A row of the table of backbones for a ViT of one's own."""
    linear = [layer for layer in vit.blocks[0].modules() if isinstance(layer, torch.nn.Linear)]
    return replace(
        backbones()["vit_small_patch14_dinov2"],
        width=vit.embed_dim,
        depth=len(vit.blocks),
        block_products=sum(layer.in_features * layer.out_features for layer in linear),
        parameters=sum(each.numel() for each in vit.parameters()) - vit.pos_embed.numel(),
    )


def heads_of_settings(ssl):
    own = () if ssl.shared_head else (ssl.ibot_bottleneck, ssl.ibot_prototypes)
    return sizing.Heads(ssl.hidden, ssl.bottleneck, ssl.prototypes, *own)


@pytest.mark.parametrize("shared_head", [True, False])
@pytest.mark.parametrize("drop_path", [0.0, 0.25])
def test_operations_and_the_bytes_of_a_checkpoint_are_those_of_the_network_that_is_trained(shared_head, drop_path):
    ssl, crops, vit = make_ssl(shared_head=shared_head, drop_path=drop_path), make_recipe().crops, make_vit(size_px=56)
    stacks, predicted, facts = 8, 40, facts_of(vit)
    network = make_network(Backbone(vit), ssl)
    views = sizing.Views(crops.large_px, crops.small_px, crops.small_count, predicted / stacks, drop_path)
    told = stacks * sizing.operations(facts, heads_of_settings(ssl), views)
    assert told == pytest.approx(step_flops(network, crops=crops, ssl=ssl, stacks=stacks, predicted=predicted))

    state = start(network, twin(network), ssl)
    kinds = checkpoint.tensors(state)
    size = sum(4 * each.numel() for kind in kinds if kind != "centre" for each in kinds[kind].values())
    assert sizing.checkpoint_bytes(facts, heads_of_settings(ssl), size_px=56) == size


def test_the_model_gives_back_what_was_measured():
    small = backbones()[sizing.SMALL.encoder]
    assert round(sizing.SMALL.utilisation, 2) == 0.18
    assert round(sizing.LARGE.utilisation, 2) == 0.45
    for row in (sizing.SMALL, sizing.LARGE):
        rate = sizing.training_rate(backbones()[row.encoder], sizing.FAST, sizing.VIEWS, compiled=True)
        assert (round(rate.stacks_s), rate.measured) == (row.stacks_s, True)
    assert not sizing.training_rate(VIT_L, LONG, sizing.VIEWS, compiled=True).measured
    assert not sizing.training_rate(VIT_L, sizing.FAST, sizing.VIEWS, compiled=False).measured
    assert sizing.checkpoint_bytes(small, sizing.FAST, size_px=224) == pytest.approx(0.7e9, rel=0.02)


def test_a_vit_between_the_two_is_used_to_a_degree_between_them_and_one_beyond_no_more():
    used = [
        sizing.training_rate(backbones()[f"vit_{size}_patch14_dinov2"], LONG, sizing.VIEWS, compiled=True).utilisation
        for size in ("small", "base", "large", "giant")
    ]
    assert used[0] < used[1] < used[2] == used[3]


def test_what_the_code_sets_is_what_the_model_takes_it_for():
    assert sizing.LONGEST_SHARD == LONGEST
    assert sizing.FETCHES_AT_ONCE == REMOTE_THREADS
    assert WINDOW == 2 * 16  # some two row groups of a lane are open at once


def test_more_gpus_and_more_workers_never_take_longer():
    hours = [plans.Plan(gpus).seconds for gpus in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)]
    assert hours == sorted(hours, reverse=True)
    for scans in plans.SCANS:
        seconds = [plans.ingest_of(scans, cpus=cpus).seconds for cpus in (1, 2, 16, 300, 4096)]
        assert seconds == sorted(seconds, reverse=True)


def test_twice_the_scans_are_twice_the_bytes_and_the_work():
    one, two = (plans.ingest_of(scans, cpus=1) for scans in (48_000, 96_000))
    assert (two.stacks, two.size_bytes) == (2 * one.stacks, 2 * one.size_bytes)
    assert two.cpu_s == pytest.approx(2 * one.cpu_s)
    once, twice = (sizing.ingest_requests(scans=scans, shards=scans // 48) for scans in (480_000, 960_000))
    assert twice.gets == pytest.approx(2 * once.gets, rel=1e-3)
    assert twice.puts == pytest.approx(2 * once.puts, rel=1e-3)


def test_a_small_cohort_ends_no_sooner_than_its_longest_shard():
    assert plans.ingest_of(10_000, cpus=512).seconds == plans.ingest_of(10_000, cpus=4096).seconds


def test_the_first_bottleneck_is_the_part_that_lets_through_the_least():
    assert sizing.first_bottleneck({"CPUs": 3.0, "network": 2.0, "GETs": 9.0}) == "network"
    slow = plans.Plan(256)
    assert slow.first == "network between GPUs"
    assert slow.stacks_s == min(slow.limits.values()) < slow.limits["GPUs"]


def test_the_plan_of_an_ingest_shows_the_figures_of_the_model(tmp_path: Path) -> None:
    names = [f"sub-{n}/anat/sub-{n}_{suffix}.nii.gz" for n in range(40) for suffix in ("T1w", "FLAIR")]
    touch(tmp_path / "bids", "dataset_description.json", *names)
    spec = Ingest.model_validate(
        {
            "kind": "ingest",
            "name": "sized",
            "output": str(tmp_path / "runs"),
            "store": str(tmp_path / "store"),
            "cohorts": [{"name": "made", "bids": str(tmp_path / "bids")}],
        }
    )
    figures = ingest.plan(spec, capacity=Capacity(8, 0, 64.0)).figures
    cost = cost_of(sessions_of(spec.cohorts, spec.preprocessing), spec.preprocessing)
    told = sizing.ingest(cost, scans=80, shards=figures["shards"], size_px=224, workers=8)
    assert figures["bytes_estimated"] == told.size_bytes
    assert figures["seconds_estimated"] == round(told.seconds)
    assert figures["stacks_estimated"] == told.stacks == 40 * 180


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizing")
    make_store(folder / "store", sessions=8)
    return folder


def pretrain_spec(store: Path, **changes) -> Pretrain:
    compute = {"workers": 2, "precision": "bf16", "compile": True, **changes.pop("compute", {})}
    fields = {
        "kind": "pretrain",
        "name": "sized",
        "output": str(store / "runs"),
        "store": str(store / "store"),
        "encoder": "random:vit_large_patch14_dinov2",
        "crops": {"local_size_px": 14},
        "train": {"epochs": 100, "steps_per_epoch": 1000, "batch_size": 16},
        "compute": compute,
    }
    return Pretrain.model_validate({**fields, **changes})


def test_the_plan_of_a_pretraining_estimates_on_gpus_and_says_from_what(store: Path) -> None:
    spec = pretrain_spec(store)
    planned = pretrain.plan(spec, capacity=Capacity(16, 2, 128.0))
    vit = vit_of(spec)
    assert vit == VIT_L
    heads, views = heads_of(spec), views_of(spec, patch_px=14, size_px=28)
    step = sizing.step(
        sizing.training_rate(vit, heads, views, compiled=True),
        parameters=sizing.network_parameters(vit, heads, size_px=28),
        batch_size=16,
        gpus=2,
    )
    assert planned.figures["seconds_estimated"] == round(100_000 * step.seconds)
    assert planned.figures["checkpoint_bytes_estimated"] == sizing.checkpoint_bytes(vit, heads, size_px=28)
    time = dict(planned.rows)["time"]
    assert " if they are as fast as the one H100 that was measured: " in time
    assert time.endswith(" stacks a second on 2 GPUs, estimated from ViT-S/14 and ViT-L/14; the first steps will tell")
    assert dict(planned.rows)["checkpoints"].endswith(" each: 100 are written, the last 2 stay")


@pytest.mark.parametrize(
    ("gpus", "compute"), [(0, {}), (2, {"precision": "fp32", "compile": False}), (2, {"gpus_per_worker": 0})]
)
def test_of_what_nothing_like_it_was_measured_no_time_is_told(store: Path, gpus: int, compute: dict) -> None:
    planned = pretrain.plan(pretrain_spec(store, compute=compute), capacity=Capacity(16, gpus, 128.0))
    assert dict(planned.rows)["time"] == UNKNOWN
    assert "seconds_estimated" not in planned.figures


def test_the_page_is_what_the_command_writes():
    assert plans.FILE.read_text(encoding="utf-8") == plans.text(), "run `python -m tests.benchmarks.sizing`"


def test_the_model_is_light():
    code = (
        "import sys, bfp.drivers.sizing, bfp.drivers.pretrain_outlook\n"
        "assert not {'torch', 'ray', 'numpy', 'pyarrow', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

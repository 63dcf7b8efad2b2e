from __future__ import annotations

import json

import pytest
import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from bfp.models.heads import Head
from bfp.models.vit import Backbone
from bfp.pretraining.optimiser import adamw, clip, multipliers, set_rates
from bfp.pretraining.schedules import Now
from bfp.pretraining.step import Network
from tests.models.golden import GOLDEN, needs_golden, timm_name


def make_network(depth=4, *, batch_norm=False, **shape):
    vit = timm.create_model(
        "vit_small_patch14_reg4_dinov2", img_size=56, embed_dim=48, depth=depth, num_heads=3, num_classes=0, **shape
    )
    head = Head(width=48, hidden=64, bottleneck=16, prototypes=128, batch_norm=batch_norm)
    return Network(Backbone(vit), head, None)


def test_norms_biases_and_layer_scale_are_not_decayed_and_all_else_is():
    kinds = multipliers(make_network(batch_norm=True), depth=4, layer_decay=0.9, patch_embed_rate=0.2)
    plain = {name for name, kind in kinds.items() if kind.decay == 0}
    assert {"backbone.vit.norm.weight", "backbone.vit.blocks.0.ls1.gamma", "dino_head.mlp.1.weight"} <= plain
    assert {name for name in kinds if name.endswith("bias")} <= plain
    assert plain.isdisjoint({"backbone.mask_token", "backbone.vit.reg_token", "backbone.vit.pos_embed"})


@pytest.mark.parametrize("mask_token", [None, torch.ones(1, 48)])
def test_a_mask_token_counts_with_the_backbone_that_it_came_with_and_else_with_the_heads(mask_token):
    plain = make_network()
    network = Network(Backbone(plain.backbone.vit, mask_token=mask_token), plain.dino_head, None)
    kinds = multipliers(network, depth=4, layer_decay=0.9, patch_embed_rate=0.2)
    assert kinds["backbone.mask_token"].backbone == (mask_token is not None)
    assert kinds["backbone.vit.cls_token"].backbone


def test_each_module_is_clipped_by_itself_to_the_limit():
    modules = {"steep": nn.Linear(3, 2), "flat": nn.Linear(3, 2)}
    for module, scale in zip(modules.values(), (10.0, 0.01), strict=True):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, scale)
    norms = clip(modules, limit=0.5)
    assert norms["steep"] == pytest.approx(10 * 8**0.5)
    after = {
        name: torch.cat([p.grad.flatten() for p in module.parameters()]).norm() for name, module in modules.items()
    }
    assert after["steep"] == pytest.approx(0.5, rel=1e-5)
    assert after["flat"] == pytest.approx(0.01 * 8**0.5, rel=1e-5)


def test_a_resting_last_layer_keeps_its_weights_and_gathers_moments():
    network = make_network(depth=1)
    optimiser = adamw(network, depth=1, layer_decay=1.0, patch_embed_rate=1.0)
    prototypes = network.dino_head.last_layer.weight_v
    before = prototypes.detach().clone()
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimiser, Now(1e-3, 0.0, 1e-3, 0.04, 0.99, 0.04))
    optimiser.step()
    assert torch.equal(prototypes, before)
    assert (optimiser.state[prototypes]["exp_avg"] != 0).all()
    assert (network.backbone.mask_token != 0).all()


def test_a_resting_backbone_keeps_its_weights_while_the_heads_learn():
    network = make_network(depth=1)
    optimiser = adamw(network, depth=1, layer_decay=1.0, patch_embed_rate=1.0)
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rates(optimiser, Now(1e-3, 1e-3, 0.0, 0.04, 0.99, 0.04))
    optimiser.step()
    still = {name for name, parameter in network.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {name for name in before if name.startswith("backbone.vit.")}


@needs_golden
@pytest.mark.parametrize(
    "kind", ["backbone_depth4_reg4", "backbone_depth4_reg4_chunked2", "backbone_depth4_reg4_swiglu"]
)
def test_every_parameter_has_the_published_multipliers(kind):
    reference = json.loads((GOLDEN / "schedules.json").read_text())["param_multipliers"]
    shape = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if kind.endswith("swiglu") else {}
    ours = multipliers(make_network(**shape), depth=4, layer_decay=0.9, patch_embed_rate=0.2)
    for name, expected in reference[kind]["parameters"].items():
        parts = name.split(".")
        if kind.endswith("chunked2") and parts[0] == "blocks":
            del parts[1]  # the chunk; what follows it is the block's number
        full = timm_name(".".join(parts))
        *got, _ = ours.pop(f"backbone.{full}" if full == "mask_token" else f"backbone.vit.{full}")
        assert tuple(got) == pytest.approx((expected["lr"], expected["wd"], expected["last_layer"]), rel=1e-12), name
    for name, expected in reference["dino_head"]["parameters"].items():
        assert ours.pop(f"dino_head.{name}")[:3] == (expected["lr"], expected["wd"], expected["last_layer"])
    assert not ours

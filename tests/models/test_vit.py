from __future__ import annotations

import shutil

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SwiGLUPacked
from torch import nn

from bfp.errors import InputError
from bfp.models.vit import Backbone, PositionResampling
from tests.models.golden import assert_near, backbone_weights, below, needs_golden, tensors


def make_vit(*, size_px=(56, 56), registers=0, **shape):
    """A small DINOv2 ViT from timm, with weights large enough to tell one token from another."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    shape = {"embed_dim": 48, "depth": 3, "num_heads": 3, **shape}
    torch.manual_seed(1)
    vit = timm.create_model(name, img_size=size_px, num_classes=0, **shape)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit.eval()


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("size_px", [(56, 56), (28, 70)])
def test_at_its_own_size_a_backbone_gives_the_tokens_of_plain_timm(registers, size_px):
    vit = make_vit(size_px=size_px, registers=registers)
    images = torch.randn(2, 3, *size_px)
    tokens = Backbone(vit)(images)
    together = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    assert torch.allclose(together, vit.forward_features(images), atol=1e-5)
    assert tokens.registers.shape[1] == registers


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_any_grid_of_patches_has_its_positions(rows, columns):
    backbone = Backbone(make_vit(depth=1))
    assert backbone(torch.randn(1, 3, 14 * rows, 14 * columns)).patches.shape == (1, rows * columns, 48)


def test_a_hidden_patch_does_not_reach_any_token():
    backbone = Backbone(make_vit())
    nn.init.normal_(backbone.mask_token)
    images = torch.randn(2, 3, 56, 56)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[0, 6] = True  # the patch in row 1, column 2
    changed = images.clone()
    changed[0, :, 14:28, 28:42] += 5
    assert torch.equal(backbone(images, masks).cls, backbone(changed, masks).cls)
    assert not torch.allclose(backbone(images).cls[0], backbone(changed).cls[0])
    assert not torch.allclose(backbone(images).cls[0], backbone(images, masks).cls[0])


def test_a_branch_that_every_sample_takes_is_the_plain_block_and_a_dropped_one_is_skipped():
    backbone = Backbone(make_vit(depth=1))
    images = torch.randn(3, 3, 56, 56)
    everyone = [torch.tensor([2, 0, 1])] * 2
    assert torch.allclose(backbone(images, None, everyone).patches, backbone(images).patches, atol=1e-5)
    kept = [torch.tensor([1]), torch.tensor([1])]
    skipped = backbone(images, None, kept).cls
    bare = backbone.vit.norm(backbone.embed(images, None))[:, 0]
    assert torch.allclose(skipped[[0, 2]], bare[[0, 2]], atol=1e-6)
    block, tokens = backbone.vit.blocks[0], backbone.embed(images, None)[1:2]
    tokens = tokens + 3 * block.ls1(block.attn(block.norm1(tokens)))  # one of three samples stands for all
    tokens = tokens + 3 * block.ls2(block.mlp(block.norm2(tokens)))
    assert torch.allclose(skipped[1:2], backbone.vit.norm(tokens)[:, 0], atol=1e-5)


@pytest.mark.parametrize("keep", [None, [torch.tensor([0, 2])] * 4])
def test_recomputed_activations_give_the_same_gradients_and_are_not_kept(keep):
    images = torch.randn(3, 3, 56, 56)
    gradients, kept = [], []
    for recompute in (False, True):
        backbone = Backbone(make_vit(depth=2), recompute=recompute)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, at=sizes: at.append(tensor.numel()) or tensor, lambda x: x
        ):
            loss = backbone(images, None, keep).patches.square().sum()
        loss.backward()
        gradients.append({name: parameter.grad for name, parameter in backbone.named_parameters()})
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
    assert all(torch.equal(gradients[0][name], value) for name, value in gradients[1].items() if value is not None)
    assert gradients[1]["vit.blocks.0.attn.qkv.weight"].any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ here, and there is none")
@pytest.mark.parametrize("keep", [None, [torch.tensor([0, 2]) for _ in range(6)]])
def test_compiled_blocks_give_the_same_tokens_and_gradients_and_are_compiled_once(keep):
    found, shapes = [], [(3, 3, 56, 56), (3, 3, 28, 28)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        backbone = Backbone(make_vit(depth=3), compiled=compiled)
        tokens = [backbone(torch.ones(shape), None, keep).patches for shape in shapes]
        sum(own.square().sum() for own in tokens).backward()
        gradients = {
            name: parameter.grad for name, parameter in backbone.named_parameters() if parameter.grad is not None
        }
        found.append((tokens, gradients))
    with torch.compiler.set_stance("fail_on_recompile"):
        for shape in shapes:
            backbone(torch.ones(shape), None, keep)
    (tokens, gradients), (own_tokens, own_gradients) = found
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(tokens, own_tokens, strict=True))
    assert gradients.keys() == own_gradients.keys()
    assert all(torch.allclose(value, own_gradients[name], rtol=1e-4, atol=1e-4) for name, value in gradients.items())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(shapes)


def test_a_vit_without_a_class_token_is_refused_by_name():
    vit = timm.create_model("vit_medium_patch16_gap_240", depth=1, num_classes=0)
    with pytest.raises(InputError, match="no class token"):
        Backbone(vit)


MODELS = {
    "reg0": (PositionResampling(), 0),
    "reg4": (PositionResampling(offset=0.0, antialias=True), 4),
    "swiglu": (PositionResampling(), 0),
    "reg0_offset0_antialias": (PositionResampling(offset=0.0, antialias=True), 0),
    "reg4_offset0.1_noantialias": (PositionResampling(), 4),
}


@needs_golden
@pytest.mark.parametrize("model", MODELS)
def test_tokens_and_positions_are_those_of_the_published_code(model):
    reference = tensors("vit")
    resampling, registers = MODELS[model]
    extra = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 256 / 48} if model == "swiglu" else {}
    backbone = Backbone(make_vit(registers=registers, **extra), positions=resampling)
    published = below(reference, f"{model.split('_')[0]}/weights/")
    backbone.load_state_dict(backbone_weights(published))
    cases = sorted({tuple(key.split("/")[1:3]) for key in reference if key.startswith(f"{model}/") and "mask/" in key})
    cases = [(size, masked) for size, masked in cases if not size.startswith(("grad", "weights"))]
    assert len(cases) >= 4
    for size, masked in cases:
        image = reference[f"input/{size}/image"]
        tokens = backbone(image, reference[f"input/{size}/mask"].bool() if masked == "mask" else None)
        expected = below(reference, f"{model}/{size}/{masked}/x_norm_")
        assert_near(tokens.cls, expected["clstoken"], 1e-5)
        assert_near(tokens.patches, expected["patchtokens"], 1e-5)
        if registers:
            assert_near(tokens.registers, expected["regtokens"], 1e-5)
        if (positions := reference.get(f"{model}/{size}/pos_embed_interpolated")) is not None:
            rows, columns = (int(side) // 14 for side in size.split("x"))
            assert_near(backbone.positions(rows, columns)[1], positions[:, 1:], 1e-5)


@needs_golden
def test_gradients_through_masks_and_positions_are_those_of_the_published_code():
    reference = tensors("vit")
    backbone = Backbone(make_vit())
    backbone.load_state_dict(backbone_weights(below(reference, "reg0/weights/")))
    image = reference["input/42x70/image"].requires_grad_()
    tokens = backbone(image, reference["input/42x70/mask"].bool())
    scalar = tokens.cls.square().sum() + 0.5 * tokens.patches.pow(3).sum()
    scalar.backward()
    expected = below(reference, "reg0/grad_42x70_mask/")
    assert_near(scalar, expected.pop("scalar"), 1e-5)
    assert_near(image.grad, expected.pop("image"), 1e-5)
    ours = dict(backbone.named_parameters())
    for name, gradient in expected.items():
        assert_near(ours[name if name == "mask_token" else f"vit.{name}"].grad, gradient, 1e-5)

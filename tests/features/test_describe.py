from dataclasses import replace

import numpy as np
import pytest
import torch

from bfp.features.describe import EncoderVectors, Histograms
from bfp.features.tokens import tokens
from bfp.models.encoder import LoadedEncoder, load


@pytest.fixture(scope="module")
def encoder() -> LoadedEncoder:
    name = "vit_small_patch14_reg4_dinov2"
    return load(origin="random", name=name, uri=None, size_px=28, width=32, depth=2, heads=2)


def some_stacks(count=3):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, 28, 28), dtype=np.uint8))


def test_tokens_are_those_of_the_plain_model_without_its_registers(encoder):
    found = tokens(encoder, some_stacks())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (encoder.mean, encoder.std))
    with torch.inference_mode():
        plain = encoder.model.forward_features((some_stacks() / 255 - mean) / std)
    assert found.cls.shape == (3, 32)
    assert found.patches.shape == (3, 4, 32)
    torch.testing.assert_close(found.cls, plain[:, 0])
    torch.testing.assert_close(found.patches, plain[:, 5:])


def test_an_encoder_describes_a_stack_by_the_spread_of_its_patches(encoder):
    spread = tokens(encoder, some_stacks()).patches.numpy().std(axis=1)
    np.testing.assert_allclose(EncoderVectors(encoder)(some_stacks()), spread, rtol=1e-5, atol=1e-6)


def test_an_absent_channel_is_filled_as_it_was_when_the_encoder_was_trained(encoder):
    stacks = some_stacks()
    stacks[:, 1:] = 0
    shown = stacks[:, :1].expand(-1, 3, -1, -1)
    repeats = replace(encoder, fill="repeat")
    torch.testing.assert_close(tokens(repeats, stacks).patches, tokens(encoder, shown).patches)
    assert not torch.allclose(tokens(encoder, stacks).patches, tokens(encoder, shown).patches)
    assert EncoderVectors(repeats).identity != EncoderVectors(encoder).identity


def test_equal_weights_have_equal_identities_and_others_do_not(encoder):
    again = load(
        origin="random", name="vit_small_patch14_reg4_dinov2", uri=None, size_px=28, width=32, depth=2, heads=2
    )
    other = load(
        origin="random", name="vit_small_patch14_reg4_dinov2", uri=None, size_px=28, width=32, depth=2, heads=2, seed=1
    )
    assert EncoderVectors(again).identity == EncoderVectors(encoder).identity
    assert EncoderVectors(other).identity != EncoderVectors(encoder).identity


def test_histograms_forget_where_a_grey_value_lies_and_nothing_else():
    stacks = some_stacks(2)
    shuffled = stacks.flatten(2)[:, :, torch.randperm(28 * 28)].reshape(stacks.shape)
    vectors = Histograms()(stacks)
    assert vectors.shape == (2, 3 * (Histograms.BINS + 1))
    np.testing.assert_array_equal(vectors, Histograms()(shuffled))
    np.testing.assert_allclose(vectors.reshape(2, 3, -1)[:, :, :-1].sum(axis=2), 1, rtol=1e-5)


def test_the_background_is_no_grey_value_of_a_histogram():
    stacks = torch.zeros((1, 3, 28, 28), dtype=torch.uint8)
    stacks[:, 0, :7] = 200
    first, second, third = Histograms()(stacks).reshape(3, -1)
    assert first[200 * Histograms.BINS // 256] == 1
    assert first[-1] == 0.25
    assert not second.any()
    assert not third.any()

import json

import pytest
import torch

from bfp.errors import InputError
from bfp.models.decoder import Decoder, blocks_of
from bfp.models.encoder import export, load
from bfp.models.segmenter import Segmenter, decoder_bytes, decoder_of, is_segmenter, load_segmenter, save_segmenter
from bfp.storage import place

SHAPE = {"width": 32, "depth": 4, "heads": 2}


def stacks(count, *, patches, size_px, features):
    random = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, patches**2, features, generator=random),
        torch.randint(0, 256, (count, 3, size_px, size_px), generator=random, dtype=torch.uint8),
        torch.rand(count, generator=random),
    )


@pytest.mark.parametrize(("patches", "size_px"), [(8, 112), (16, 224), (14, 224), (2, 28), (7, 112)])
def test_every_pixel_gets_its_logits_whatever_the_patch(patches, size_px):
    decoder = Decoder(features=24, classes=3, width=32, patches=patches, size_px=size_px).eval()
    logits = decoder(*stacks(2, patches=patches, size_px=size_px, features=24))
    assert logits.shape == (2, 3, size_px, size_px)
    assert decoder.sizes_px[-1] == size_px
    assert all(after <= 2 * before for before, after in zip(decoder.sizes_px, decoder.sizes_px[1:], strict=False))


def test_a_stack_is_decoded_alike_in_any_company():
    decoder = Decoder(features=24, classes=3, width=32, patches=4, size_px=56).eval()
    own = stacks(3, patches=4, size_px=56, features=24)
    together = decoder(*own)
    alone = decoder(*(each[1:2] for each in own))
    torch.testing.assert_close(together[1:2], alone)


def test_tokens_lie_where_their_patches_do():
    decoder = Decoder(features=24, classes=3, width=32, patches=8, size_px=112).eval()
    tokens, *beside = stacks(1, patches=8, size_px=112, features=24)
    pixels, heights = (torch.zeros_like(each) for each in beside)
    other = tokens.clone()
    other[0, 8 * 1 + 6] *= -1  # second row, seventh column
    changed = (decoder(tokens, pixels, heights) - decoder(other, pixels, heights)).abs().sum(dim=1)[0]
    row, column = divmod(int(changed.argmax()), 112)
    assert abs(row - 21) <= 14  # a patch
    assert abs(column - 91) <= 14


def test_the_same_seed_gives_the_same_decoder_and_leaves_others_draws_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, other = (Decoder(features=8, classes=2, width=16, patches=2, size_px=28, seed=5) for _ in range(2))
    assert torch.rand(1) == expected
    assert decoder_bytes(one, {}) == decoder_bytes(other, {})


def test_intermediate_layers_end_with_the_last():
    assert blocks_of("last", depth=12) == (11,)
    assert blocks_of("intermediate", depth=12) == (2, 5, 8, 11)
    assert blocks_of("intermediate", depth=24) == (5, 11, 17, 23)
    assert blocks_of("intermediate", depth=2) == (0, 1)


def a_segmenter(encoder):
    decoder = Decoder(features=4 * 32, classes=3, width=16, patches=2, size_px=28, seed=1)
    return Segmenter(
        target="tissue",
        classes=("grey", "white"),
        drawn_on=("T1w",),
        shown=("T1w",),
        layers="intermediate",
        width=16,
        preprocessing={"size": 28},
        decoder=decoder.eval(),
        facts={"weights": encoder.description["weights"]},
    )


def test_a_model_folder_gives_back_what_was_saved_and_refuses_what_was_exchanged(tmp_path):
    encoder = load(origin="random", name="vit_small_patch14_dinov2", uri=None, size_px=28, **SHAPE)
    folder, saved = place(str(tmp_path)), a_segmenter(encoder)
    export(encoder, folder / "encoder", card="", provenance={})
    save_segmenter(saved, folder, card="a card")
    assert is_segmenter(folder)
    found = load_segmenter(folder, encoder=encoder)
    own = stacks(1, patches=2, size_px=28, features=4 * 32)
    torch.testing.assert_close(found.decoder(*own), saved.decoder(*own))
    assert (found.classes, found.drawn_on, found.layers) == (saved.classes, saved.drawn_on, saved.layers)

    told = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text(told.replace('"grey",\n  "white"', '"white",\n  "grey"'))
    with pytest.raises(InputError, match=r"model\.json: was changed since it was written"):
        load_segmenter(folder, encoder=encoder)
    (tmp_path / "model.json").write_text(told.replace('"contract": 4', '"contract": 5'))
    with pytest.raises(InputError, match="written by a newer bfp"):
        load_segmenter(folder, encoder=encoder)
    older = json.loads(told) | {"contract": 3}
    del older["encoder_config"]
    (tmp_path / "model.json").write_text(json.dumps(older))
    with pytest.raises(InputError, match=r"written by an older bfp \(contract 3, this one is 4\); fine-tune again"):
        load_segmenter(folder, encoder=encoder)
    (tmp_path / "model.json").write_text(told.replace('"width": 16', '"width": 2'))
    with pytest.raises(InputError, match="width: Input should be greater than or equal to 8"):
        load_segmenter(folder, encoder=encoder)
    (tmp_path / "model.json").write_text(told)
    config = tmp_path / "encoder" / "config.json"
    written = config.read_text()
    config.write_text(written.replace('"mean": [', '"mean": [0.9, '))
    with pytest.raises(InputError, match=r"not the encoder's config\.json that model\.json was written with"):
        load_segmenter(folder, encoder=encoder)
    config.write_text(written)
    (tmp_path / "decoder.safetensors").write_bytes(decoder_bytes(saved.decoder, {}))
    with pytest.raises(InputError, match=r"not the decoder that model\.json was written with"):
        load_segmenter(folder, encoder=encoder)


def test_a_decoder_of_another_encoder_does_not_fit():
    encoder = load(origin="random", name="vit_small_patch14_dinov2", uri=None, size_px=28, **SHAPE)
    data = decoder_bytes(a_segmenter(encoder).decoder, {})
    with pytest.raises(RuntimeError, match="size mismatch"):
        decoder_of(data, encoder=encoder, layers="last", classes=2, width=16, size_px=28)

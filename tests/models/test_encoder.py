"""Encoders: made, read from every kind of file, and exported so that plain timm has the same features."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from bfp.errors import InputError
from bfp.models.encoder import LoadedEncoder, Start, create, encoder_folder, export, facts, load, untrained
from bfp.models.vit import Backbone
from bfp.models.weights import fingerprint
from bfp.storage import Place

SHARED = Path(os.environ.get("BFP_SHARED", Path(__file__).parents[2].parent / "shared"))
GOLDEN = SHARED / "golden"
golden = pytest.mark.skipif(not (GOLDEN / "vit.safetensors").exists(), reason="no ../shared/golden here")

SMALL = {"width": 48, "depth": 3, "heads": 3}
NAME = "vit_small_patch14_dinov2"
GREY = {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7)}


def small(*, size_px: int = 56, seed: int = 1, name: str = NAME) -> torch.nn.Module:
    return create(name, size_px=size_px, **SMALL, seed=seed).eval()


def from_folder(folder: Path, *, size_px: int = 56):
    return load(origin="folder", name=None, uri=str(folder), size_px=size_px)


def exported(folder: Path, model: torch.nn.Module | None = None) -> Path:
    start = Start(seed=1, size_px=56)
    encoder = LoadedEncoder(model or small(), **GREY, patch_px=14, fill="repeat", start=start, description={})
    export(encoder, Place(str(folder)), card="# card", provenance={"run": "r"})
    return folder


def test_the_same_seed_makes_the_same_encoder_and_leaves_other_draws_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two, other = small(seed=1), small(seed=1), small(seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert fingerprint(one) == fingerprint(two) != fingerprint(other)


def test_a_size_that_is_no_multiple_of_the_patch_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(InputError, match=r"60 pixels .* patches of 14.* 56 or 70"):
        small(size_px=60)


def test_a_vit_without_class_token_is_refused() -> None:
    with pytest.raises(InputError, match="class token"):
        create("vit_base_patch16_gap_224", size_px=64, seed=0)


PLAIN_TIMM = """
import sys, timm, timm.data, torch
from safetensors.torch import load_file
for name in sys.argv[1:]:
    found = load_file(f"{name}/expected.safetensors")
    model = timm.create_model(f"local-dir:{name}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    found_in_config = [config[key] for key in ("input_size", "mean", "std")]
    assert found_in_config == [(3, 56, 56), [0.2, 0.3, 0.4], [0.5, 0.6, 0.7]], config
    with torch.no_grad():
        tokens, pooled = model.forward_features(found["images"]), model(found["images"])
    assert (tokens - found["tokens"]).abs().max() < 1e-5, name
    assert (pooled - found["tokens"][:, 0]).abs().max() < 1e-5, name
assert not any(name.partition(".")[0] == "bfp" for name in sys.modules)
"""


def test_plain_timm_without_bfp_has_the_same_features_of_an_exported_encoder(tmp_path: Path) -> None:
    names = [NAME, "vit_small_patch14_reg4_dinov2", "vit_giant_patch14_dinov2"]
    for name in names:
        model = small(name=name)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        images = torch.randn(2, 3, 56, 56)
        with torch.no_grad():
            tokens = model.forward_features(images)
        exported(tmp_path / name, model)
        safetensors.torch.save_file({"images": images, "tokens": tokens}, tmp_path / name / "expected.safetensors")
    done = subprocess.run([sys.executable, "-c", PLAIN_TIMM, *names], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_exported_encoder_comes_back_with_its_weights_and_normalisation(tmp_path: Path) -> None:
    model = small()
    back = from_folder(exported(tmp_path, model))
    assert fingerprint(back.model) == fingerprint(model) == back.description["weights"]
    assert (back.mean, back.std, back.patch_px) == (*GREY.values(), 14)
    assert facts(back.model) == facts(model)
    assert back.fill == "repeat"
    assert json.loads((tmp_path / "config.json").read_text())["bfp"] == {
        "run": "r",
        "start": {"seed": 1, "size_px": 56},
        "fill": "repeat",
        "weights_sha256": hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest(),
    }
    assert (tmp_path / "README.md").read_text() == "# card"


@pytest.mark.parametrize("inside", ["", "encoder", "model", "model/encoder"])
def test_a_run_a_model_and_a_bare_folder_all_lead_to_the_encoder(tmp_path: Path, inside: str) -> None:
    exported(tmp_path / inside)
    assert encoder_folder(Place(str(tmp_path))).path == tmp_path / inside


def test_a_run_without_an_encoder_says_that_it_has_not_finished(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").touch()
    with pytest.raises(InputError, match="this run has no finished encoder"):
        encoder_folder(Place(str(tmp_path)))
    with pytest.raises(InputError, match="no encoder there"):
        encoder_folder(Place(str(tmp_path / "nowhere")))


def test_an_encoder_for_another_size_has_its_positions_resampled_as_timm_does(tmp_path: Path) -> None:
    back = from_folder(exported(tmp_path), size_px=98)
    as_timm = small()
    as_timm.set_input_size(img_size=(98, 98))
    torch.testing.assert_close(back.model.pos_embed, as_timm.pos_embed)
    assert back.model(torch.zeros(1, 3, 98, 98)).shape == (1, 48)
    assert back.description["positions"].startswith("resampled from 4×4 to 7×7 patches")


def test_a_mask_token_goes_with_the_encoder_beside_what_timm_reads(tmp_path: Path) -> None:
    token = torch.arange(48.0)[None]
    export(replace(from_folder(exported(tmp_path)), mask_token=token), Place(str(tmp_path)), card="", provenance={})
    back = from_folder(tmp_path)
    assert torch.equal(back.mask_token, token)
    assert untrained(back).mask_token is None
    timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    safetensors.torch.save_file({"mask_token": torch.zeros(1, 47)}, tmp_path / "mask_token.safetensors")
    with pytest.raises(InputError, match=r"mask_token\.safetensors: .* \(1, 47\)}, expected mask_token of \(1, 48\)"):
        from_folder(tmp_path)


@pytest.mark.parametrize("name", [NAME, "vit_small_patch14_reg4_dinov2", "vit_small_patch16_224"])
def test_the_untrained_encoder_has_the_weights_of_step_0_whatever_was_learned_since(tmp_path: Path, name: str) -> None:
    first = load(origin="random", name=name, uri=None, size_px=112, **SMALL, layer_scale=1.0, seed=7)
    expected = {key: value.clone() for key, value in first.model.state_dict().items()}
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.add_(1)
    export(first, Place(str(tmp_path)), card="", provenance={})
    found = untrained(from_folder(tmp_path, size_px=112))
    assert found.description["weights"] == first.description["weights"]  # which was taken before it learned
    torch.testing.assert_close(dict(found.model.state_dict()), expected, rtol=0, atol=0)


def test_the_untrained_encoder_for_another_size_began_at_the_first_one(tmp_path: Path) -> None:
    """Its positions are resampled as the trained one's are; drawn anew, every weight after them would be another."""
    first = load(origin="random", name=NAME, uri=None, size_px=56, **SMALL, layer_scale=0.1, seed=7)
    export(first, Place(str(tmp_path)), card="", provenance={})
    trained = from_folder(tmp_path, size_px=112)
    assert untrained(trained).description["weights"] == trained.description["weights"]
    assert untrained(untrained(trained)).description["weights"] == trained.description["weights"]


def test_an_encoder_that_did_not_start_from_random_weights_has_an_untrained_twin_of_its_shape(tmp_path: Path) -> None:
    (exported(tmp_path) / "config.json").write_text(
        json.dumps(json.loads((tmp_path / "config.json").read_text()) | {"bfp": {"run": "another program's"}})
    )
    found = load(origin="folder", name=None, uri=str(tmp_path), size_px=56, seed=1)
    twin = untrained(found)
    assert (found.fill, twin.mean, twin.std) == ("zero", *GREY.values())
    assert fingerprint(twin.model) == fingerprint(small(seed=1))


def test_a_file_that_lacks_a_weight_is_refused(tmp_path: Path) -> None:
    exported(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["norm.wait"] = weights.pop("norm.weight")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"lacks norm\.weight and has norm\.wait"):
        from_folder(tmp_path)


def test_a_config_cannot_name_other_files_to_load(tmp_path: Path) -> None:
    config = json.loads((exported(tmp_path) / "config.json").read_text())
    config["model_args"]["checkpoint_path"] = str(tmp_path / "elsewhere.pth")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert fingerprint(from_folder(tmp_path).model) == fingerprint(small())


def test_a_file_that_timm_knows_is_read_by_name_and_a_classifier_in_it_is_left_out(tmp_path: Path) -> None:
    whole = create(NAME, size_px=56, seed=3)
    torch.save({"state_dict": {**whole.state_dict(), "head.weight": torch.zeros(9, 384)}}, tmp_path / "vit.pth")
    found = load(origin="timm", name=NAME, uri=str(tmp_path / "vit.pth"), size_px=56)
    assert fingerprint(found.model) == fingerprint(whole)
    with pytest.raises(InputError, match="not this encoder's weights"):
        load(origin="timm", name="vit_small_patch14_reg4_dinov2", uri=str(tmp_path / "vit.pth"), size_px=56)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harm",))

    torch.save({"cls_token": Harm()}, tmp_path / "harm.pth")
    for origin, name in (("meta", None), ("timm", NAME)):
        with pytest.raises(InputError):
            load(origin=origin, name=name, uri=str(tmp_path / "harm.pth"), size_px=56)
    assert not (tmp_path / "harm").exists()


def test_released_weights_that_cannot_be_fetched_name_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"write timm:vit_small_patch14_dinov2.lvd142m@<file>"):
        load(origin="timm", name="vit_small_patch14_dinov2.lvd142m", uri=None, size_px=56)


@golden
@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("vit.pth", "reg0"),
        ("vit_reg4.pth", "reg4"),
        ("vit_teacher_checkpoint.pth", "reg0"),
        ("vit_teacher_checkpoint_chunked.pth", "reg0"),
        ("vit_reg4_teacher_checkpoint.pth", "reg4"),
    ],
)
@pytest.mark.parametrize("size_px", [28, 56, 98])
def test_every_form_of_metas_files_gives_metas_tokens_at_every_size(file: str, model: str, size_px: int) -> None:
    expected = safetensors.torch.load_file(GOLDEN / "vit.safetensors")
    loaded = load(origin="meta", name=None, uri=str(GOLDEN / file), size_px=size_px, heads=3)
    at = f"{size_px}x{size_px}"
    image, mask = expected[f"input/{at}/image"], expected[f"input/{at}/mask"].bool()
    with torch.no_grad():
        tokens = loaded.model.forward_features(image)
        hidden = Backbone(loaded.model, mask_token=loaded.mask_token)(image, mask)
    prefix = loaded.model.num_prefix_tokens
    for name, got in (
        ("nomask/x_norm_clstoken", tokens[:, 0]),
        ("nomask/x_norm_patchtokens", tokens[:, prefix:]),
        ("mask/x_norm_clstoken", hidden.cls),
        ("mask/x_norm_patchtokens", hidden.patches),
    ):
        want = expected[f"{model}/{at}/{name}"]
        assert (got - want).abs().max() <= 1e-5 * want.abs().max(), name


@golden
def test_metas_gated_models_are_told_by_their_keys(tmp_path: Path) -> None:
    expected = safetensors.torch.load_file(GOLDEN / "vit.safetensors")
    prefix = "swiglu/weights/"
    weights = {key.removeprefix(prefix): value for key, value in expected.items() if key.startswith(prefix)}
    torch.save(weights, tmp_path / "swiglu.pth")
    found = load(origin="meta", name=None, uri=str(tmp_path / "swiglu.pth"), size_px=56, heads=3).model
    with torch.no_grad():
        tokens = found.forward_features(expected["input/56x56/image"])
    want = expected["swiglu/56x56/nomask/x_norm_patchtokens"]
    assert (tokens[:, 1:] - want).abs().max() <= 1e-5 * want.abs().max()


def test_a_file_that_is_no_dinov2_backbone_says_what_it_found(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"its keys begin conv1\.weight, expected cls_token"):
        load(origin="meta", name=None, uri=str(tmp_path / "resnet.pth"), size_px=56)
    with pytest.raises(InputError, match="no such file"):
        load(origin="meta", name=None, uri=str(tmp_path / "absent.pth"), size_px=56)

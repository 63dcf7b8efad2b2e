"""The encoder: a timm Vision Transformer made for the store's stacks, created, loaded and exported.

`create` makes one with random weights, `load` one from whatever a spec may name, `untrained` the one that it was before
its first step. `export` writes the folder that is the result of pretraining:

    <folder>/model.safetensors   the weights, positions baked for the size that it was trained at
    <folder>/config.json         timm's own format: architecture, arguments, pixel mean and standard deviation;
                                 under `bfp` what it was made from, how it began, what absent channels are filled with
    <folder>/mask_token.safetensors   `mask_token` (1, D), for who trains it further: timm's models have none
    <folder>/README.md           the model card

so that anybody has it back, without bfp, by `timm.create_model("local-dir:<folder>", pretrained=True)`. config.json is
written last: a folder without it is no encoder.

An encoder takes pixels 0..255 as (pixels / 255 - mean) / std, with the mean and std of its own config. One that was
made for another image size gets its position embeddings resampled once, here, bicubically and with antialiasing as
timm does; Meta's models without registers are resampled the way Meta runs them (offset 0.1, no antialiasing).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import LayerScale, VisionTransformer
from torch import Tensor, nn

from bfp.batches.absent import Fill
from bfp.errors import InputError
from bfp.models.folders import CARD, CONFIG, MASK_TOKEN, WEIGHTS, encoder_folder, read_config
from bfp.models.vit import Backbone, PositionResampling
from bfp.models.weights import (
    fill,
    fill_from_safetensors,
    fill_from_timm,
    fingerprint,
    ratio,
    read_mask_token,
    read_meta,
)
from bfp.storage import Place

AS_TIMM = PositionResampling(offset=0.0, antialias=True)
AS_META = PositionResampling(offset=0.1, antialias=False)

# What a config.json may say about the model to make: anything else (paths, sources) is not taken from a file.
_ARGUMENTS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens", "init_values")

Rgb = tuple[float, float, float]


class Start(NamedTuple):
    """What the random weights of an encoder were made with, or would be if it did not start from random ones.

    seed: as in `create`; size_px: of the images that it was made for.
    """

    seed: int
    size_px: int


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """A ViT without classifier, in evaluation mode, and how it wants its pixels.

    mean, std: what they are normalised with, of values in 0..1. fill: what it was shown, in training, in place of a
    channel that is absent (`batches.absent`). start: how it began, for `untrained`.
    mask_token: float (1, D), what stood for hidden patches where it was pretrained; None where nobody kept it.
    description: plain values for a report: origin, architecture, width, depth, heads, registers, layer_scale, patch_px,
    size_px, parameters, positions (how they came to this size) and weights (a hash).
    """

    model: VisionTransformer
    mean: Rgb
    std: Rgb
    patch_px: int
    fill: Fill
    start: Start
    description: dict[str, Any]
    mask_token: Tensor | None = None


def create(
    name: str,
    *,
    size_px: int,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    layer_scale: float | None = None,
    seed: int,
) -> VisionTransformer:
    """A ViT with random weights, for images of size_px; width, depth and heads make it smaller than the named one.

    layer_scale: what residual branches are scaled by at the start, also in a ViT that by its name has no such scales.
    The same seed gives the same weights. Raises InputError for a name that is no ViT with a class token, or a size
    that is no multiple of its patch.
    """
    shape = {
        "img_size": size_px,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "init_values": layer_scale,
    }
    return _random(name, {key: value for key, value in shape.items() if value is not None}, seed=seed)


def load(
    *,
    origin: Literal["random", "timm", "meta", "folder"],
    name: str | None,
    uri: str | None,
    size_px: int,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    layer_scale: float | None = None,
    seed: int = 0,
) -> LoadedEncoder:
    """The encoder that a spec names, made for images of size_px.

    random: `name` with random weights; width, depth, heads, layer_scale as in `create`
    timm: the weights that timm knows by `name`, from the file at `uri` or else from timm's download cache
    meta: one of Meta's DINOv2 files at `uri`; heads only where its width is none of the released ones
    folder: at `uri` an encoder's folder, a pretraining run, a model's folder or a fine-tuning run

    seed: of the random weights; elsewhere of those that `untrained` would give it, unless its folder tells.
    """
    positions, start, mask_token = "made for this size", Start(seed, size_px), None
    fill: Fill = "zero"
    if origin == "random":
        assert name is not None
        model = create(name, size_px=size_px, width=width, depth=depth, heads=heads, layer_scale=layer_scale, seed=seed)
    elif origin == "timm":
        assert name is not None
        model = _timm_vit(name, {"img_size": size_px}, released=uri is None)
        positions = "resampled by timm where the file's size differs"
        if uri is not None:
            fill_from_timm(model, Place(uri))
    elif origin == "meta":
        assert uri is not None
        model, mask_token, positions = _load_meta(Place(uri), size_px=size_px, heads=heads)
    else:
        assert uri is not None
        model, mask_token, told = _load_folder(encoder_folder(Place(uri)))
        positions = _resample_positions(model, size_px, AS_TIMM)
        if "start" in told:  # else another program wrote it
            start, fill = Start(*(told["start"][name] for name in Start._fields)), told["fill"]
    config = _config(model)
    return LoadedEncoder(
        model=model.eval(),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        patch_px=model.patch_embed.patch_size[0],
        fill=fill,
        start=start,
        description={"origin": origin, **facts(model), "positions": positions, "weights": fingerprint(model)},
        mask_token=mask_token,
    )


def untrained(encoder: LoadedEncoder) -> LoadedEncoder:
    """The same encoder before its first step: its weights where it started from random ones, else random ones."""
    arguments = {**_arguments(encoder.model), "img_size": encoder.start.size_px}
    model = _random(_config(encoder.model)["architecture"], arguments, seed=encoder.start.seed).eval()
    positions = _resample_positions(model, encoder.model.patch_embed.img_size[0], AS_TIMM)
    changed = {"origin": "random", "positions": positions, "weights": fingerprint(model)}
    return replace(encoder, model=model, mask_token=None, description={**encoder.description, **changed})


def resized(encoder: LoadedEncoder, size_px: int) -> LoadedEncoder:
    """A copy for images of size_px, its positions resampled as `load` does it from a folder."""
    model = copy.deepcopy(encoder.model)
    positions = _resample_positions(model, size_px, AS_TIMM)
    return replace(encoder, model=model, description={**encoder.description, **facts(model), "positions": positions})


def with_weights_told(encoder: LoadedEncoder) -> LoadedEncoder:
    """The encoder, whose weights were changed, with their hash in its description; its mask token was of others."""
    model = encoder.model.eval()
    return replace(encoder, mask_token=None, description={**encoder.description, "weights": fingerprint(model)})


def facts(model: VisionTransformer) -> dict[str, Any]:
    """The architecture in plain values."""
    first: Any = model.blocks[0]
    return {
        "architecture": _config(model)["architecture"],
        "width": model.embed_dim,
        "depth": len(model.blocks),
        "heads": first.attn.num_heads,
        "registers": model.num_reg_tokens,
        "layer_scale": _layer_scale(model),
        "patch_px": model.patch_embed.patch_size[0],
        "size_px": model.patch_embed.img_size[0],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def export(encoder: LoadedEncoder, folder: Place, *, card: str, provenance: Mapping[str, Any]) -> None:
    """Write the folder that plain timm loads.

    card is the model card in Markdown. provenance (plain values: run, data, recipe, figures) goes into config.json
    beside what timm reads.
    """
    model = encoder.model
    size_px, name = model.patch_embed.img_size[0], _config(model)["architecture"]
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    data = safetensors.torch.save(weights, metadata={"format": "pt"})
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": model.num_features,
        "global_pool": "token",
        "model_args": _arguments(model),
        "pretrained_cfg": {
            "input_size": [3, size_px, size_px],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "bfp": {
            **provenance,
            "start": encoder.start._asdict(),
            "fill": encoder.fill,
            "weights_sha256": hashlib.sha256(data).hexdigest(),
        },
    }
    (folder / WEIGHTS).write(data)
    if encoder.mask_token is not None:
        (folder / MASK_TOKEN).write(safetensors.torch.save({"mask_token": encoder.mask_token.cpu().contiguous()}))
    elif (folder / MASK_TOKEN).exists():  # another encoder's, that was here before
        (folder / MASK_TOKEN).delete()
    (folder / CARD).write(card.encode())
    (folder / CONFIG).write(json.dumps(config, indent=2, ensure_ascii=False).encode())


def _config(model: VisionTransformer) -> dict[str, Any]:
    """What timm knows of a model beside its weights; a dict of the model's own."""
    config: Any = model.pretrained_cfg
    return config


def _arguments(model: VisionTransformer) -> dict[str, Any]:
    first: Any = model.blocks[0]
    layer_scale = _layer_scale(model)
    return {
        "img_size": model.patch_embed.img_size[0],
        "patch_size": model.patch_embed.patch_size[0],
        "embed_dim": model.embed_dim,
        "depth": len(model.blocks),
        "num_heads": first.attn.num_heads,
        "mlp_ratio": ratio(first.mlp.fc1.out_features, model.embed_dim),
        "reg_tokens": model.num_reg_tokens,
        **({} if layer_scale is None else {"init_values": layer_scale}),
    }


def _layer_scale(model: VisionTransformer) -> float | None:
    """What its residual branches were scaled by at the start; None where it has no such scales."""
    branch: Any = model.blocks[0].ls1
    return float(branch.init_values) if isinstance(branch, LayerScale) else None


def _random(name: str, arguments: Mapping[str, Any], *, seed: int) -> VisionTransformer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _timm_vit(name, arguments)


def _timm_vit(name: str, arguments: Mapping[str, Any], *, released: bool = False) -> VisionTransformer:
    """timm's model of that name without a classifier; released: with the weights that timm downloads for it."""
    try:
        model = timm.create_model(name, pretrained=released, num_classes=0, global_pool="token", **arguments)
    except AssertionError as error:
        raise InputError(f"{name}: cannot be made with {dict(arguments)}: {error}") from error
    except OSError as error:
        raise InputError(
            f"{name}: its weights are not in timm's cache and cannot be fetched from here; "
            f"download them elsewhere and write timm:{name}@<file>"
        ) from error
    except RuntimeError as error:
        raise InputError(f"{name}: {error}") from error
    if not isinstance(model, VisionTransformer) or model.cls_token is None or model.pos_embed is None:
        raise InputError(
            f"{name}: not a ViT with a class token and learned positions; take one like vit_small_patch14_dinov2"
        )
    _check_size(name, size_px=model.patch_embed.img_size[0], patch_px=model.patch_embed.patch_size[0])
    return model


def _check_size(name: str, *, size_px: int, patch_px: int) -> None:
    if size_px % patch_px:
        below = size_px // patch_px * patch_px
        raise InputError(
            f"{name}: stacks of {size_px} pixels are no whole number of its patches of {patch_px}; "
            f"ingest with size {below} or {below + patch_px}, or take an encoder with another patch"
        )


def _load_meta(file: Place, *, size_px: int, heads: int | None) -> tuple[VisionTransformer, Tensor, str]:
    found = read_meta(file, heads=heads)
    model = _timm_vit(found.name, found.arguments)
    fill(model, found.state, source=file)
    how = _resample_positions(model, size_px, AS_TIMM if model.num_reg_tokens else AS_META)
    return model, found.mask_token, how


def _load_folder(folder: Place) -> tuple[VisionTransformer, Tensor | None, dict[str, Any]]:
    """The encoder as it was exported, its mask token if it has one, and what `export` wrote under `bfp`."""
    config = read_config(folder)
    name, arguments, normalisation = config["architecture"], config["model_args"], config["pretrained_cfg"]
    if not timm.is_model(name):
        raise InputError(f"{folder / CONFIG}: {name!r} is no model of the installed timm {timm.__version__}")
    model = _timm_vit(name, {key: arguments[key] for key in _ARGUMENTS if key in arguments})
    fill_from_safetensors(model, folder / WEIGHTS)
    _config(model).update(mean=normalisation["mean"], std=normalisation["std"])
    mask_token = read_mask_token(folder / MASK_TOKEN, width=model.embed_dim) if (folder / MASK_TOKEN).exists() else None
    return model, mask_token, config.get("bfp", {})


def _resample_positions(model: VisionTransformer, size_px: int, how: PositionResampling) -> str:
    """Make the model one for images of size_px; says what was done."""
    patch_px, (side, _) = model.patch_embed.patch_size[0], model.patch_embed.grid_size
    _check_size(_config(model)["architecture"], size_px=size_px, patch_px=patch_px)
    patches = size_px // patch_px
    if patches == side:
        return "made for this size"
    with torch.no_grad():
        positions = torch.cat(Backbone(model, positions=how).positions(patches, patches), dim=1)
    model.patch_embed.set_input_size(img_size=(size_px, size_px))
    model.pos_embed = nn.Parameter(positions)
    kind = "bicubic, antialiased" if how.antialias else f"bicubic, offset {how.offset}"
    return f"resampled from {side}×{side} to {patches}×{patches} patches ({kind})"

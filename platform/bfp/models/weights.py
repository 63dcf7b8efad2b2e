"""Weights of an encoder: from a file into a timm ViT, whoever wrote the file.

Three hands write them: timm (safetensors, .pth, the .npz of the first ViTs), Meta (the DINOv2 releases and training
checkpoints), and bfp itself (safetensors). Every pickle is read with `weights_only`, so that a file can hold tensors
and nothing that runs. A file that lacks a weight, or has one too many, is refused: a ViT with some weights left random
looks healthy and is not.

Meta's files (Oquab et al. 2023, arXiv 2304.07193) differ from timm's in four ways: training checkpoints nest the
backbone under `teacher`, blocks may carry the number of a chunk, the class token's position is stored apart where
there are registers, and SwiGLU's maps have other names.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import timm.models
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from bfp.errors import InputError
from bfp.runs.scratch import scratch
from bfp.storage import Place

State = Mapping[str, Tensor]

_UNREADABLE = (
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    OSError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)
_META_HEADS = {384: 6, 768: 12, 1024: 16, 1536: 24}  # of the released sizes S, B, L and g
_META_NAMES = {384: "small", 768: "base", 1024: "large", 1536: "giant"}


class MetaModel(NamedTuple):
    """What one of Meta's files is: timm's name and arguments for the model, and its weights under timm's keys.

    mask_token: (1, D), which timm's models have no place for.
    """

    name: str
    arguments: dict[str, Any]
    state: State
    mask_token: Tensor


def read_meta(file: Place, *, heads: int | None = None) -> MetaModel:
    """One of Meta's DINOv2 files: bare backbone weights, or a training checkpoint's teacher.

    heads: attention heads, where the width is none of the released ones.
    Raises InputError for a file that is no DINOv2 backbone.
    """
    with local_copy(file) as path:
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise InputError(f"{file}: not a PyTorch file of plain tensors; expected a DINOv2 release") from error
    state = loaded.get("teacher", loaded) if isinstance(loaded, dict) else {}
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if "cls_token" not in state or "mask_token" not in state:
        raise InputError(
            f"{file}: no DINOv2 backbone; its keys begin {', '.join(sorted(state)[:3]) or '(none)'}, "
            "expected cls_token, mask_token, pos_embed, … at the top, under `teacher` or under `backbone.`"
        )
    # blocks.<chunk>.<block>.… counts the blocks across chunks
    state = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", key): value for key, value in state.items()}
    return _as_timm(file, state, heads)


def _as_timm(file: Place, state: dict[str, Tensor], heads: int | None) -> MetaModel:
    width, patch_px = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
    heads = heads or _META_HEADS.get(width)
    if heads is None:
        released = ", ".join(str(known) for known in _META_HEADS)
        raise InputError(f"{file}: its width {width} is none of the released ones ({released})")
    gated = "blocks.0.mlp.w12.weight" in state
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    size = "giant" if gated else _META_NAMES.get(width, "small")
    arguments = {
        "img_size": side * patch_px,
        "patch_size": patch_px,
        "embed_dim": width,
        "depth": 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        "num_heads": heads,
        "reg_tokens": registers,
    }
    if gated:
        arguments["mlp_ratio"] = ratio(len(state["blocks.0.mlp.w12.weight"]), width)

    renamed = {
        re.sub(r"mlp\.w12\.", "mlp.fc1.", re.sub(r"mlp\.w3\.", "mlp.fc2.", key)): value for key, value in state.items()
    }
    mask_token = renamed.pop("mask_token")
    if registers:
        # timm gives neither class nor register tokens a position: fold the class token's into the token
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return MetaModel(f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", arguments, renamed, mask_token)


def ratio(hidden: int, width: int) -> float:
    """timm's mlp_ratio for a hidden width: int(width · ratio) is hidden again."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def fill_from_timm(model: VisionTransformer, file: Place) -> None:
    """Weights that timm knows how to read: safetensors, .pth, or .npz; positions are resampled to the model's size."""
    with local_copy(file) as path:
        try:
            if path.suffix == ".npz":
                model.load_pretrained(str(path))
                return
            state = checkpoint_filter_fn(timm.models.load_state_dict(str(path), weights_only=True), model)
        except pickle.UnpicklingError as error:  # timm's words advise to run what is in it
            raise InputError(f"{file}: holds more than plain tensors, and is not read") from error
        except _UNREADABLE as error:
            raise InputError(f"{file}: no weights that timm can read: {error}") from error
    fill(model, {key: value for key, value in state.items() if not key.startswith(("head.", "fc_norm."))}, source=file)


def fill_from_safetensors(model: VisionTransformer, file: Place) -> None:
    """Weights that `encoder.export` wrote; positions are resampled to the model's size, as timm does."""
    fill(model, checkpoint_filter_fn(_safetensors(file), model), source=file)


def read_mask_token(file: Place, *, width: int) -> Tensor:
    """The mask token that `encoder.export` wrote, (1, D)."""
    state = _safetensors(file)
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != {"mask_token": (1, width)}:
        raise InputError(f"{file}: not this encoder's mask token: holds {found}, expected mask_token of {(1, width)}")
    return state["mask_token"]


def _safetensors(file: Place) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(file.read())
    except safetensors.SafetensorError as error:
        raise InputError(f"{file}: not a whole safetensors file: {error}") from error


def fill(model: VisionTransformer, state: State, *, source: Place) -> None:
    """Every weight of the model from state. Raises InputError where one is missing, left over or of another shape."""
    wanted = model.state_dict()
    missing, left = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or left:
        what = [f"lacks {_some(missing)}"] * bool(missing) + [f"has {_some(left)}, which the model has not"] * bool(
            left
        )
        raise InputError(f"{source}: not this encoder's weights: the file {' and '.join(what)}")
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise InputError(
                f"{source}: not this encoder's weights: {key} is {tuple(state[key].shape)}, "
                f"expected {tuple(value.shape)}"
            )
    model.load_state_dict(state)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def fingerprint(model: VisionTransformer) -> str:
    """A hash of names, types, shapes and values of all weights: equal for equal encoders, wherever they lie."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def local_copy(file: Place) -> Iterator[Path]:
    """The file on this machine, for libraries that read paths only."""
    if not file.exists():
        raise InputError(f"{file}: no such file of weights")
    if file.is_local:
        yield file.path
        return
    with scratch() as folder:
        path = folder / file.name
        path.write_bytes(file.read())
        yield path

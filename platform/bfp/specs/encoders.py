"""How a spec names an encoder: `random:<name>`, `timm:<name>[@file]`, `meta:<file>`, or a run or model folder."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from bfp.specs.backbones import backbones
from bfp.specs.fields import Clash, Folders, Misfit, Strict, UriText, absolute


@dataclass(frozen=True, slots=True)
class EncoderReference:
    """An encoder as a spec names it.

    origin: random (untrained), timm (released weights), meta (a DINOv2 file), folder (a run or a model folder).
    name: the timm name, with its tag if any; None for `meta` and `folder`, whose files tell.
    uri: the weights' file or folder; None where timm's own download cache serves.
    """

    origin: Literal["random", "timm", "meta", "folder"]
    name: str | None
    uri: str | None


def parse_encoder(text: str) -> EncoderReference:
    """Raises ValueError, with the nearest name, for a backbone that is not in the table."""
    origin, colon, rest = text.partition(":")
    if not origin.isalpha() or not colon or rest.startswith("//"):
        return EncoderReference("folder", None, text)
    if origin not in ("random", "timm", "meta") or not rest:
        raise ValueError("write random:<timm name>, timm:<name>[@file], meta:<file>, or the folder of a run or model")
    if origin == "meta":
        return EncoderReference("meta", None, rest)
    name, _, file = rest.partition("@")
    base = name.split(".")[0]
    if base not in backbones():
        near = difflib.get_close_matches(base, backbones(), n=1, cutoff=0.4)
        raise ValueError(f"no ViT of timm is called {base!r}" + (f"; the nearest is {near[0]}" if near else ""))
    if origin == "random" and file:
        raise ValueError("random: takes no file; write timm:<name>@<file> to start from weights")
    return EncoderReference("random" if origin == "random" else "timm", name, file or None)


def _resolved(text: str, info: ValidationInfo) -> str:
    """Checked, and with its path made absolute: weights ship with the spec, runs lie where `output` does."""
    reference = parse_encoder(text)
    if not isinstance(info.context, Folders) or reference.uri is None:
        return text
    if reference.origin == "folder":
        return absolute(text, info.context.working)
    return text.removesuffix(reference.uri) + absolute(reference.uri, info.context.spec)


Encoder = Annotated[UriText, AfterValidator(_resolved)]


class EncoderShape(Strict):
    """A smaller ViT than the named one, to train from nothing."""

    width: int = Field(ge=16, le=8192, description="Embedding width; a multiple of heads.", examples=[192])
    depth: int = Field(ge=1, le=128, description="Transformer blocks.", examples=[12])
    heads: int = Field(ge=1, le=128, description="Attention heads.", examples=[3])
    layer_scale: float | None = Field(
        None,
        gt=0,
        le=1,
        description="What each residual branch is scaled by at the start. null: as in the named ViT, 1e-5 in DINOv2's, "
        "which a small ViT does not grow out of in a short run; 1 learns from the first step.",
    )

    @model_validator(mode="after")
    def _width_splits_among_heads(self) -> EncoderShape:
        if self.width % self.heads:
            raise Misfit(Clash("width", f"not a multiple of heads ({self.heads})", ("heads",)))
        return self


def off_patch_grid(size_px: int, *, patch_px: int, encoder: str) -> str | None:
    """What is wrong with images of a size for an encoder with such patches; None where nothing is."""
    if size_px % patch_px == 0:
        return None
    below = size_px // patch_px * patch_px
    nearest = f"the nearest are {below} and {below + patch_px}" if below else f"the nearest is {patch_px}"
    return f"not a multiple of {patch_px}, the patch size of {encoder}; {nearest}"


def shape_clashes(encoder: str, shape: EncoderShape | None) -> list[Clash]:
    """A shape of one's own goes with an untrained encoder only."""
    if shape is None or parse_encoder(encoder).origin == "random":
        return []
    expected = "goes with a random: encoder only; other encoders bring their own shape"
    return [Clash("encoder_shape", expected, ("encoder",))]

"""The model folder of a segmentation: an encoder, a decoder, and all that is needed to use them on raw scans.

    <folder>/encoder/               the encoder as plain timm loads it (`bfp.models.encoder`)
    <folder>/decoder.safetensors    the decoder (`bfp.models.decoder`)
    <folder>/model.json             classes, shape of the decoder, modalities, preprocessing, figures; written last
    <folder>/README.md              the model card

As with a classifier's (`bfp.models.session_model`) `infer` needs nothing else, and of decoder, model.json and the
encoder's config.json and weights none can be exchanged or changed without the others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import safetensors
from pydantic import BaseModel, Field, ValidationError

from bfp.errors import InputError
from bfp.models.tensor_files import CONFIG_HASH, SEAL, check_config, check_seal, config_hash, read_written, seal_of
from bfp.storage import Place

if TYPE_CHECKING:
    from bfp.models.decoder import Decoder, Layers
    from bfp.models.encoder import LoadedEncoder

CONTRACT = 4
"""The version of the folder's files, and of what a decoder takes; another one is refused."""
TYPE = "segmentation"
DECODER, DESCRIPTION = "decoder.safetensors", "model.json"


class _Told(BaseModel):
    """What model.json must hold to be used."""

    target: str
    classes: Annotated[list[str], Field(min_length=1, max_length=255)]
    drawn_on: Annotated[list[str], Field(min_length=1)]
    shown: Annotated[list[str], Field(min_length=1)]
    layers: Literal["last", "intermediate"]
    width: Annotated[int, Field(ge=8)]
    preprocessing: dict[str, Any]
    encoder_config: str
    decoder_sha256: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Segmenter:
    """A decoder and how it is used.

    target: the segmentation that was learned; classes: 1, 2, … of its masks, in this order. drawn_on: the modalities
    of the scans on which it was drawn, and to whose voxels masks go back. layers, width: of the decoder. shown,
    preprocessing, facts: as of a classifier.
    """

    target: str
    classes: tuple[str, ...]
    drawn_on: tuple[str, ...]
    shown: tuple[str, ...]
    layers: Layers
    width: int
    preprocessing: Mapping[str, Any]
    decoder: Decoder
    facts: Mapping[str, Any]


def is_segmenter(folder: Place) -> bool:
    """Whether a model's folder is one of a segmentation, by its model.json alone; False also where that is damaged."""
    try:
        told = json.loads((folder / DESCRIPTION).read())
    except ValueError:
        return False
    return isinstance(told, dict) and told.get("type") == TYPE


def save_segmenter(segmenter: Segmenter, folder: Place, *, card: str) -> None:
    """Write everything but the encoder, which stands there already. card: in Markdown."""
    told = {
        "contract": CONTRACT,
        "type": TYPE,
        "target": segmenter.target,
        "classes": list(segmenter.classes),
        "drawn_on": list(segmenter.drawn_on),
        "shown": list(segmenter.shown),
        "layers": segmenter.layers,
        "width": segmenter.width,
        "preprocessing": dict(segmenter.preprocessing),
        CONFIG_HASH: config_hash(folder),
        "facts": dict(segmenter.facts),
    }
    weights = decoder_bytes(segmenter.decoder, {SEAL: seal_of(told)})
    told["decoder_sha256"] = hashlib.sha256(weights).hexdigest()
    (folder / DECODER).write(weights)
    (folder / "README.md").write(card.encode())
    (folder / DESCRIPTION).write(json.dumps(told, indent=1, ensure_ascii=False).encode())


def read_segmentation(folder: Place) -> dict[str, Any]:
    """model.json, without the weights. Raises InputError where it is of another contract, or damaged."""
    file = folder / DESCRIPTION
    try:
        told: dict[str, Any] = json.loads(file.read())
        contract = int(told["contract"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not a file that bfp wrote, or damaged: {error!r}") from error
    if contract != CONTRACT:
        newer = contract > CONTRACT
        raise InputError(
            f"{file}: written by {'a newer' if newer else 'an older'} bfp (contract {contract}, this one is "
            f"{CONTRACT}); {'update bfp' if newer else 'fine-tune again'}"
        )
    try:
        _Told.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: {where}: {first['msg']}; fine-tune again, or bring the file back") from error
    return told


def check_decoder(folder: Place) -> bytes:
    """The bytes of the decoder. Raises InputError where they are not those that model.json was written with."""
    told, file = read_segmentation(folder), folder / DECODER
    data = read_written(file, sha256=told["decoder_sha256"], what="decoder")
    check_seal(told, data, file=folder / DESCRIPTION)
    check_config(told, folder)
    return data


def load_segmenter(folder: Place, *, encoder: LoadedEncoder) -> Segmenter:
    """The inverse of `save_segmenter`, in evaluation mode. encoder: the one that stands beside it.

    Raises InputError where a file is damaged, not the other one's, or not one for this encoder.
    """
    told, data = read_segmentation(folder), check_decoder(folder)
    try:
        decoder = decoder_of(
            data,
            encoder=encoder,
            layers=told["layers"],
            classes=len(told["classes"]),
            width=told["width"],
            size_px=int(told["preprocessing"]["size"]),
        )
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise InputError(f"{folder / DECODER}: does not fit its encoder and model.json: {error}") from error
    return Segmenter(
        target=told["target"],
        classes=tuple(told["classes"]),
        drawn_on=tuple(told["drawn_on"]),
        shown=tuple(told["shown"]),
        layers=told["layers"],
        width=told["width"],
        preprocessing=told["preprocessing"],
        decoder=decoder,
        facts=told["facts"],
    )


def decoder_bytes(decoder: Decoder, metadata: Mapping[str, str]) -> bytes:
    """The weights as safetensors."""
    import safetensors.torch

    weights = {name: value.detach().cpu().contiguous() for name, value in decoder.state_dict().items()}
    return safetensors.torch.save(weights, metadata=dict(metadata))


def decoder_of(
    data: bytes, *, encoder: LoadedEncoder, layers: Layers, classes: int, width: int, size_px: int
) -> Decoder:
    """The decoder of `decoder_bytes`, in evaluation mode. classes: without the background.

    Raises RuntimeError where the weights are another decoder's.
    """
    import safetensors.torch

    from bfp.models.decoder import Decoder, blocks_of

    told = encoder.description
    decoder = Decoder(
        features=len(blocks_of(layers, depth=told["depth"])) * told["width"],
        classes=classes + 1,
        width=width,
        patches=size_px // encoder.patch_px,
        size_px=size_px,
    )
    decoder.load_state_dict(safetensors.torch.load(data))
    return decoder.eval()

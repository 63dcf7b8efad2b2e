"""The model of an inference: what its folder says of it, and whether it fits what it is asked for here."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bfp.cohorts.sessions import BRAIN
from bfp.drivers.inputs import wanted_modalities
from bfp.drivers.preparing import find_brain_program
from bfp.errors import InputError
from bfp.imaging import IMAGING_VERSION, NEIGHBOURS
from bfp.models.encoder_alone import TYPE as EMBEDDING
from bfp.models.encoder_alone import encoder_alone, read_encoder_alone
from bfp.models.folders import CONFIG
from bfp.specs.infer import Infer
from bfp.specs.preprocessing import BRAIN_PROGRAM, Preprocessing, command_stored
from bfp.specs.profile import Profile
from bfp.specs.target import EXAMPLE
from bfp.storage import Place, place
from bfp.words import toml_list

FACTS = ("run", "bfp", "imaging", "encoder", "weights", "figures")  # of model.json, told on the page


def model_of(spec: Infer) -> tuple[Place, dict[str, Any]]:
    """The model's folder and its description.

    Raises InputError where its files are damaged or do not belong together, or this bfp would make other stacks than
    the model was trained on.
    """
    from bfp.models.segmenter import check_decoder, is_segmenter, read_segmentation
    from bfp.models.session_model import load_model, model_folder, read_description

    alone = encoder_alone(place(spec.model))
    folder = alone or model_folder(place(spec.model))
    file = folder / ("model.json" if alone is None else CONFIG)
    if alone is not None:
        told = read_encoder_alone(folder)
        if not spec.embedding:
            raise InputError(f"embedding: false: {folder} is an encoder without a head and gives nothing else; true")
    elif is_segmenter(folder):
        told = read_segmentation(folder)
        check_decoder(folder)
    else:
        told = read_description(folder)
        load_model(folder)
    if lacking := [name for name in FACTS if name not in told["facts"]]:
        raise InputError(f"{file}: facts: lacks {', '.join(lacking)}; fine-tune again, or bring the file back")
    try:
        preprocessing_of(told)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, ("preprocessing", *first["loc"])))
        raise InputError(f"{file}: {where}: {first['msg']}; fine-tune again, or bring the file back") from error
    if told["facts"]["imaging"] != IMAGING_VERSION:
        raise InputError(
            f"{folder}: trained on stacks of imaging version {told['facts']['imaging']}, this bfp makes version "
            f"{IMAGING_VERSION}: fine-tune again, or predict with bfp {told['facts']['bfp']}"
        )
    return folder, told


def preprocessing_of(told: dict[str, Any]) -> Preprocessing:
    return Preprocessing.of_stored(told["preprocessing"])


def learned_by(told: dict[str, Any]) -> str:
    """What the model predicts, in words."""
    from bfp.drivers.infer_outputs import told_by

    if embeds(told):
        return f"{told['facts']['encoder']}, an encoder without a head: embeddings"
    return f"{told['target']}: {', '.join(told['classes'])}" if segments(told) else told_by(told).learned


def embeds(told: dict[str, Any]) -> bool:
    """Whether the model is an encoder without a head (`infer_embedding`)."""
    return bool(told["type"] == EMBEDDING)


def segments(told: dict[str, Any]) -> bool:
    """Whether the model makes masks (`infer_segmentation`), and no row of what is predicted."""
    return bool(told["type"] == "segmentation")


def check_masks(spec: Infer, told: dict[str, Any]) -> None:
    """Raise InputError where the model wants brain masks, and a cohort brings none that its stacks can have."""
    lacking = [each.name for each in spec.cohorts if BRAIN not in [mask.name for mask in each.segmentations]]
    if told["preprocessing"]["brain"] == "given" and lacking:
        raise InputError(
            f"cohorts: {', '.join(lacking)}: the model was trained on brains cut out by masks (preprocessing.brain: "
            f"given), and each cohort needs a segmentation named `{BRAIN}`"
        )
    wanted = wanted_modalities(preprocessing_of(told))
    for number, cohort in enumerate(spec.cohorts):
        for mask in cohort.segmentations:
            if mask.name == BRAIN and told["preprocessing"]["brain"] == "given" and mask.drawn_on not in wanted:
                raise InputError(
                    f"cohorts[{number}]: its brain mask is drawn on {mask.drawn_on}, which the model is not shown; "
                    f"bring one that is drawn on {' or '.join(wanted)}"
                )


def brain_program_of(told: dict[str, Any], profile: Profile) -> list[str]:
    """The command of `brain: program` on this machine, [] where the model wants none.

    Raises InputError where the profile has none, or another than the model was trained with.
    """
    trained = told["preprocessing"].get(BRAIN_PROGRAM, [])
    command = find_brain_program(preprocessing_of(told), profile, example=trained or EXAMPLE)
    if command and (here := command_stored(command)) != trained:
        raise InputError(
            f"{profile.file}: {profile.table}.brain_program: {toml_list(here)}; the model was trained with "
            f"{toml_list(trained)}: give the same words (where the program lies may differ), or fine-tune again"
        )
    return command


def channels_of(told: dict[str, Any]) -> tuple[str, ...]:
    stacks = told["preprocessing"]["stacks"]
    return tuple(stacks["channels"]) if stacks["form"] == "modalities" else NEIGHBOURS

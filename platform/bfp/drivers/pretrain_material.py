"""What a pretrain spec comes down to: the stacks that are used, the order of training, and its numbers as `pretraining`
takes them. The stacks are found without torch; whatever is wrong with them, the encoder or the crops is said here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bfp.drivers.stores import check_encoder, check_size, in_words, open_stores, wanted_stacks
from bfp.errors import InputError
from bfp.specs.document import flow
from bfp.specs.encoders import off_patch_grid
from bfp.specs.pretrain import MriCrops, NaturalCrops, Pretrain, Probe
from bfp.storage import Place
from bfp.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from bfp.batches.plan import BatchPlan, CohortShare
    from bfp.models.encoder import LoadedEncoder
    from bfp.pretraining.contrast import Contrast
    from bfp.pretraining.crops import CropSettings
    from bfp.pretraining.labelled import LabelledSessions
    from bfp.pretraining.loop import Recipe
    from bfp.pretraining.natural import Colours
    from bfp.pretraining.schedules import Schedules
    from bfp.store.reader import SliceStore

SUBJECT = ("cohort", "subject")


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """The stores, what is used of each, and the order of training.

    indices: the stacks of each store that `where` keeps; training: those of them that are not held out. probed: which
    store the probe reads, None without a probe.
    """

    stores: tuple[SliceStore, ...]
    indices: tuple[pa.Table, ...]
    training: tuple[pa.Table, ...]
    order: BatchPlan
    probed: int | None
    steps_per_epoch: int
    steps: int

    @property
    def stacks(self) -> int:
        """How many training sees."""
        return sum(len(index) for index in self.training)

    @property
    def subjects(self) -> tuple[int, int]:
        """How many training sees, and how many it does not."""
        seen, wanted = map(_subjects, (self.training, self.indices))
        return seen, wanted - seen

    @property
    def batches(self) -> str:
        """What stands in the batches, in words."""
        most = counted(self.order.most_of_a_session, "stack")
        times = {name: self.times(cohort) for name, cohort in self.order.cohorts.items()}
        shown = {name: f"{each:,.1f} times" if each >= 0.1 else "less than 0.1 times" for name, each in times.items()}
        if self.order.balance:
            shares = (f"{name} {cohort.share:.0%}, each {shown[name]}" for name, cohort in self.order.cohorts.items())
            cohorts = f"cohorts balanced: {'; '.join(shares)}"
        else:
            cohorts = f"every stack {next(iter(shown.values()))}"
        return f"at most {most} of a session in one; {cohorts}"

    def times(self, cohort: CohortShare) -> float:
        """How often training sees each stack of a cohort."""
        return self.steps * self.order.batch_size * cohort.share / cohort.stacks


def _subjects(indices: tuple[pa.Table, ...]) -> int:
    """How many there are in all; without a Python object for each stack, of which there may be a hundred million."""
    import pyarrow as pa

    each = [index.select(list(SUBJECT)).group_by(list(SUBJECT)).aggregate([]) for index in indices]
    return pa.concat_tables(each).group_by(list(SUBJECT)).aggregate([]).num_rows if each else 0


def material_of(spec: Pretrain, *, run: Place) -> Material:
    """The stores as the run in that folder has pinned them, else as they are. Raises InputError for what is wrong."""
    from bfp.batches.held_out import is_held_out
    from bfp.batches.plan import BatchPlan, units_of

    places = [spec.store] if isinstance(spec.store, str) else list(spec.store)
    stores = open_stores(places, spec.where, run=run)
    _check_sizes(spec, stores)
    _check_flip(spec, stores)
    indices = tuple(wanted_stacks(store, spec.where) for store in stores)
    if not any(indices):
        asked = spec.where.model_dump(exclude_none=True)
        named = "; ".join(f"where.{name}: {flow(value)}" for name, value in asked.items())
        raise InputError(f"{named or 'store'}: keeps none of the stacks: {'; '.join(map(in_words, stores))}")
    training, probe = indices, spec.probe
    if probe is not None:
        training = tuple(index.filter(~is_held_out(index, share=probe.held_out)) for index in indices)
        if not any(training):
            raise InputError(f"probe.held_out: {probe.held_out:g}: leaves no subject to train on; lower it")
    order = BatchPlan(
        units_of(training),
        batch_size=spec.train.batch_size,
        seed=spec.seed,
        stacks_per_session=spec.train.stacks_per_session,
        balance=spec.train.cohort_balance,
    )
    steps_per_epoch = spec.train.steps_per_epoch or order.pass_steps
    return Material(
        stores=stores,
        indices=indices,
        training=training,
        order=order,
        probed=None if probe is None else _probed_store(probe, stores, indices),
        steps_per_epoch=steps_per_epoch,
        steps=max(1, round(spec.train.epochs * steps_per_epoch)),
    )


def _check_sizes(spec: Pretrain, stores: tuple[SliceStore, ...]) -> None:
    first, *others = stores
    for other in others:
        if other.size_px != first.size_px:
            raise InputError(
                f"store: stacks of one size are needed; those of {first.place} have {first.size_px} pixels, those of "
                f"{other.place} {other.size_px}"
            )
    patch_px = check_encoder(spec.encoder)
    if spec.crops.global_size_px is None or spec.probe is not None:
        check_size(first, patch_px=patch_px, encoder=spec.encoder)
    if spec.crops.global_size_px is None and spec.crops.local_size_px > first.size_px:
        raise InputError(
            f"crops.local_size_px: {spec.crops.local_size_px}: larger than a global crop, which has the "
            f"{first.size_px} pixels of the stacks of {first.place}; lower it"
        )
    for name in ("global_size_px", "local_size_px"):
        size_px = getattr(spec.crops, name)
        if size_px and patch_px and (wrong := off_patch_grid(size_px, patch_px=patch_px, encoder=spec.encoder)):
            raise InputError(f"crops.{name}: {size_px}: {wrong}")


def _check_flip(spec: Pretrain, stores: tuple[SliceStore, ...]) -> None:
    for store in stores:
        if spec.crops.flip and store.slice_axis == "sagittal":
            raise InputError(
                f"crops.flip: {spec.crops.flip:g}: would swap front and back, since the slices of {store.place} are "
                "sagittal; set it to 0"
            )


def _probed_store(probe: Probe, stores: tuple[SliceStore, ...], indices: tuple[pa.Table, ...]) -> int:
    """Which store the probe reads: the first with labels of enough subjects, held out and not."""
    reasons = []
    for number, (store, index) in enumerate(zip(stores, indices, strict=True)):
        try:
            _check_probe(probe, store, index)
        except InputError as error:
            reasons.append(str(error))
        else:
            return number
    raise InputError(f"{'; '.join(reasons)}; or leave the probe out")


def _check_probe(probe: Probe, store: SliceStore, index: pa.Table) -> None:
    from bfp.pretraining.labelled import check_enough, labelled_stacks

    if probe.segmentation is not None:
        try:
            store.classes(probe.segmentation)
            labelled = labelled_stacks(index, store.mask_index(probe.segmentation)).stacks
        except InputError as error:
            raise InputError(f"probe.segmentation: {probe.segmentation}: {error}") from error
        try:
            check_enough(labelled, share=probe.held_out)
        except InputError as error:
            raise InputError(
                f"probe.segmentation: {probe.segmentation}: {error}; change probe.held_out ({probe.held_out:g})"
            ) from error
    if probe.target is not None:
        probed_sessions(probe, store, index)


def probed_sessions(probe: Probe, store: SliceStore, index: pa.Table) -> LabelledSessions | None:
    """The sessions of `probe.target` with the stacks that are read; None without one. Raises InputError for too few."""
    from bfp.pretraining.labelled import MAX_STACKS, labelled_sessions

    if probe.target is None:
        return None
    try:
        return labelled_sessions(index, store.sessions(), target=probe.target, share=probe.held_out, most=MAX_STACKS)
    except InputError as error:
        raise InputError(f"probe.target: {probe.target}: {store.place}: {error}") from error


# the numbers ---------------------------------------------------------------------------------------------------------


def recipe_of(spec: Pretrain, material: Material, encoder: LoadedEncoder) -> Recipe:
    """The spec's numbers, with epochs as steps."""
    from bfp.pretraining.crops import Normalisation
    from bfp.pretraining.loop import Recipe
    from bfp.pretraining.step import SslSettings

    numbers = spec.ssl.model_dump(include=set(SslSettings.__dataclass_fields__))
    return Recipe(
        ssl=SslSettings(**numbers),
        schedules=schedules_of(spec, material),
        crops=crops_of(spec, material, large_px=encoder.description["size_px"]),
        normalisation=Normalisation(encoder.mean, encoder.std),
        batch_size=spec.train.batch_size,
        seed=spec.seed,
        precision=spec.compute.precision,
        micro_batches=spec.compute.gradient_accumulation,
        recompute=spec.compute.activation_checkpointing,
        compiled=spec.compute.compile,
    )


def schedules_of(spec: Pretrain, material: Material) -> Schedules:
    """Those of a run that is this long from its start."""
    from bfp.pretraining.schedules import Schedules, scaled_rate

    ssl, epoch = spec.ssl, material.steps_per_epoch
    return Schedules(
        steps=material.steps,
        learning_rate=scaled_rate(ssl.learning_rate, batch_size=spec.train.batch_size),
        min_learning_rate=ssl.min_learning_rate,
        warmup_steps=round(ssl.warmup_epochs * epoch),
        freeze_last_layer_steps=round(ssl.freeze_last_layer_epochs * epoch),
        freeze_backbone_steps=round(ssl.freeze_backbone_epochs * epoch),
        backbone_factor=ssl.backbone_rate,
        weight_decay=ssl.weight_decay,
        momentum=ssl.momentum,
        teacher_temperature=ssl.teacher_temperature,
        teacher_temperature_warmup_steps=round(ssl.teacher_temperature_warmup_epochs * epoch),
    )


def crops_of(spec: Pretrain, material: Material, *, large_px: int) -> CropSettings:
    """How the views are made; large_px: side of a global crop."""
    from bfp.pretraining.crops import CropSettings

    crops = spec.crops
    return CropSettings(
        large_px=large_px,
        small_px=crops.local_size_px,
        small_count=crops.local_count,
        large_scale=crops.global_scale,
        small_scale=crops.local_scale,
        flip=crops.flip,
        modality_views=modality_views_of(spec, material),
        fill=crops.fill,
        teacher_views=crops.teacher_views,
        contrast=_contrast(crops, material),
    )


def modality_views_of(spec: Pretrain, material: Material) -> float:
    """How often modalities are hidden. Neighbouring slices are of one: none of them can be missing."""
    return spec.crops.modality_views if any(_of_modalities(material)) else 0.0


def _contrast(crops: MriCrops | NaturalCrops, material: Material) -> Contrast | Colours:
    from bfp.pretraining.contrast import Contrast
    from bfp.pretraining.natural import Colours

    if isinstance(crops, NaturalCrops):
        return Colours(**crops.model_dump(include=set(Colours.__dataclass_fields__)), blur=crops.blur)
    return Contrast(
        **crops.model_dump(include=set(Contrast.__dataclass_fields__)),
        # neighbouring slices of one scan share its contrast; modalities each have their own
        per_channel=all(_of_modalities(material)),
    )


def _of_modalities(material: Material) -> list[bool]:
    return [store.form == "modalities" for store in material.stores]

"""How long a step of pretraining takes, beside what no step can do without.

    python -m tests.benchmarks.pretrain [--encoder vit_small_patch14_dinov2] [--batch-size 4] [--repeats 7]

Each row is a process of its own; all take turns, so that whatever else the machine does hits all alike. Printed are
medians, how many times as long as the floor each takes, and the most memory that its process had.

`floor`       plain timm, forward and backward, of the tokens that a student sees (2 global and 8 local crops of each
              stack), and forward of those that a teacher sees: no heads, no losses, no optimiser, no crops
`step`        a whole step of bfp on uint8 stacks: crops, masks, both networks, losses, AdamW, the teacher's move
`drop path`   the same with a drop path of 0.3
`crops`       of the step, the crops alone
`published`   the step with crops made as they are published: image by image, by torchvision, in two worker processes
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from bfp.memory import STEPS, keep_freed_memory
from bfp.models.encoder import create
from bfp.pretraining.contrast import Contrast
from bfp.pretraining.crops import Crops, CropSettings, Normalisation, multi_crop
from bfp.pretraining.draws import Draws
from bfp.pretraining.loop import Recipe, one_step, prepare
from bfp.pretraining.masks import block_masks, masked
from bfp.pretraining.step import Part, SslSettings, TrainState, train_step
from bfp.specs.presets import SSL_PRESETS
from tests.pretraining.makers import make_recipe, make_stacks

LARGE_PX, SMALL_PX, SMALL_CROPS = 224, 98, 8
DROP_PATH = 0.3
AUGMENTED_BY = 2  # worker processes, as many as there are cores here
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Setting(NamedTuple):
    """What all rows have in common."""

    encoder: str
    batch_size: int
    precision: str


def recipe(setting: Setting, *, drop_path: float) -> Recipe:
    """The preset `dinov2-fast` (65,536 prototypes, a shared head, softmax centring) with the crops of `brain`."""
    known = {field.name for field in dataclasses.fields(SslSettings)}
    numbers = {name: value for name, value in SSL_PRESETS["dinov2-fast"].items() if name in known}
    return dataclasses.replace(
        make_recipe(steps=1000, batch_size=setting.batch_size, precision=setting.precision),
        ssl=SslSettings(**{**numbers, "drop_path": drop_path}),
        crops=CropSettings(
            large_px=LARGE_PX,
            small_px=SMALL_PX,
            small_count=SMALL_CROPS,
            large_scale=(0.32, 1.0),
            small_scale=(0.05, 0.32),
            contrast=Contrast(brightness=0.2, contrast=0.3, gamma=0.3, bias_field=0.3, noise=0.05, blur=0.3),
            modality_views=0.5,
        ),
        normalisation=Normalisation(MEAN, STD),
    )


def begin(setting: Setting, what: Recipe) -> TrainState:
    return prepare(
        create(setting.encoder, size_px=LARGE_PX, seed=1), recipe=what, device=torch.device("cpu"), workers=1
    )


def floor(setting: Setting) -> Iterator[None]:
    make: Callable[[], Any] = lambda: timm.create_model(  # noqa: E731
        setting.encoder, img_size=LARGE_PX, num_classes=0, dynamic_img_size=True
    )
    student, teacher = make().train(), make().eval()
    B = setting.batch_size
    large = torch.randn(2 * B, 3, LARGE_PX, LARGE_PX)
    small = torch.randn(SMALL_CROPS * B, 3, SMALL_PX, SMALL_PX)
    while True:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.precision == "bf16"):
            with torch.no_grad():
                teacher.forward_features(large)
            tokens = [student.forward_features(crops) for crops in (large, small)]
        sum(part.float().mean() for part in tokens).backward()
        student.zero_grad()
        yield


def step(setting: Setting, *, drop_path: float = 0.0) -> Iterator[None]:
    what = recipe(setting, drop_path=drop_path)
    state = begin(setting, what)
    stacks = make_stacks(setting.batch_size, shape=(LARGE_PX, LARGE_PX))
    while True:
        one_step(
            state, stacks, draws=draws(what, state.step), now=what.schedules.at(state.step), recipe=what, group=None
        )
        yield


def crops(setting: Setting) -> Iterator[None]:
    what = recipe(setting, drop_path=0.0)
    stacks = make_stacks(setting.batch_size, shape=(LARGE_PX, LARGE_PX))
    for number in itertools.count():
        multi_crop(stacks, draws(what, number), settings=what.crops, normalisation=what.normalisation)
        yield


def published(setting: Setting) -> Iterator[None]:
    what = recipe(setting, drop_path=0.0)
    state = begin(setting, what)
    loader = torch.utils.data.DataLoader(
        Augmented(make_stacks(setting.batch_size, shape=(LARGE_PX, LARGE_PX))),
        batch_size=setting.batch_size,
        num_workers=AUGMENTED_BY,
        persistent_workers=True,
    )
    side = LARGE_PX // state.student.backbone.patch_px
    for views in itertools.chain.from_iterable(itertools.repeat(loader)):
        large, small = (torch.cat(list(part.unbind(1))) for part in views)  # crop-major
        masks = block_masks(
            draws(what, state.step), grid=(side, side), ratio=what.ssl.mask_ratio, probability=what.ssl.mask_probability
        )
        train_step(
            state,
            [Part(Crops(large, small), masked(masks, device=torch.device("cpu")))],
            now=what.schedules.at(state.step),
            ssl=what.ssl,
            precision=torch.autocast("cpu", dtype=torch.bfloat16, enabled=setting.precision == "bf16"),
        )
        yield


class Augmented(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """DINOv2's augmentation of natural images (Oquab et al. 2023), by torchvision, one image and one view at a time."""

    def __init__(self, stacks: Tensor) -> None:
        from torchvision.transforms import v2

        def view(size_px: int, scale: tuple[float, float], *more: Any) -> Any:
            return v2.Compose(
                [
                    v2.RandomResizedCrop(size_px, scale=scale, interpolation=v2.InterpolationMode.BICUBIC),
                    v2.RandomHorizontalFlip(0.5),
                    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                    v2.RandomGrayscale(0.2),
                    *more,
                    v2.PILToTensor(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(MEAN, STD),
                ]
            )

        def blur(p: float) -> Any:
            return v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=p)

        self._images = [v2.functional.to_pil_image(stack) for stack in stacks]
        self._large = [view(LARGE_PX, (0.32, 1.0)), view(LARGE_PX, (0.32, 1.0), blur(0.9), v2.RandomSolarize(128, 0.2))]
        self._small = [view(SMALL_PX, (0.05, 0.32), blur(0.5))] * SMALL_CROPS

    def __len__(self) -> int:
        return 1000 * len(self._images)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(1)
        image = self._images[number % len(self._images)]
        return torch.stack([view(image) for view in self._large]), torch.stack([view(image) for view in self._small])


def draws(what: Recipe, number: int) -> Draws:
    return Draws(what.seed, number, first=0, count=what.batch_size, total=what.batch_size)


ROWS: dict[str, Callable[[Setting], Iterator[None]]] = {
    "floor": floor,
    "step": step,
    "drop path": lambda setting: step(setting, drop_path=DROP_PATH),
    "crops": crops,
    "published": published,
}


class Row:
    """A row in a process of its own, which does one turn at a time."""

    def __init__(self, name: str, setting: Setting) -> None:
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        context.Process(target=serve, args=(name, setting, theirs)).start()
        theirs.close()

    def turn(self) -> tuple[float, float]:
        """Seconds of wall time, and the process's largest memory so far, in GB."""
        self._ours.send(None)
        took: tuple[float, float] = self._ours.recv()
        return took

    def close(self) -> None:
        self._ours.close()


def serve(name: str, setting: Setting, connection: Connection) -> None:
    if name != "floor":
        keep_freed_memory(**STEPS)
    turns = ROWS[name](setting)
    with suppress(EOFError):  # when the other side is done
        while True:
            connection.recv()
            began = time.perf_counter()
            next(turns)
            took = time.perf_counter() - began
            connection.send((took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="vit_small_patch14_dinov2")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    given = parser.parse_args()
    setting = Setting(given.encoder, given.batch_size, given.precision)
    rows = {name: Row(name, setting) for name in dict.fromkeys(["floor", *given.rows])}
    rounds = [{name: row.turn() for name, row in rows.items()} for _ in range(given.repeats + 2)][2:]
    for row in rows.values():
        row.close()
    print(f"{setting.encoder}, batch {setting.batch_size}, {setting.precision}, {torch.get_num_threads()} threads")
    for name in rows:
        times = [round_[name][0] for round_ in rounds]
        ratios = [round_[name][0] / round_["floor"][0] for round_ in rounds]
        print(
            f"{name:10} {statistics.median(times):7.2f} s  {statistics.median(ratios):5.2f} × floor "
            f"({min(ratios):.2f} to {max(ratios):.2f})  {rounds[-1][name][1]:5.2f} GB"
        )


if __name__ == "__main__":
    sys.exit(main())

"""A small store whose pixels tell the class of a session, at one height of the head only."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bfp.cohorts.sessions import Key
from bfp.storage import Place, place
from bfp.store import layout, schemas
from bfp.store.writer import PartWriter, commit_sessions, stack_table
from tests.store.makers import make_store

SIZE_PX = 28
COHORT = "made"


def make_labelled_store(
    folder: Path,
    *,
    subjects: int = 30,
    visits: int = 1,
    signal: float = 60.0,
    stripes: float = 0.0,
    lacking: int = 3,
    again: Mapping[int, int] | None = None,
    seed: int = 0,
) -> Place:
    """Every second subject is `AD`: its slices around height 0.3 are brighter, those around 0.7 darker.

    signal: by how many grey values. stripes: of how many grey values, falling to the right in CN, to the left in AD, in
    every slice: grey values and how much they vary are the same. Every `lacking`-th subject has no FLAIR. again: which
    subjects, of one visit, are another one under a new name. Labels: diagnosis, age (says nothing), sex, severity (says
    all).
    """
    preprocessing = layout.read_info(make_store(folder / "form", sessions=1, size_px=SIZE_PX)).preprocessing
    store, random = place(str(folder / "store")), np.random.default_rng(seed)
    layout.make(store, preprocessing)
    rows, commits, began = [], [], {}
    for number in range(subjects):
        ill, writer = number % 2, PartWriter("stacks", schemas.stacks(SIZE_PX))
        for visit in range(visits):
            key = Key(COHORT, f"{number:02}", f"{visit}" if visits > 1 else "")
            present = (True, True, number % lacking != 0)
            began[number] = copy.deepcopy(random)
            drawn = began[again[number]] if again and number in again else random
            writer.add(_stacks(key, drawn, shift=signal * ill, stripes=stripes * (1 - 2 * ill), present=present))
            labels = {"diagnosis": "AD" if ill else "CN", "age": f"{random.integers(50, 90)}"}
            labels |= {"sex": "FM"[number // 2 % 2], "severity": f"{ill + random.uniform(0, 0.5):.3f}"}
            rows.append({**key._asdict(), "modalities": ["T1w", "T2w", "FLAIR"], "labels": labels})
        record = layout.Commit(name=f"s{number:02}", kind="shard", cohort=COHORT, parts=[writer.write(store)])
        commits.append(layout.commit(store, record))
    commits.append(commit_sessions(store, rows, cohort=COHORT, segmentations={}))
    layout.take_snapshot(store, commits, cohorts=[COHORT])
    return store


def _stacks(key: Key, random: np.random.Generator, *, shift: float, stripes: float, present: tuple[bool, bool, bool]):
    count = int(random.integers(14, 19))
    height = np.linspace(0, 1, count)
    bump = np.exp(-(((height - 0.3) / 0.1) ** 2)) - np.exp(-(((height - 0.7) / 0.1) ** 2))
    noise = random.normal(120, 30, (count, 3, SIZE_PX, SIZE_PX)) + random.normal(0, 5)
    rows, columns = np.mgrid[:SIZE_PX, :SIZE_PX]
    if stripes:  # what is drawn without them stays as it is
        noise += abs(stripes) * np.sin((columns + np.sign(stripes) * rows) * np.pi / 3.5 + random.uniform(0, 6))
    pixels = np.clip(noise + shift * bump[:, None, None, None], 1, 255).astype(np.uint8)
    pixels[:, ~np.array(present)] = 0
    return stack_table(
        key,
        modalities=("T1w", "T2w", "FLAIR"),
        present=present,
        volume=None,
        slices=np.arange(count),
        position_mm=4.0 * np.arange(count),
        height=height,
        foreground=np.full(count, 0.4),
        pixels=pixels,
    )

"""Who is in the demo cohort, decided before the first voxel: the same seed gives the same plan.

Severity is the one latent number behind the anatomy, without a unit: it grows with age in everybody and by a step with
disease, so that an old control looks like a young patient. Age and the spread of severity are drawn as the quantiles
of a normal distribution in random order, not at random, so that the design below holds in every cohort of this size
and not only on average:

    severity tells disease from control with an AUROC of about 0.93 (the oracle: no reader of the images can do better)
    age and sex alone reach about 0.6
    every site scans the same number of each group, so that the scanner says nothing about the diagnosis
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from bfp.demo.scanners import MODALITIES, SITES
from bfp.errors import Reason

AGE_YEARS = {"control": (68.0, 8.0), "disease": (71.5, 8.0), "tumour": (60.0, 9.0)}  # mean, standard deviation
AGE_LIMITS_YEARS = (40.0, 89.0)  # BIDS asks that nobody older than 89 can be told apart
SEVERITY_PER_YEAR = 0.06  # above or below 70 years
SEVERITY_OF_DISEASE = 1.8
SEVERITY_SPREAD = 0.85  # standard deviation of what neither age nor disease explains
LACKING_SHARE = 0.15  # of the sessions lack one modality
TUMOUR_SHARE = 7


class Groups(NamedTuple):
    """The number of subjects in each diagnostic group."""

    control: int
    disease: int
    tumour: int


def groups_of(subjects: int) -> Groups:
    """The groups of a cohort of so many subjects: one in TUMOUR_SHARE with a tumour, of the rest half are patients."""
    tumour = subjects // TUMOUR_SHARE
    control = (subjects - tumour) // 2
    return Groups(control, subjects - tumour - control, tumour)


DEMO = Groups(control=52, disease=52, tumour=12)  # multiples of the number of sites keep the sites balanced
TONIGHT = Groups(control=4, disease=4, tumour=0)  # new subjects to predict
ELSEWHERE = Groups(control=20, disease=20, tumour=0)  # an outside cohort to be tested on


class Person(NamedTuple):
    """What is drawn within a group."""

    diagnosis: str
    age_years: float
    sex: str
    site: str
    severity: float


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject, with one session. severity has no unit; modalities are those that were scanned."""

    label: str
    diagnosis: str
    age_years: float
    sex: str
    site: str
    severity: float
    modalities: tuple[str, ...]
    broken: tuple[tuple[str, Reason], ...]  # modality of a file that is damaged on purpose, and how
    seed: tuple[int, int]  # of everything drawn for this subject


def plan_subjects(groups: Groups, *, seed: int, prefix: str) -> list[Subject]:
    """The subjects in the order of their labels, in which the groups are mixed; prefix begins each label."""
    rng = np.random.default_rng(seed)
    people = [person for group, count in groups._asdict().items() for person in _draw_group(rng, group, count)]
    people = [people[index] for index in rng.permutation(len(people))]
    scanned = _scanned_modalities(rng, len(people))
    broken = _broken_files(rng, scanned)
    return [
        Subject(
            label=f"{prefix}{number + 1:03d}",
            diagnosis=person.diagnosis,
            age_years=person.age_years,
            sex=person.sex,
            site=person.site,
            severity=person.severity,
            modalities=scanned[number],
            broken=broken.get(number, ()),
            seed=(seed, number),
        )
        for number, person in enumerate(people)
    ]


def _draw_group(rng: np.random.Generator, group: str, count: int) -> list[Person]:
    mean, spread = AGE_YEARS[group]
    ages = np.clip(mean + spread * _normal_quantiles(rng, count), *AGE_LIMITS_YEARS).round(1)
    own = SEVERITY_SPREAD * _normal_quantiles(rng, count)
    severities = SEVERITY_PER_YEAR * (ages - 70) + SEVERITY_OF_DISEASE * (group == "disease") + own
    sexes = rng.permutation(np.resize(["F", "M"], count))
    sites = np.resize(list(SITES), count)  # in turn; ages and severities are in random order
    return [
        Person(group, float(ages[number]), str(sexes[number]), str(sites[number]), round(float(severities[number]), 3))
        for number in range(count)
    ]


def _normal_quantiles(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.permutation(ndtri((np.arange(count) + 0.5) / count))


def _scanned_modalities(rng: np.random.Generator, count: int) -> list[tuple[str, ...]]:
    """What each session holds. Of the sessions that lack a modality every sixth lacks its T1w."""
    lacking = dict.fromkeys(range(count), "")
    for turn, number in enumerate(rng.permutation(count)[: round(LACKING_SHARE * count)]):
        lacking[int(number)] = ("FLAIR", "T2w", "FLAIR", "T1w", "T2w", "FLAIR")[turn % 6]
    return [tuple(modality for modality in MODALITIES if modality != lacking[number]) for number in range(count)]


def _broken_files(
    rng: np.random.Generator, scanned: list[tuple[str, ...]]
) -> dict[int, tuple[tuple[str, Reason], ...]]:
    """Two files, each in a complete session, so that two good scans remain in it."""
    complete = [number for number, modalities in enumerate(scanned) if modalities == MODALITIES]
    damages = (("T2w", Reason.TRUNCATED), ("FLAIR", Reason.NOT_NIFTI))
    return {int(number): (damage,) for number, damage in zip(rng.permutation(complete), damages, strict=False)}

"""What ingest and infer both say of preparing scans: what it will cost, what was not done, what was rejected.

Light: a plan is made of it. Preparing itself is `cohorts.prepare`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from bfp.cohorts import Session
from bfp.cohorts.dicom import Series
from bfp.drivers.attempts import Lost
from bfp.drivers.inputs import slice_spacing_mm
from bfp.drivers.sizing import Cost, Scans, preparing
from bfp.errors import InputError, Reason
from bfp.specs.cohorts import Cohort
from bfp.specs.preprocessing import Preprocessing
from bfp.specs.profile import Profile
from bfp.specs.target import EXAMPLE
from bfp.words import counted, toml_list

WORKER_GB = 0.7  # the most that a worker took for heads at 1 mm, three to a session
DEEPBET_GB = 1.1  # that deepbet's networks and torch took beside it
SERIES_GB = 0.4  # that the bytes of a 4-D scan took beside it, packed and unpacked: 130 million voxels of int16

CHOSEN = (Reason.UNWANTED, Reason.DUPLICATE, Reason.IGNORED)
"""Reasons that are the user's choice and no fault of a scan: `max_rejected` does not count them."""

SHOWN_CAUSES = 3  # a full disk is another for each file

TRIED_AGAIN = "could not be read in full this time, or took too long; submit again to try again"


def cost_of(sessions: Sequence[Session], preprocessing: Preprocessing) -> Cost:
    """What preparing sessions comes to, by the figures of `sizing`."""
    with_scans = [session for session in sessions if session.scans]
    scans = sum(len(session.scans) for session in with_scans)
    neighbours = preprocessing.stacks.form == "neighbours"
    registered = scans - len(with_scans)
    if preprocessing.registration == "none" or (neighbours and preprocessing.brain != "given"):
        registered = 0  # of neighbours the brain mask's scan goes with each other
    counts = Scans(
        sessions=len(with_scans),
        scans=scans,
        registered=registered,
        masked=len(with_scans) if preprocessing.brain == "deepbet" else 0,
        corrected=scans if preprocessing.bias_field == "n4" else 0,
        converted=sum(isinstance(scan.file, Series) for session in with_scans for scan in session.scans),
    )
    return preparing(counts, slice_spacing_mm=slice_spacing_mm(preprocessing), neighbours=neighbours)


def estimate_warnings(preprocessing: Preprocessing) -> list[str]:
    """What to say of an estimate that cannot know how many volumes scans have, nor what a program takes."""
    told = []
    if preprocessing.volumes == "each":
        told.append(
            "volumes: each: every scan is counted as one volume here; 4-D ones take as many times the stacks and the "
            "time"
        )
    if preprocessing.brain == "program":
        told.append("brain: program: the time and memory that the program takes are not counted here")
    return told


def worker_gb(preprocessing: Preprocessing) -> float:
    """The memory of one worker."""
    deepbet = DEEPBET_GB if preprocessing.brain == "deepbet" else 0.0
    return WORKER_GB + deepbet + (SERIES_GB if preprocessing.volumes == "each" else 0.0)


def check_available(preprocessing: Preprocessing, cohorts: Sequence[Cohort]) -> None:
    """Raise InputError where the preprocessing or a cohort wants an extra that is not installed."""
    for cohort in cohorts:
        if cohort.dicom and find_spec("dcm2niix") is None:
            raise InputError(
                f"cohort {cohort.name}: dicom: dcm2niix is not installed; pip install 'bfp[dicom]', or convert the "
                "scans to NIfTI and leave `dicom` out"
            )
    if preprocessing.brain == "deepbet" and find_spec("deepbet") is None:
        raise InputError(
            "preprocessing.brain: deepbet is not installed; pip install 'bfp[deepbet]', or bring masks along (brain: "
            "given)"
        )


def find_brain_program(
    preprocessing: Preprocessing, profile: Profile, *, example: Sequence[str] = EXAMPLE
) -> list[str]:
    """The command of `brain: program`, with the program where it lies on this machine; [] where it is not wanted.

    example: what a message tells to write. Raises InputError where no profile names a program, or it is not there.
    """
    if preprocessing.brain != "program":
        return []
    command = profile.local.brain_program
    if command is None:
        raise InputError(
            f"preprocessing.brain: program: the profile does not name one; write into {profile.file}:\n"
            f"    [{profile.table}]\n    brain_program = {toml_list(example)}"
        )
    if not profile.here:
        return command
    found = shutil.which(command[0])
    if found is None:
        raise InputError(
            f"{profile.file}: {profile.table}.brain_program: {command[0]}: no such program that can be run; give "
            "the path to it, or see that PATH leads there"
        )
    return [os.path.abspath(found), *command[1:]]


def minutes(seconds: float) -> str:
    return f"about {max(1, seconds / 60):,.0f} min"


def not_done(asked: int, failures: Sequence[str], lost: Lost, *, unit: str, verb: str, smaller: str) -> str:
    """What to say where work that was handed to Ray is not all done; "" where it is.

    failures: known causes, one for each unit. smaller: what makes a unit need less memory, as an order.
    """
    missing = len(failures) + lost.out_of_memory + lost.died
    if not missing:
        return ""
    distinct = list(dict.fromkeys(failures))
    causes = distinct[:SHOWN_CAUSES]
    if len(distinct) > SHOWN_CAUSES:
        causes.append(f"and {counted(len(distinct) - SHOWN_CAUSES, 'cause')} more, such as these")
    if lost.out_of_memory:
        causes.append(
            f"{lost.out_of_memory} ran out of memory, however few ran at once: give a worker more memory, or {smaller}"
        )
    if lost.died:
        causes.append(
            f"{lost.died} lost their worker each time, and it did not say why: it crashed, or the system ended it for "
            f"want of memory. Try lower compute.workers, or {smaller}"
        )
    message = f"{missing} of {counted(asked, unit)} could not be {verb}; the others are kept: submit again to go on"
    return "\n    ".join([message, *causes])


def too_many(rejected: Mapping[str, int], *, used: int, allowed: float | None, meanwhile: str) -> str:
    """What to say where more scans are rejected than the spec allows; "" where not.

    rejected: how many, by reason. used: scans that are not. meanwhile: what became of those.
    """
    faulty = sum(count for reason, count in rejected.items() if reason not in CHOSEN)
    share = faulty / max(faulty + used, 1)
    if allowed is None or share <= allowed:
        return ""
    scans = f"{faulty} of {counted(faulty + used, 'scan')} ({share:.1%})"
    return (
        f"{scans} are rejected, more than max_rejected: {allowed:g}; "
        f"{meanwhile}. The report lists them: mend the scans, or raise max_rejected, and submit again"
    )

"""Where a run executes: the targets, found by the name of a profile.

    local      Ray inside this process, on this machine
    ray_here   starting that Ray quietly, and ending it
    gpus       how many GPUs there are, told without torch or Ray
    hush       what libraries say past us, out of the user's sight
    stopping   Ctrl-C: once to stop with everything kept, twice to stop at once
    failures   what went wrong on a worker, in a few lines

A target plans a spec and submits it; both `bfp submit` and `bfp demo` go through here.
"""

from __future__ import annotations

from bfp.errors import InputError
from bfp.specs.profile import NO_PROFILE, Profile
from bfp.targets.local import Local

__all__ = ["Local", "resolve"]


def resolve(on: str | None, *, cpus: int | None = None, detach: bool = False, profile: Profile = NO_PROFILE) -> Local:
    """The target that `--on` names; this machine without one. `cpus` bounds what it uses.

    Raises InputError for a name that no profile has, and for detaching from a target that lives in this process.
    """
    if on not in (None, "local"):
        raise InputError(f"--on {on}: no profile has this name; this version of bfp runs jobs on `local` only")
    if detach:
        raise InputError(
            "--detach: on `local` the job lives in this process; start it with nohup, tmux or a batch system"
        )
    return Local(cpus=cpus, profile=profile)

"""Where a run executes: the targets, found by the name of a profile.

    local      Ray inside this process, on this machine; on a cluster the driver's side of every other target
    remote     a cluster: a run is checked here, sent, and followed from here
    cluster      what a kind of cluster has to offer for that
    ray_jobs     a Ray cluster that is up
    kuberay      Kubernetes with the KubeRay operator: kuberay_manifest is what is sent, kuberay_words what the cluster
                 says about it, kuberay_log what its driver says, kuberay_checks what `bfp doctor` looks at, kube_api
                 the API server, leaving how its pods end
    slurm        a SLURM cluster: slurm_script is what is sent, slurm_job.sh what it does, slurm_words what SLURM says
    letter       all that a driver there is told
    events       what it says, among Ray's own words
    ray_there    the Ray that it joins
    checks     what keeps a run from starting
    ray_here   starting Ray on this machine quietly, and ending it
    hush       what libraries say past us, out of the user's sight
    stopping   Ctrl-C: once to stop with everything kept, twice to stop at once
    failures   what went wrong on a worker, in a few lines

A target plans a spec and submits it; both `bfp submit` and `bfp demo` go through here.
"""

from __future__ import annotations

from bfp.errors import InputError
from bfp.specs.clusters import RayTarget
from bfp.specs.kuberay import KubeRayTarget
from bfp.specs.profile import LOCAL, NO_PROFILE, PROFILE, Profile, profile_for
from bfp.targets.local import Local
from bfp.targets.remote import Remote

__all__ = ["Local", "Remote", "cluster", "here_or_on", "resolve"]


def resolve(
    on: str | None, *, cpus: int | None = None, detach: bool = False, profile: Profile = NO_PROFILE
) -> Local | Remote:
    """The target that `--on` names; this machine without one. `cpus` bounds what it uses.

    Raises InputError for a name that no profile has, and for detaching from a target that lives in this process.
    """
    if on not in (None, LOCAL):
        if cpus is not None:
            raise InputError(f"--cpus: is of this machine; what a job gets on {on} stands in its profile")
        return cluster(on, profile=profile)
    if detach:
        raise InputError(
            "--detach: on `local` the job lives in this process; start it with nohup, tmux or a batch system"
        )
    return Local(cpus=cpus, profile=profile)


def here_or_on(on: str | None) -> Remote | None:
    """The cluster of a command that names a run and no spec, by the profile of the working directory; None: here."""
    return None if on in (None, LOCAL) else cluster(on, profile=profile_for(PROFILE))


def cluster(name: str, *, profile: Profile) -> Remote:
    """The cluster of this name. Raises InputError where the profile has none."""
    settings = profile.cluster(name)
    if isinstance(settings, RayTarget):
        from bfp.targets.ray_jobs import RayJobs

        return Remote(name, settings, RayJobs(name, settings), file=profile.file)
    if isinstance(settings, KubeRayTarget):
        from bfp.targets.kuberay import KubeRay

        return Remote(name, settings, KubeRay(name, settings, file=profile.file), file=profile.file)
    from bfp.targets.slurm import Slurm

    return Remote(name, settings, Slurm(name, settings), file=profile.file)

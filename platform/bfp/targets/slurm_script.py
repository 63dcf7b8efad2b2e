"""The script that `sbatch` is given: what a job asks for, what it is told, and what it then does (`slurm_job.sh`).

Pure: from the target's settings and the letter to text. Nothing secret stands in it, and who it is for can read it.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from bfp import __version__
from bfp.specs.clusters import SlurmTarget
from bfp.targets.letter import Letter, run_digest
from bfp.targets.ray_here import MAX_OBJECT_STORE_BYTES, MIN_OBJECT_STORE_BYTES, OBJECT_STORE_SHARE

BODY = Path(__file__).with_name("slurm_job.sh")
BY = "bfp"  # how the comment of a job begins; then the spec's digest
STOP = "USR2"  # the signal of `bfp stop` to the job's shell
CHECK_H, CHECK_WARNING_S = 0.25, 60


def script(letter: Letter, settings: SlurmTarget, *, environment: str, logs: str) -> str:
    """The script of a job. environment: the virtual environment there; logs: the folder of the job's log."""
    settings = _for_a_check(settings) if letter.check else settings
    lines = [f"#SBATCH {_quoted(option)}" for option in options(letter, settings, logs=logs)]
    told = {**settings.env, **letter.environment()}
    return "\n".join(
        [
            "#!/bin/bash",
            *lines,
            "",
            f"# Made by bfp {__version__} for {letter.target}.",
            'unset "${!RAY_@}"',  # what a site or a shell has set for another Ray
            *(f"export {name}={shlex.quote(value)}" for name, value in told.items()),
            *(f"{name}={value}" for name, value in _settings(letter, settings, environment, logs).items()),
            "",
            BODY.read_text(encoding="utf-8"),
        ]
    )


def options(letter: Letter, settings: SlurmTarget, *, logs: str) -> list[str]:
    """What a job asks for, as options of sbatch; the profile takes none that bfp sets itself."""
    name = job_name(letter.run)
    return [
        f"--job-name={name}",
        f"--comment={BY} {letter.digest} {letter.run}",
        f"--output={_no_pattern(logs)}/{_no_pattern(name)}-%j.log",
        "--open-mode=append",
        "--dependency=singleton",  # of two jobs of one run the second waits
        *resources(settings),
        f"--signal=B:USR1@{settings.warning_s}",
        "--requeue" if settings.requeue else "--no-requeue",
        "--export=HOME,USER,PATH",  # no secret of who submits is kept by SLURM
        *settings.options,
    ]


def _for_a_check(settings: SlurmTarget) -> SlurmTarget:
    """A plan needs one node and some minutes; a partition for GPUs may take no job that asks for none."""
    return settings.model_copy(
        update={
            "nodes": 1,
            "gpus_per_node": min(1, settings.gpus_per_node),
            "time_h": min(CHECK_H, settings.time_h),
            "warning_s": min(CHECK_WARNING_S, settings.warning_s),  # one longer than the time would come at once
            "requeue": False,
        }
    )


def resources(settings: SlurmTarget) -> list[str]:
    """The part of the options that says what a job needs and by whose account."""
    asked = [
        ("partition", settings.partition),
        ("account", settings.account),
        ("qos", settings.qos),
        ("nodes", settings.nodes),
        ("ntasks-per-node", 1),
        ("cpus-per-task", settings.cpus_per_node),
        ("mem", f"{int(settings.memory_gb * 1e9 / 2**20)}M" if settings.memory_gb else None),
        ("gpus-per-node", settings.gpus_per_node or None),
        ("time", time_text(settings.time_h)),
    ]
    return [f"--{name}={value}" for name, value in asked if value is not None]


def job_name(run: str) -> str:
    """The name of a run's jobs, by which they are found."""
    return f"bfp-{run.rstrip('/').rpartition('/')[2]}-{run_digest(run)}"


def log_file(run: str, job: str, *, logs: str) -> str:
    return f"{logs}/{job_name(run)}-{job}.log"


def time_text(hours: float) -> str:
    """1.5 → 0-01:30:00, as SLURM takes it; it counts whole minutes."""
    minutes = max(1, round(hours * 60))
    return f"{minutes // 1440}-{minutes // 60 % 24:02}:{minutes % 60:02}:00"


def _settings(letter: Letter, settings: SlurmTarget, environment: str, logs: str) -> dict[str, str]:
    """The variables of `slurm_job.sh`."""
    home = "$HOME"
    secrets = settings.secrets_file or ""
    shown_secrets = f'"{home}"/{shlex.quote(secrets[2:])}' if secrets.startswith("~/") else shlex.quote(secrets)
    log = shlex.quote(f"{logs}/{job_name(letter.run)}-")
    return {
        "digest": letter.digest,
        "log": f'{log}"$SLURM_JOB_ID".log',
        "nodes": str(settings.nodes),
        "cpus": str(settings.cpus_per_node),
        "gpus": str(settings.gpus_per_node),
        "warning_s": str(settings.warning_s),
        "requeue": str(int(settings.requeue)),
        "environment": shlex.quote(environment),
        "container": shlex.quote(settings.container or ""),
        "shared_paths": _array(settings.shared_paths),
        "modules": _array(settings.modules),
        "secrets_file": shown_secrets,
        "store_percent": str(round(100 * OBJECT_STORE_SHARE)),
        "store_max": str(MAX_OBJECT_STORE_BYTES),
        "store_min": str(MIN_OBJECT_STORE_BYTES),
    }


def _array(words: list[str]) -> str:
    return f"({' '.join(map(shlex.quote, words))})"


def _quoted(option: str) -> str:
    """An option as a line of #SBATCH takes it."""
    if shlex.quote(option) == option:
        return option
    escaped = option.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _no_pattern(path: str) -> str:
    """% begins a pattern in the name of a log."""
    return path.replace("%", "%%")

"""What SLURM says in one word, in a sentence: why a job waits, how it ended, why it was not taken.

Reasons are those of squeue(1), "JOB REASON CODES", and states those of "JOB STATE CODES"; one that is not listed here
is passed on as it is. Limits of accounts and qualities of service come in families, which are told by their parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from bfp.targets.cluster import Stage


class End(NamedTuple):
    """A state that a job stays in."""

    stage: Stage
    said: str


AGAIN = "submit the same again to go on"

WAITS = {
    "None": "to be looked at by SLURM for the first time",
    "Resources": "for nodes to become free; it is the next in line",
    "Priority": "for jobs of higher priority",
    "Dependency": "for an earlier job of this run to end",
    "DependencyNeverSatisfied": "for a job that failed, so for ever: stop it, and submit the same again",
    "BeginTime": "for the time at which it may begin; after a requeue that is a minute or two",
    "Reservation": "for its reservation to begin",
    "ReservationDeleted": "for a reservation that was deleted, so for ever: take it out of `options`",
    "Licenses": "for a licence to become free",
    "Prolog": "for the prolog of its nodes",
    "Cleaning": "for the end of its last start to be cleaned up",
    "Reserved": "for nodes to become free",
    "NodeDown": "for a node that is down",
    "BadConstraints": "for nodes that the cluster does not have, so for ever: see nodes, cpus_per_node, gpus_per_node, "
    "memory_gb and `options` of the profile, and what `sinfo` shows",
    "PartitionDown": "for the partition, which is down; ask whoever runs the cluster, or name another one",
    "PartitionInactive": "for the partition, which takes no jobs now; ask who runs the cluster, or name another one",
    "PartitionNodeLimit": "for more nodes than a job gets in this partition, so for ever: lower `nodes`",
    "PartitionTimeLimit": "for more time than the partition gives, so for ever: lower `time_h`; the next job goes on",
    "PartitionConfig": "for what this partition does not have, so for ever: see nodes and cpus_per_node",
    "NodeLimit": "for more nodes than its account gets: lower `nodes`",
    "TimeLimit": "for more time than its account gets: lower `time_h`; the next job goes on",
    "QOSTimeLimit": "for its qos, whose time is used up",
    "QOSResourceLimit": "for a limit of its qos",
    "AssociationJobLimit": "for other jobs of the account to end: it has as many as it may have",
    "AssociationResourceLimit": "for other jobs of the account to end: they hold all that it may have",
    "AssociationTimeLimit": "for the account, whose time is used up",
    "JobHeldUser": "until you let it go: scontrol release {job}",
    "JobHeldAdmin": "until whoever runs the cluster lets it go; ask them why it is held",
    "JobArrayTaskLimit": "for other tasks of its array",
    "JobHoldMaxRequeue": "until you let it go, since it could not be started several times: scontrol release {job}",
    "InvalidAccount": "for an account that is not valid: see `account` of the profile",
    "InvalidQOS": "for a qos that is not valid: see `qos` of the profile",
    "AccountNotAllowed": "for a partition that its account may not use: see `account` and `partition` of the profile",
    "QOSNotAllowed": "for a qos that it may not use here: see `qos`, `account` and `partition` of the profile",
    "BurstBufferResources": "for room in the burst buffer",
    "BurstBufferStageIn": "for its data to be brought to the burst buffer",
    "FrontEndDown": "for a front end that is down",
    "launch failed requeued held": "until you let it go, since its node could not start it (is the environment, the "
    "home folder and the log's folder on every node?): scontrol release {job}",
    "job requeued in held state": "until you let it go: scontrol release {job}",
    "user env retrieval failed requeued held": "until you let it go, since the node could not read your environment: "
    "scontrol release {job}",
}

ENDS = {
    "COMPLETED": End("done", ""),
    "FAILED": End("failed", "its driver failed"),
    "CANCELLED": End("stopped", f"it was cancelled; {AGAIN}"),
    "TIMEOUT": End("failed", f"its time limit came before it had saved and ended; {AGAIN}, with a longer warning_s"),
    "NODE_FAIL": End("failed", f"a node of it failed; {AGAIN}"),
    "PREEMPTED": End("failed", f"a job of higher priority took its nodes; {AGAIN}"),
    "OUT_OF_MEMORY": End("failed", f"it needed more memory than it was given; raise memory_gb, and {AGAIN}"),
    "BOOT_FAIL": End("failed", f"a node of it did not start; {AGAIN}"),
    "DEADLINE": End("failed", f"its deadline came before its end; {AGAIN}"),
    "LAUNCH_FAILED": End("failed", f"a node could not start it; {AGAIN}"),
    "REVOKED": End("failed", f"another cluster took it over; {AGAIN} there"),
}

GOING = {
    "COMPLETING": "its last processes are being ended",
    "CONFIGURING": "its nodes are being made ready",
    "SUSPENDED": "it was suspended; SLURM resumes it",
    "STOPPED": "it was halted with its nodes kept",
    "STAGE_OUT": "its data is being taken away",
}
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")

_LIMIT = re.compile(
    r"^(Assoc|QOS)?(Grp|Max)(Cpu|CPU|GRES|Node|Mem|Memory|Jobs|Submit|Wall|Billing|BB|License|Cpu)?(.*)$"
)
_OF = {"QOS": "its qos (see `qos` of the profile)", "Assoc": "its account (see `account` of the profile)"}
_WHAT = {
    "Cpu": "CPUs",
    "CPU": "CPUs",
    "GRES": "GPUs or other resources",
    "Node": "nodes",
    "Mem": "memory",
    "Memory": "memory",
    "Jobs": "running jobs",
    "Submit": "jobs in the queue",
    "Wall": "time",
}


def waits_for(reason: str, *, job: str) -> str:
    """Why a job waits, as `squeue` gives it, in words."""
    bare, _, more = reason.partition(",")
    if bare in WAITS:
        return f"it waits {WAITS[bare]}".format(job=job)
    if bare == "ReqNodeNotAvail":
        nodes = more.partition(":")[2].strip()
        which = f" ({nodes})" if nodes else ""
        return f"it waits for a node that is down or kept for maintenance{which}: see `sinfo -R`"
    if bare.startswith("Nodes required for job are DOWN"):
        return "it waits for nodes that are down, drained or kept for others: see `sinfo -R`"
    if (limit := _LIMIT.match(bare)) and (limit[1] or limit[2] == "Max"):
        what = _WHAT.get(limit[3] or "", "what it may have")
        whose = _OF.get(limit[1] or "", "its account or qos")
        if "PerJob" in limit[4]:
            return (
                f"it asks for more {what} than {whose} lets one job have, so it waits for ever: ask for less ({bare})"
            )
        if "Minutes" in limit[4] or "RunMinutes" in limit[4]:
            return f"it waits for {whose}, whose time of {what} is used up for now ({bare})"
        return f"it waits for other jobs to end: with them {whose} has all the {what} that it may have ({bare})"
    return f"it waits: {reason}"


_REFUSED: list[tuple[str, Callable[[str], str]]] = [
    ("invalid partition", lambda name: f"[{name}] partition: the cluster has none of this name; `sinfo -s` lists them"),
    (
        "Invalid account",
        lambda name: (
            f"[{name}] account: not one that you may use with this partition; `sacctmgr show assoc "
            "user=$USER format=account,partition,qos` lists yours"
        ),
    ),
    (
        "Invalid qos",
        lambda name: (
            f"[{name}] qos: not one that you may use; `sacctmgr show assoc user=$USER format=account,qos` lists yours"
        ),
    ),
    ("time limit is invalid", lambda name: f"[{name}] time_h: longer than the partition allows; `sinfo -s` shows it"),
    (
        "Memory specification can not be satisfied",
        lambda name: f"[{name}] memory_gb: no node has that much; `sinfo -N -o '%N %P %m'` shows what they have, in MB",
    ),
    (
        "node configuration is not available",
        lambda name: (
            f"[{name}] nodes, cpus_per_node, gpus_per_node, memory_gb: no node has that much; "
            "`sinfo -N -o '%N %P %c %m %G'` shows what they have"
        ),
    ),
    (
        "Node count specification invalid",
        lambda name: f"[{name}] nodes: more than the partition has or lets a job have; `sinfo -s` shows it",
    ),
    (
        "More processors requested",
        lambda name: f"[{name}] cpus_per_node: more than the partition lets a job have; `sinfo -N -o '%N %P %c'`",
    ),
    (
        "generic resource",
        lambda name: f"[{name}] gpus_per_node: the partition has no such GPUs; `sinfo -N -o '%N %P %G'` shows them",
    ),
    (
        "accounting/QOS policy",
        lambda name: (
            f"[{name}] account, qos: a limit on jobs, their size or time is reached, or one of both has to be "
            "named; `sacctmgr show assoc user=$USER` and whoever runs the cluster tell"
        ),
    ),
    (
        "Access/permission denied",
        lambda name: f"[{name}]: you may not do this with that job or partition; jobs of others are theirs to stop",
    ),
    (
        "Unable to contact slurm controller",
        lambda name: (
            f"--on {name}: SLURM's controller does not answer; is it up (`scontrol ping`), and is this a login "
            "node of that cluster?"
        ),
    ),
    (
        "Could not establish a configuration source",
        lambda name: f"--on {name}: SLURM is not set up on this machine: run it on a login node, or set SLURM_CONF",
    ),
    (
        "Socket timed out",
        lambda name: (
            f"--on {name}: SLURM's controller answered too late; of a job that was just being sent it may have taken "
            "it all the same: submit the same again, which finds it"
        ),
    ),
]


def why_refused(said: str, *, name: str, command: str) -> str:
    """What a command of SLURM did not want to do, with the remedy. name: of the target."""
    told = next((words(name) for part, words in _REFUSED if part in said), None)
    last = said.strip().splitlines()[-1].strip() if said.strip() else "nothing"
    return f"{told} ({command} says: {last})" if told else f"--on {name}: {command} says: {last}"

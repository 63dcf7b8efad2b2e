"""What SLURM says in a word, in a sentence that says what to do."""

from __future__ import annotations

import pytest

from bfp.targets.slurm_words import waits_for, why_refused

FAILED = "sbatch: error: Batch job submission failed: "
MEMORY = (
    f"sbatch: error: Memory specification can not be satisfied\n{FAILED}Requested node configuration is not available"
)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Resources", "it waits for nodes to become free; it is the next in line"),
        ("Priority", "it waits for jobs of higher priority"),
        ("None", "it waits to be looked at by SLURM for the first time"),
        ("JobHeldUser", "it waits until you let it go: scontrol release 12"),
        ("launch failed requeued held", "scontrol release 12"),
        ("PartitionTimeLimit", "so for ever: lower `time_h`"),
        ("BadConstraints", "for nodes that the cluster does not have, so for ever"),
        ("DependencyNeverSatisfied", "stop it, and submit the same again"),
        ("QOSMaxJobsPerUserLimit", "its qos (see `qos` of the profile) has all the running jobs that it may have"),
        ("QOSMaxCpuPerUserLimit", "all the CPUs that it may have (QOSMaxCpuPerUserLimit)"),
        ("QOSMaxGRESPerJob", "more GPUs or other resources than its qos (see `qos` of the profile) lets one job have"),
        ("AssocGrpGRES", "its account (see `account` of the profile) has all the GPUs or other resources"),
        ("AssocGrpGRESMinutes", "whose time of GPUs or other resources is used up"),
        ("AssocGrpCPUMinutesLimit", "whose time of CPUs is used up for now"),
        ("MaxSubmitJobsPerAccount", "with them its account or qos has all the jobs in the queue"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[1-2]",
            "it waits for a node that is down or kept for maintenance (n[1-2])",
        ),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "sinfo -R"),
        ("SomethingNew", "it waits: SomethingNew"),
    ],
)
def test_a_reason_for_waiting_is_told_with_what_can_be_done(reason, said):
    assert said in waits_for(reason, job="12")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("sbatch: error: invalid partition specified: nope", "[lab] partition: the cluster has none of this name"),
        (
            f"{FAILED}Invalid account or account/partition combination specified",
            "[lab] account: not one that you may use with this partition; `sacctmgr show assoc",
        ),
        (f"{FAILED}Invalid qos specification", "[lab] qos: not one that you may"),
        (MEMORY, "[lab] memory_gb: no node has that much"),
        ("sbatch: error: Invalid generic resource (gres) specification", "[lab] gpus_per_node: the partition has no"),
        (f"{FAILED}Requested time limit is invalid (missing or exceeds some limit)", "[lab] time_h: longer than the"),
        (f"{FAILED}Job violates accounting/QOS policy (job submit limit, …)", "[lab] account, qos: a limit on jobs"),
        (
            "scancel: error: Kill job error on job id 4: Access/permission denied",
            "[lab]: you may not do this with that job or partition; jobs of others are theirs to stop",
        ),
        ("squeue: error: Unable to contact slurm controller (connect failure)", "SLURM's controller does not answer"),
        ("sbatch: fatal: Could not establish a configuration source", "run it on a login node, or set SLURM_CONF"),
        ("sbatch: error: something new", "--on lab: sbatch says: sbatch: error: something new"),
    ],
)
def test_a_refusal_names_the_field_of_the_profile_and_the_remedy(said, told):
    shown = why_refused(said, name="lab", command="sbatch")
    assert told in shown
    assert shown.count("\n") == 0
    assert said.splitlines()[-1] in shown

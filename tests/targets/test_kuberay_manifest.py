"""The RayJob of a run: what is sent to Kubernetes, without asking anybody."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from bfp.errors import InputError
from bfp.specs import Spec, dump, load
from bfp.specs.kuberay import KubeRayTarget
from bfp.specs.profile import read_profile
from bfp.targets.kuberay_manifest import SPEC_DIGEST, as_yaml, first_nodes, job_name, lent, ray_job
from bfp.targets.letter import SPEC, TARGET, Letter, letter, read_letter
from tests.targets.kube_rules import schema_of, templates, unknown_fields, unrestricted

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = sorted(ROOT.glob("jobs/*.yaml"))
PROFILES = sorted(ROOT.glob("infra/profiles/kuberay-*.toml"))


def target(**fields: Any) -> KubeRayTarget:
    return KubeRayTarget.model_validate({"target": "kuberay", "image": "example.org/bfp:1", **fields})


def profile(file: Path) -> tuple[str, KubeRayTarget]:
    ((name, settings),) = read_profile(file).clusters.items()
    assert isinstance(settings, KubeRayTarget)
    return name, settings


def letter_of(spec: Spec, settings: KubeRayTarget, name: str = "lab") -> Letter:
    return letter(spec, target=name, settings=settings, nodes=first_nodes(settings))


def job(settings: KubeRayTarget, file: Path = CATALOGUE[0]) -> Any:
    return ray_job(settings, letter_of(load(file), settings))


def environment(container: Any) -> dict[str, str]:
    """What the kubelet makes of it: $$ is a $, and $(NAME) the variable of this name."""
    found: dict[str, str] = {}
    for entry in container["env"]:
        expand = lambda match: "$" if match[0] == "$$" else found.get(match[1], match[0])  # noqa: E731
        found[entry["name"]] = re.sub(r"\$\$|\$\(([A-Za-z0-9_.-]+)\)", expand, entry["value"])
    return found


def ray_containers(found: Any) -> list[Any]:
    return [template["spec"]["containers"][0] for template in list(templates(found))[:-1]]


PAIRS = [(file, other) for file in CATALOGUE for other in PROFILES]


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0].stem}-{pair[1].stem}")
def catalogued(request: pytest.FixtureRequest) -> Any:
    """What is sent for a job of the catalogue on one of the example profiles."""
    file, settings = request.param[0], profile(request.param[1])[1]
    return yaml.safe_load(as_yaml(job(settings, file)))


def test_every_pod_of_the_catalogue_is_restricted(catalogued: Any) -> None:
    assert [list(unrestricted(template["spec"])) for template in templates(catalogued)] == [
        [] for _ in templates(catalogued)
    ]


def test_the_catalogue_has_no_field_that_kuberay_does_not_know(catalogued: Any, shared: Path) -> None:
    assert list(unknown_fields(catalogued, schema_of(shared / "kuberay-crds", "rayjobs"))) == []


def test_the_pods_of_the_catalogue_are_right_for_kubernetes(catalogued: Any) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for template in templates(catalogued):
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "x", **template["metadata"]}}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_the_strict_walk_and_the_restricted_profile_find_what_is_wrong(shared: Path) -> None:
    found = job(target())
    schema = schema_of(shared / "kuberay-crds", "rayjobs")
    pod = found["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert list(unknown_fields(found, schema)) == []
    pod["containers"][0]["recources"] = {}
    found["spec"]["backoffLimit"] = "2"
    assert list(unknown_fields(found, schema)) == [
        ".spec.backoffLimit: no integer: '2'",
        ".spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].recources: unknown",
    ]
    pod["hostNetwork"] = True
    pod["volumes"].append({"name": "node", "hostPath": {"path": "/"}})
    pod["containers"][0]["securityContext"] = {"privileged": True, "runAsUser": 0}
    del pod["securityContext"]
    assert list(unrestricted(pod)) == [
        "hostNetwork is set",
        "a volume of type hostPath",
        "ray-head is privileged",
        "ray-head may escalate its privileges",
        "ray-head may run as root",
        "ray-head runs as root",
        "ray-head has no seccomp profile",
        "ray-head has capabilities",
    ]


def test_the_driver_reads_the_very_spec_whatever_stands_in_it() -> None:
    for name in ("$(BFP_TARGET)", "a$$b", "${HOME}", "`id`$", "\\$(date)'\"", "1e3"):
        spec = load(ROOT / "jobs/ingest.yaml").model_copy(update={"output": f"s3://bucket/{name}/ü"})
        found = ray_job(target(env={"A": "$(B)"}), letter_of(spec, target()))
        read = yaml.safe_load(as_yaml(found))
        head = environment(ray_containers(read)[0])
        assert read_letter(head).spec == spec
        assert read["metadata"]["annotations"]["bfp/run"] == f"s3://bucket/{name}/ü/open-brains"
        assert head["A"] == "$(B)"


def test_the_spec_stands_in_the_manifest_as_a_person_reads_it() -> None:
    spec = load(ROOT / "jobs/pretrain.yaml")
    text = as_yaml(ray_job(target(), letter_of(spec, target())))
    lines = text.splitlines()
    start = lines.index("              value: |")
    kind, name = dump(spec).splitlines()[:2]
    assert [line.strip() for line in lines[start + 1 : start + 3]] == [kind, name]
    assert text.count(f"{kind}\n{lines[start + 2]}") == 1, "the letter goes to the driver, which is on the head"


def test_text_that_kubectl_would_read_as_a_number_stands_in_quotes() -> None:
    for text in ("4567e12345", "08", "0o7", "1_000", "+1", ".5", "0x1F", "yes", "null", "~"):
        line = as_yaml({"a": text}).strip()
        assert line in (f'a: "{text}"', f"a: '{text}'"), line
        assert yaml.safe_load(line) == {"a": text}


@pytest.mark.parametrize(
    "run", ["s3://b/My_Run.v2", f"/data/{'x' * 64}", "s3://b/ÄÖ", "/r/-a-", "/r/9", "/r/" + "a-" * 30]
)
def test_the_name_of_a_job_is_one_that_the_operator_takes(run: str) -> None:
    name = job_name(run)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 47
    assert job_name(run) == name
    assert job_name(f"{run}2") != name


def test_with_a_queue_kueue_decides_when_it_starts() -> None:
    found = job(target(queue="team", priority_class="urgent"))
    assert found["spec"]["suspend"] is True
    assert found["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert found["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "urgent"
    assert not any("priorityClassName" in template["spec"] for template in templates(found))
    without = job(target(priority_class="urgent"))
    assert "suspend" not in without["spec"]
    assert all(template["spec"]["priorityClassName"] == "urgent" for template in templates(without))


def test_a_job_ends_and_gives_back_its_nodes() -> None:
    spec = job(target(deadline_h=1.5, keep_min=3, retries=1))["spec"]
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"], spec["backoffLimit"]) == (5400, 180, 1)
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_a_check_is_tried_once_on_a_head_alone_under_a_name_of_its_own() -> None:
    settings = target(workers={"gpu": {"gpus": 8, "count": 4, "max_count": 9}})
    sent = letter_of(load(CATALOGUE[0]), settings)
    run, check = ray_job(settings, sent), ray_job(settings, replace(sent, check=True))
    assert check["spec"]["backoffLimit"] == 0
    assert check["spec"]["ttlSecondsAfterFinished"] == 0
    assert check["metadata"]["name"] != run["metadata"]["name"]
    (group,) = check["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"]) == (0, 0)
    assert "enableInTreeAutoscaling" not in check["spec"]["rayClusterSpec"], "or Ray would make workers after all"


def test_workers_go_to_spot_nodes_and_the_head_never_does() -> None:
    spot = {"capacity": "SPOT"}
    settings = target(
        spot_selector=spot,
        spot_tolerations=[{"key": "spot"}],
        workers={"cpu": {"spot": True, "node_selector": {"zone": "a"}}, "gpu": {"gpus": 1}},
    )
    head, cpu, gpu, submitter = templates(job(settings))
    assert set(head["metadata"]["annotations"].values()) == {"false", "true"}, "nor is it moved to make room"
    assert cpu["spec"]["nodeSelector"] == {"zone": "a", **spot}
    assert cpu["spec"]["tolerations"] == [{"key": "spot", "operator": "Exists"}]
    for other in (head, gpu, submitter):
        assert "nodeSelector" not in other["spec"]
        assert "tolerations" not in other["spec"]
    for stays in (head, submitter):
        required = stays["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        expression = {"key": "capacity", "operator": "NotIn", "values": ["SPOT"]}
        assert required == {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    assert "affinity" not in cpu["spec"]


def test_the_head_is_left_to_the_driver_where_there_are_cpus_elsewhere() -> None:
    for workers, cpus in (({"cpu": {}}, "0"), ({"gpu": {"gpus": 1}}, "6"), ({"cpu": {"count": 0}}, "6")):
        settings = target(head={"cpus": 6}, workers=workers)
        start = job(settings)["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
        assert start["num-cpus"] == cpus
        assert lent(settings, "lab").cpus == int(cpus) + (4 if "count" not in str(workers) else 0)


def test_only_a_head_with_an_autoscaler_may_speak_to_kubernetes() -> None:
    still = job(target())
    assert all(template["spec"]["automountServiceAccountToken"] is False for template in templates(still))
    assert "enableInTreeAutoscaling" not in still["spec"]["rayClusterSpec"]
    growing = job(target(workers={"cpu": {"count": 1, "max_count": 4}}))
    assert [t["spec"]["automountServiceAccountToken"] for t in templates(growing)] == [True, False, False]
    group = growing["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (1, 1, 4)
    assert growing["spec"]["rayClusterSpec"]["autoscalerOptions"]["securityContext"]["capabilities"] == {
        "drop": ["ALL"]
    }


def test_what_ray_writes_has_bounds_and_ray_knows_them() -> None:
    head, *_ = templates(job(target(shared_memory_gb=2, spill_gb=50, head={"memory_gb": 10})))
    volumes = {volume["name"]: volume for volume in head["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in head["spec"]["containers"][0]["volumeMounts"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2G"}
    assert volumes[mounts["/tmp/ray"]]["emptyDir"] == {"sizeLimit": "50G"}
    start = job(target(shared_memory_gb=2))["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    assert start["object-spilling-directory"].startswith("/tmp/ray/")
    assert int(start["object-store-memory"]) < 2e9


def test_secrets_are_referred_to_and_pods_get_what_they_ask_for() -> None:
    settings = target(
        secrets=["s3"], config_maps=["storage"], workers={"gpu": {"gpus": 2, "gpu_resource": "amd.com/gpu"}}
    )
    for container in ray_containers(job(settings)):
        assert container["envFrom"] == [{"configMapRef": {"name": "storage"}}, {"secretRef": {"name": "s3"}}]
        assert container["resources"]["requests"] == {**container["resources"]["limits"], "ephemeral-storage": "20G"}
    worker = ray_containers(job(settings))[1]
    assert worker["resources"]["limits"]["amd.com/gpu"] == "2"


def test_the_job_beside_the_head_has_no_submitter_of_its_own() -> None:
    """The operator refuses a template of one in SidecarMode."""
    found = job(target(mode="SidecarMode"))
    assert found["spec"]["submissionMode"] == "SidecarMode"
    assert "submitterPodTemplate" not in found["spec"]


def test_a_spec_too_long_for_a_pods_environment_is_told() -> None:
    spec = load(ROOT / "jobs/ingest.yaml")
    long = spec.model_copy(update={"output": "s3://" + "x" * 130_000})
    with pytest.raises(InputError, match=r"the spec has 13\d,\d{3} bytes, and a pod's environment takes 120,000"):
        ray_job(target(), letter_of(long, target()))


def test_two_specs_of_one_run_have_one_name_and_two_digests() -> None:
    spec = load(ROOT / "jobs/pretrain.yaml")
    specs = (spec, spec.model_copy(update={"seed": 3}))
    first, second = (ray_job(target(), letter_of(each, target())) for each in specs)
    assert first["metadata"]["name"] == second["metadata"]["name"]
    assert first["metadata"]["annotations"][SPEC_DIGEST] != second["metadata"]["annotations"][SPEC_DIGEST]


def test_the_letter_tells_how_many_nodes_are_waited_for() -> None:
    settings = target(workers={"cpu": {"count": 3}, "gpu": {"gpus": 1, "count": 2, "max_count": 9}})
    told = json.loads(environment(ray_containers(job(settings))[0])[TARGET])
    assert told["nodes"] == 6
    assert SPEC not in environment(ray_containers(job(settings))[1])


MEASURE = """
import json, sys, time
from bfp import specs, targets
from bfp.specs.profile import profile_for
spec, profile = specs.load("infer.yaml"), profile_for("infer.yaml")
before = time.process_time()
with targets.resolve("lab", profile=profile) as target:
    plan, manifest = target.plan(spec), target.manifest(spec)
used = time.process_time() - before
print(json.dumps([used, manifest, sorted({"torch", "ray", "kubernetes", "numpy", "pyarrow"} & set(sys.modules))]))
"""


def test_a_dry_run_asks_nobody_and_is_light(tmp_path: Path) -> None:
    (tmp_path / "bfp.toml").write_text(
        '[lab]\ntarget = "kuberay"\nimage = "example.org/bfp:1"\nvolumes = [{claim = "data", path = "/nowhere"}]\n'
        'shared_paths = ["/nowhere"]\n'
    )
    (tmp_path / "infer.yaml").write_text(
        "kind: infer\nname: small\noutput: /nowhere/runs\nmodel: /nowhere/m\ncohorts: [{name: a, bids: /nowhere/b}]\n"
    )
    seconds = []
    for _ in range(3):  # the quickest of three: the machine may be busy with something else
        asked = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, check=True)
        used, manifest, heavy = json.loads(asked.stdout)
        assert heavy == []
        assert yaml.safe_load(manifest)["kind"] == "RayJob"
        seconds.append(used)
    assert min(seconds) < 0.1

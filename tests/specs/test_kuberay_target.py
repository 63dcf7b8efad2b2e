"""What KubeRay's operator and Kueue refuse although the CRD lets it through: `bfp validate bfp.toml` says it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from bfp.errors import SpecError
from bfp.specs.profile import read_profile

HEAD = '[lab]\ntarget = "kuberay"\nimage = "example.org/bfp:1"\n'


def told(tmp_path: Path, text: str) -> str:
    file = tmp_path / "bfp.toml"
    file.write_text(HEAD + text)
    with pytest.raises(SpecError) as caught:
        read_profile(file)
    return str(caught.value).removeprefix(f"{file}  ").replace(f"{file}  ", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "workers.head = {}",
            "lab.workers.head: {}\n    another name; head, headgroup, submitter are taken by KubeRay and Kueue",
        ),
        (
            'queue = "q"\nworkers.cpu = {max_count = 3}',
            "lab.workers.cpu.max_count: 3\n    null: Kueue admits a job as a whole and takes none that grows",
        ),
        (
            'queue = "q"\n' + "".join(f"workers.g{n} = {{}}\n" for n in range(7)),
            "    at most 6 groups: with the head and the submitter Kueue takes 8",
        ),
        ("workers.cpu = {count = 3, max_count = 2}", "lab.workers.cpu.max_count: 2\n    at least `count`, 3, or null"),
        (
            "workers.cpu = {spot = true}",
            "lab.workers.cpu.spot: true\n    name the labels or taints of such nodes under",
        ),
        (
            'spot_selector = {a = "b"}\nhead = {node_selector = {a = "b", c = "d"}}',
            "lab.head.node_selector: {a: b, c: d}\n    other nodes than those of `spot_selector`: a head that",
        ),
        (
            'spot_tolerations = [{key = "spot"}]\nhead.tolerations = [{key = "gpu"}, {key = "spot", value = ""}]',
            "lab.head.tolerations[1]: {key: spot, value: ''}\n    none of `spot_tolerations`: a head that",
        ),
        (
            "shared_memory_gb = 16",
            "lab.head.memory_gb\n    more than shared_memory_gb, 16, which is a part of it",
        ),
        (
            'volumes = [{claim = "a", path = "/data"}, {claim = "b", path = "/data"}]',
            "lab.volumes[1].path: /data\n    another path: two claims are mounted there",
        ),
        (
            'volumes = [{claim = "c", path = "/tmp/ray/x"}]',
            "lab.volumes[0].path: /tmp/ray/x\n    another path: /dev/shm and /tmp/ray are Ray's own",
        ),
        ('mode = "HTTPMode"', "lab.mode: HTTPMode\n    one of K8sJobMode, SidecarMode"),
        (
            'workers.gpu = {gpus = 1, gpu_resource = "gpu"}',
            "lab.workers.gpu.gpu_resource: gpu\n    what a device plugin offers, such as nvidia.com/gpu",
        ),
        (
            'head = {tolerations = [{key = "a", value = "b"}]}',
            'lab.head.tolerations[0].value: b\n    goes with operator = "Equal"; "Exists" tolerates every value',
        ),
        (
            'head = {node_selector = {"a b" = "c"}}',
            "lab.head.node_selector: {a b: c}\n    a b: no label as Kubernetes has them",
        ),
        ("deadline_h = 9000", "lab.deadline_h: 9000\n    at most 8760"),
    ],
)
def test_what_the_operator_or_kueue_would_refuse_is_said_with_its_field(
    tmp_path: Path, text: str, expected: str
) -> None:
    found = told(tmp_path, text)
    assert expected in found


@pytest.mark.parametrize("image", ["https://x/y", "a b", "x@sha256:12", "-x", "x:"])
def test_an_image_that_no_node_can_pull_is_refused(tmp_path: Path, image: str) -> None:
    file = tmp_path / "bfp.toml"
    file.write_text(f'[lab]\ntarget = "kuberay"\nimage = "{image}"\n')
    with pytest.raises(SpecError, match=r"an image: registry\.example\.org/NAME:TAG"):
        read_profile(file)


@pytest.mark.parametrize("image", ["bfp", "r.example.org:5000/a/b-c:0.1.0-gpu", "ghcr.io/x/y@sha256:" + "a" * 64])
def test_an_image_by_tag_or_digest_is_taken(tmp_path: Path, image: str) -> None:
    file = tmp_path / "bfp.toml"
    file.write_text(f'[lab]\ntarget = "kuberay"\nimage = "{image}"\n')
    assert read_profile(file).clusters["lab"].target == "kuberay"


def test_seven_groups_go_without_a_queue_and_beside_the_head(tmp_path: Path) -> None:
    groups = "".join(f"workers.g{n} = {{}}\n" for n in range(7))
    file = tmp_path / "bfp.toml"
    for more in ("", 'queue = "q"\nmode = "SidecarMode"\n'):
        file.write_text(HEAD + more + groups)
        assert list(read_profile(file).clusters) == ["lab"]

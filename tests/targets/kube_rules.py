"""What a cluster would refuse and the test's API server does not: unknown fields, and pods that are not restricted.

`unknown_fields` walks a CRD's schema as a strict server would. `unrestricted` is the restricted profile of the Pod
Security Standards (https://kubernetes.io/docs/concepts/security/pod-security-standards), the baseline that it holds
included.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

TYPES = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool, "number": (int, float)}
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@functools.cache
def schema_of(folder: Path, plural: str) -> Any:
    """The schema of the stored version of one of KubeRay's kinds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((folder / f"ray.io_{plural}.yaml").read_text(), Loader=loader)
    return next(found for found in crd["spec"]["versions"] if found["storage"])["schema"]["openAPIV3Schema"]


def unknown_fields(value: Any, schema: Any, at: str = "") -> Iterator[str]:
    """Every place where a value is not what the schema says, unknown fields included."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{at}: neither text nor number"
        return
    wanted = TYPES.get(schema.get("type", ""))
    if wanted is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
        yield f"{at}: no {schema['type']}: {value!r}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        yield from (f"{at}.{name}: missing" for name in schema.get("required", []) if name not in value)
        for name, inner in value.items():
            if name in schema.get("properties", {}):
                yield from unknown_fields(inner, schema["properties"][name], f"{at}.{name}")
            elif isinstance(schema.get("additionalProperties"), dict):
                yield from unknown_fields(inner, schema["additionalProperties"], f"{at}.{name}")
            elif not schema.get("x-kubernetes-preserve-unknown-fields") and at != ".metadata":
                yield f"{at}.{name}: unknown"
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from unknown_fields(inner, schema["items"], f"{at}[{number}]")


def unrestricted(pod: Any) -> Iterator[str]:
    """What keeps a pod's spec from the restricted profile."""
    outer = pod.get("securityContext", {})
    yield from (f"{name} is set" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    for volume in pod.get("volumes", []):
        yield from (f"a volume of type {kind}" for kind in set(volume) - {"name"} - VOLUMES)
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        inner, name = container.get("securityContext", {}), container["name"]
        seccomp = inner.get("seccompProfile", outer.get("seccompProfile", {}))
        capabilities = inner.get("capabilities", {})
        if inner.get("privileged"):
            yield f"{name} is privileged"
        if inner.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may escalate its privileges"
        if inner.get("runAsNonRoot", outer.get("runAsNonRoot")) is not True:
            yield f"{name} may run as root"
        if inner.get("runAsUser", outer.get("runAsUser")) == 0:
            yield f"{name} runs as root"
        if seccomp.get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name} has no seccomp profile"
        if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name} has capabilities"
        if any(port.get("hostPort") for port in container.get("ports", [])):
            yield f"{name} has a port of the host"
        if inner.get("procMount", "Default") != "Default":
            yield f"{name} has another /proc"


def templates(job: Any) -> Iterator[Any]:
    """The templates of all pods of a RayJob."""
    cluster = job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]["template"]
    yield from (group["template"] for group in cluster["workerGroupSpecs"])
    if "submitterPodTemplate" in job["spec"]:
        yield job["spec"]["submitterPodTemplate"]

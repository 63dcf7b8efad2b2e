"""The log of a RayJob's driver, of which every line is heard once, whatever becomes of the pods that tell of it.

A pod's log is read again from its last second where the connection breaks. A pod whose node no longer answers is given
up after a while; the Kubernetes Job puts another in its place, which tells the log of the same Ray cluster from its
beginning: what was heard of that cluster is passed over.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

from bfp.targets.events import event_in
from bfp.targets.kube_api import PATIENCE_S, Broken, KubeApi, Refused, as_second
from bfp.targets.kuberay_manifest import SUBMITTER
from bfp.targets.kuberay_words import Object

POLL_S = 1.0
GIVEN_UP_S = 10.0  # a kubelet that does not answer for so long is looked past


class DriverLog:
    """What the pods of one RayJob have told so far."""

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self._pods: dict[str, _PodLog] = {}
        self._heard: dict[str, Counter[str]] = {}  # by Ray cluster
        self._again: dict[str, Counter[str]] = {}  # by pod: what it has yet to repeat

    def rest(self, pod: Object, *, cluster: str, follow: bool) -> Iterator[str]:
        """What has not been heard yet of a pod, which tells of a Ray cluster; with `follow`, to its end if it began."""
        uid = pod["metadata"]["uid"]
        if uid not in self._pods:
            self._pods[uid] = _PodLog(self._api, pod)
            self._again[uid] = self._heard.setdefault(cluster, Counter()).copy()
        again, heard = self._again[uid], self._heard.setdefault(cluster, Counter())
        for text in self._pods[uid].rest(follow=follow):
            if again[text] > 0:
                again[text] -= 1
            else:
                heard[text] += 1
                yield text


class _PodLog:
    """The log of one pod."""

    def __init__(self, api: KubeApi, pod: Object) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self._time_ns = 0
        self._at_that_time = 0

    def rest(self, *, follow: bool) -> Iterator[str]:
        silent_s: float | None = None  # since when nothing could be read
        while True:
            running, before = self._is_running(), (self._time_ns, self._at_that_time)
            if running is None:
                return
            try:
                yield from self._read(follow=follow)
            except (Broken, Refused) as error:
                if isinstance(error, Refused) and error.status in (400, 404):
                    return  # the pod is gone, or its container has not begun
                if silent_s is None or before != (self._time_ns, self._at_that_time):
                    silent_s = time.monotonic()
                if self._is_over(error, time.monotonic() - silent_s, follow=follow):
                    return
                time.sleep(POLL_S)
                continue
            silent_s = None
            if not (follow and running):
                return
            # The end of the stream may be that of a connection: what the pod says decides.

    def _is_over(self, error: Broken | Refused, silent_s: float, *, follow: bool) -> bool:
        """Whether another pod is looked for. Raises Refused where that would not help."""
        if isinstance(error, Refused) and error.status in (401, 403):
            if silent_s > PATIENCE_S or not self._time_ns:
                raise error
            return False
        if silent_s > GIVEN_UP_S and isinstance(error, Refused) and not follow:
            raise error
        return silent_s > GIVEN_UP_S

    def _read(self, *, follow: bool) -> Iterator[str]:
        """From the second of the last line on, which is as exact as may be asked for; what is known is passed over."""
        query = {"container": SUBMITTER, "follow": str(follow).lower()}
        if self._time_ns:
            query["sinceTime"] = as_second(self._time_ns)
        last, known, seen = self._time_ns, self._at_that_time, 0
        for line in self._api.log(f"{self._path}/log", query):
            if line.time_ns < last:
                continue
            if line.time_ns == last:
                seen += 1
                if seen <= known:
                    continue
            self._at_that_time = self._at_that_time + 1 if line.time_ns == self._time_ns else 1
            self._time_ns = line.time_ns
            yield line.text

    def _is_running(self) -> bool | None:
        """Whether the container goes on; None where it has not begun or the pod is gone."""
        pod = self._api.find(self._path)
        for container in ((pod or {}).get("status") or {}).get("containerStatuses", []):
            if container["name"] == SUBMITTER:
                state = container.get("state") or {}
                return None if "waiting" in state else "running" in state
        return None


def refusal(text: str) -> str | None:
    """What the driver says where it has started nothing, if this line says so."""
    event = event_in(text)
    return str(event.get("message")) if event is not None and event["event"] == "refused" else None

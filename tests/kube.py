"""A real Kubernetes API server for tests, with KubeRay's CRDs, and those who are missing there, played by a test.

    python -m tests.kube        starts one, prints its kubeconfig, and serves until Ctrl-C or SIGTERM

`shared/kube-api/kube-up` starts the server and its etcd; needs Debian's etcd-server. Nothing runs pods there: `Kubelet`
answers for their logs, as the API server asks it; `Operator` does what KubeRay does to a RayJob's status and pods, and
the garbage collector's part; Kueue is a few kinds without a schema, whose objects a test writes.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import urllib3

STARTS_WITHIN_S = 240
ETCD_BELOW = 2653  # where kube-up puts etcd, below the server's port
RAYJOBS = "/apis/ray.io/v1/namespaces/{}/rayjobs"
KUEUE_KINDS = {
    "workloads": ("Workload", "Namespaced"),
    "localqueues": ("LocalQueue", "Namespaced"),
    "clusterqueues": ("ClusterQueue", "Cluster"),
    "resourceflavors": ("ResourceFlavor", "Cluster"),
    "workloadpriorityclasses": ("WorkloadPriorityClass", "Cluster"),
}
NODE = "node-a"


class NoKubernetes(Exception):
    """What starts an API server is not here, or it did not start."""


@dataclass
class Kube:
    """An API server. It is asked here as its admin or another user, past the code under test."""

    folder: Path
    port: int
    kubelet: Kubelet
    command: list[str] = field(default_factory=list)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "state" / "kubeconfig"

    def ask(self, method: str, path: str, body: Any = None, *, who: str = "admin", **query: str) -> requests.Response:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        return requests.request(
            method,
            f"https://127.0.0.1:{self.port}{path}",
            params=query,
            data=None if body is None else json.dumps(body),
            headers={"Authorization": f"Bearer tok-{who}", "Content-Type": kind},
            verify=False,
            timeout=30,
        )

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        answer.raise_for_status()
        return answer.json()

    def make(self, path: str, body: Any) -> Any:
        answer = self.ask("POST", path, body)
        if not answer.ok:
            raise AssertionError(f"{answer.status_code} {answer.json().get('message')}")
        return answer.json()

    def patch(self, path: str, body: Any) -> Any:
        answer = self.ask("PATCH", path, body)
        if not answer.ok:
            raise AssertionError(f"{answer.status_code} {answer.json().get('message')}")
        return answer.json()

    def namespace(self, name: str) -> str:
        self.make("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def apply(self, documents: list[dict[str, Any]]) -> None:
        """Make what is not there yet."""
        for document in documents:
            answer = self.ask("POST", path_of(document), document)
            if not answer.ok and answer.status_code != 409:
                raise AssertionError(f"{document['kind']}: {answer.status_code} {answer.text}")

    def end(self) -> None:
        """The API server dies; its etcd does not."""
        pid = int((self.folder / "state" / "api.pid").read_text())
        self.command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)

    def begin(self) -> None:
        state = self.folder / "state"
        with open(state / "api.log", "ab") as log:
            process = subprocess.Popen(self.command, cwd=state, stdout=log, stderr=log)
        (state / "api.pid").write_text(str(process.pid))
        wait_until(self.is_ready, STARTS_WITHIN_S)

    def is_ready(self) -> bool:
        with suppress(requests.RequestException):
            return self.ask("GET", "/readyz").text == "ok"
        return False

    def tells_of_rayjobs(self) -> bool:
        """Whether it says already what it serves, which it does some seconds after it is ready."""
        served = self.ask("GET", "/apis/ray.io/v1")
        return served.ok and '"rayjobs"' in served.text and "authOptions" in self.ask("GET", "/openapi/v2").text

    def forget_history(self) -> None:
        """etcd drops every version but the present: an older watch has expired (410)."""
        etcd = f"http://127.0.0.1:{self.port - ETCD_BELOW}/v3/kv"
        now = requests.post(f"{etcd}/range", json={"key": "AA=="}, timeout=30).json()["header"]["revision"]
        requests.post(f"{etcd}/compaction", json={"revision": now, "physical": True}, timeout=30)


@contextmanager
def kube(folder: Path, *, shared: Path) -> Iterator[Kube]:
    """An API server with its files in a folder, until the end of the block. Raises NoKubernetes."""
    starter = shared / "kube-api" / "kube-up"
    if not starter.exists():
        raise NoKubernetes(f"no {starter}")
    if shutil.which("etcd") is None:
        raise NoKubernetes("no etcd here: install etcd-server")
    port = _free_port()
    # The program is unpacked once on a machine: it has 120 MB.
    kept = Path(tempfile.gettempdir()) / f"bfp-kube-apiserver-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True)
    if kept.exists():
        (folder / "kube-apiserver").symlink_to(kept)
    try:
        made = subprocess.run(
            [str(starter), str(folder), str(port)],
            capture_output=True,
            text=True,
            timeout=STARTS_WITHIN_S,
            env={**os.environ, "PYTHON": sys.executable},
        )
        if made.returncode:
            raise NoKubernetes(f"{starter} ended with {made.returncode}: {made.stderr[-500:]}")
        if not kept.exists():
            with suppress(OSError):
                shutil.copy(folder / "kube-apiserver", kept.with_suffix(f".{os.getpid()}"))
                kept.with_suffix(f".{os.getpid()}").rename(kept)
        with kubelet(folder) as answering:
            found = Kube(folder, port, answering)
            _add_kueue(found)
            _add_node(found)
            wait_until(found.tells_of_rayjobs)
            yield found
    finally:
        subprocess.run([str(shared / "kube-api" / "kube-down"), str(folder)], timeout=60)
        with suppress(OSError, ValueError):  # without its etcd it would take up to a minute to end
            os.kill(int((folder / "state" / "api.pid").read_text()), signal.SIGKILL)


def path_of(document: dict[str, Any]) -> str:
    """The collection that an object belongs to."""
    group, kind = document["apiVersion"], document["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("s") else f"{kind}s"
    root = f"/api/{group}" if "/" not in group else f"/apis/{group}"
    namespace = document["metadata"].get("namespace")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def wait_until(true: Any, within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until:
            raise AssertionError(f"not within {within_s} s")
        time.sleep(0.1)


# KubeRay's operator --------------------------------------------------------------------------------------------------


NEXT_POD_S = 1.1  # pods are told apart by the second in which they were made; KubeRay and a Job take longer


class Operator:
    """What KubeRay's operator does to one RayJob, a step for each call."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self.name = name
        self.attempt = 0
        self.replaced = 0

    @property
    def path(self) -> str:
        return f"{RAYJOBS.format(self._namespace)}/{self.name}"

    @property
    def job(self) -> Any:
        return self._kube.get(self.path)

    @property
    def cluster(self) -> str:
        return f"{self.name}-{self.attempt:05d}"

    @property
    def submitter(self) -> str:
        return f"{self.name}-s{self.attempt}{'x' * self.replaced}"

    def say(self, **status: Any) -> None:
        """Write to the RayJob's status; "" takes a field away, as the operator's Go leaves it out."""
        written = {name: value if value != "" else None for name, value in status.items()}
        self._kube.patch(f"{self.path}/status", {"status": written})

    def take_up(self) -> None:
        if self.attempt:
            time.sleep(NEXT_POD_S)
        self.attempt += 1
        self.say(jobDeploymentStatus="Initializing", jobStatus="", rayClusterName=self.cluster, jobId=self.name)

    def make_pods(self, *, running: bool = True) -> None:
        """The head, the workers and the submitter, as the templates have them."""
        spec = self.job["spec"]
        cluster = spec["rayClusterSpec"]
        ray = {"ray.io/cluster": self.cluster}
        head = {**ray, "ray.io/node-type": "head", "ray.io/group": "headgroup"}
        self._make_pod(f"{self.cluster}-head", cluster["headGroupSpec"]["template"], head)
        for group in cluster["workerGroupSpecs"]:
            labels = {**ray, "ray.io/node-type": "worker", "ray.io/group": group["groupName"]}
            for number in range(group["replicas"]):
                self._make_pod(f"{self.cluster}-{group['groupName']}-{number}", group["template"], labels)
        if "submitterPodTemplate" in spec:
            self._make_pod(self.submitter, spec["submitterPodTemplate"], {"job-name": self.name})
        if running:
            self.tell(self.submitter, {"running": {}})

    def replace_submitter(self) -> str:
        """The Kubernetes Job's part where the submitter's node is gone; the name of the one that is new."""
        self.replaced += 1
        time.sleep(NEXT_POD_S)
        self._make_pod(self.submitter, self.job["spec"]["submitterPodTemplate"], {"job-name": self.name})
        self.tell(self.submitter, {"running": {}})
        return self.submitter

    def tell(self, pod: str, state: dict[str, Any], *, last: dict[str, Any] | None = None) -> None:
        """What the kubelet says about the first container of a pod."""
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod}"
        container = self._kube.get(path)["spec"]["containers"][0]["name"]
        status = {
            "name": container,
            "image": "x",
            "imageID": "",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
            "lastState": last or {},
        }
        self._kube.patch(f"{path}/status", {"status": {"containerStatuses": [status]}})

    def run(self) -> None:
        self.take_up()
        self.make_pods()
        self.say(jobDeploymentStatus="Running", jobStatus="RUNNING")

    def end(self, job: str, deployment: str, **status: Any) -> None:
        with suppress(requests.HTTPError):  # there may be none
            self.tell(self.submitter, {"terminated": {"exitCode": 0}})
        self._kube.kubelet.end(self.submitter)
        self.say(jobStatus=job, jobDeploymentStatus=deployment, **status)

    def pods(self) -> list[str]:
        """The paths of its pods, those that end included."""
        folder = f"/api/v1/namespaces/{self._namespace}/pods"
        names = [pod["metadata"]["name"] for pod in self._kube.get(folder)["items"]]
        return [f"{folder}/{name}" for name in names if name.startswith(self.name)]

    def delete_pods(self, *, save_s: float = 0.0) -> None:
        """Delete them; they are gone when they have saved, which their kubelets wait for."""
        for path in self.pods() if save_s else []:
            self._kube.ask("DELETE", path)
        time.sleep(save_s)
        for path in self.pods():
            self._kube.ask("DELETE", path, gracePeriodSeconds="0")

    def suspend(self, *, save_s: float = 0.0) -> None:
        """The Ray cluster's object is gone at once and the status says so; the pods follow."""
        self.say(jobDeploymentStatus="Suspending")
        self.say(jobStatus="", jobDeploymentStatus="Suspended", rayClusterName="")
        self.delete_pods(save_s=save_s)
        self._kube.kubelet.end(self.submitter)

    def collect(self, *, save_s: float = 0.0) -> bool:
        """The garbage collector's part in a deletion; whether there was one. The pods end after what owns them."""
        answer = self._kube.ask("GET", self.path)
        if answer.ok and answer.json()["metadata"].get("deletionTimestamp"):
            self._kube.patch(self.path, {"metadata": {"finalizers": None}})
            self.delete_pods(save_s=save_s)
            return True
        return False

    def warn(self, reason: str, message: str, *, pod: str = "") -> None:
        """An event of the RayJob, or of a pod."""
        about = {"kind": "Pod", "name": pod} if pod else {"kind": "RayJob", "name": self.name}
        event = {
            "metadata": {"generateName": "event-", "namespace": self._namespace},
            "involvedObject": {"namespace": self._namespace, **about},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": "2026-01-01T00:00:00Z",
        }
        self._kube.make(f"/api/v1/namespaces/{self._namespace}/events", event)

    def _make_pod(self, name: str, template: dict[str, Any], labels: dict[str, str]) -> None:
        pod = copy.deepcopy(template)
        pod["metadata"] = {"name": name, "labels": {**template["metadata"]["labels"], **labels}}
        pod["spec"]["nodeName"] = NODE
        self._kube.make(f"/api/v1/namespaces/{self._namespace}/pods", pod)


@contextmanager
def looking_after(operator: Operator, *steps: Any, every_s: float = 0.2) -> Iterator[None]:
    """The operator beside the test: each step is (what it waits for in the RayJob, what it does then), in order."""
    stop, failed = threading.Event(), []

    def work() -> None:
        left = list(steps)
        while left and not stop.is_set():
            try:
                answer = operator._kube.ask("GET", operator.path)
                if answer.ok and left[0][0](answer.json()):
                    left.pop(0)[1]()
            except requests.ConnectionError:
                pass  # the server is being started again
            except BaseException as error:
                failed.append(error)
                operator.end("FAILED", "Failed", message=f"the operator of this test: {error}")  # nobody waits on
                return
            stop.wait(every_s)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if failed:
            raise failed[0]


# the kubelet ---------------------------------------------------------------------------------------------------------


class Kubelet:
    """What pods have written, by name. A connection is broken after so many lines as `breaks_after` says."""

    def __init__(self) -> None:
        self.port = 0
        self.breaks_after: list[int] = []
        self.asked = 0
        self.dead: set[str] = set()  # the pods whose node does not answer
        self._lines: dict[str, list[tuple[str, str]]] = {}
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def write(self, pod: str, *texts: str, time_of: str | None = None) -> None:
        with self._changed:
            lines = self._lines.setdefault(pod, [])
            for text in texts:
                lines.append(
                    (time_of or f"2026-01-01T00:{len(lines) // 60:02d}:{len(lines) % 60:02d}.000000001Z", text)
                )
            self._changed.notify_all()

    def end(self, pod: str) -> None:
        with self._changed:
            self._ended.add(pod)
            self._changed.notify_all()

    def lines(self, pod: str, *, follow: bool, since: str) -> Iterator[str]:
        at = 0
        while True:
            with self._changed:
                while follow and at >= len(self._lines.get(pod, [])) and pod not in self._ended:
                    self._changed.wait(1)
                found, at = self._lines.get(pod, [])[at:], len(self._lines.get(pod, []))
                over = not follow or pod in self._ended
            for written, text in found:
                second = datetime.fromisoformat(written).replace(microsecond=0)
                if not since or second >= datetime.fromisoformat(since):
                    yield f"{written} {text}\n"
            if over and at >= len(self._lines.get(pod, [])):
                return


@contextmanager
def kubelet(folder: Path) -> Iterator[Kubelet]:
    """A kubelet that answers for logs, over TLS, as the API server asks."""
    found = Kubelet()
    key, certificate = folder / "kubelet.key", folder / "kubelet.crt"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            pod, query = asked.path.split("/")[3], parse_qs(asked.query)
            found.asked += 1
            if pod in found.dead:
                self.send_error(500)
                return
            breaks = found.breaks_after.pop(0) if found.breaks_after else None
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            follow = query.get("follow", ["false"])[0] == "true"
            for number, line in enumerate(found.lines(pod, follow=follow, since=query.get("sinceTime", [""])[0])):
                if number == breaks:
                    self.connection.close()
                    self.close_connection = True
                    return
                data = line.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            """Nothing: it is asked often."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A broken connection is what tests are about."""

    server = Server(("127.0.0.1", 0), Answer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    found.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


# what the server is given ---------------------------------------------------------------------------------------------


def _add_node(found: Kube) -> None:
    found.make("/api/v1/nodes", {"metadata": {"name": NODE}})
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": found.kubelet.port}},
    }
    found.patch(f"/api/v1/nodes/{NODE}/status", {"status": status})


def _add_kueue(found: Kube) -> None:
    group, anything = "kueue.x-k8s.io", {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    for plural, (kind, scope) in KUEUE_KINDS.items():
        versions = [
            {"name": name, "served": True, "storage": newest, "schema": {"openAPIV3Schema": anything}}
            for name, newest in (("v1beta2", True), ("v1beta1", False))
        ]
        crd = {
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {
                "group": group,
                "scope": scope,
                "names": {"plural": plural, "singular": kind.lower(), "kind": kind},
                "versions": versions,
            },
        }
        found.make("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    wait_until(lambda: found.ask("GET", f"/apis/{group}/v1beta2/namespaces/default/workloads").ok)


def _free_port() -> int:
    """One whose neighbours for etcd are free as well."""
    while True:
        port = random.randrange(23000, 32000)
        with suppress(OSError):
            for wanted in (port, port - ETCD_BELOW, port - ETCD_BELOW + 10):
                with socket.create_server(("127.0.0.1", wanted)):
                    pass
            return port


def main() -> None:
    shared = Path(os.environ.get("BFP_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, while it starts too
    with (
        suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="kube-", ignore_cleanup_errors=True) as folder,
        kube(Path(folder), shared=shared) as made,
    ):
        print(f"export KUBECONFIG={made.kubeconfig}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

"""The API server of a Kubernetes cluster, by paths and plain objects, as long as it takes.

Who follows a run for a week meets restarts of the API server, connections that break, watches that have expired and
requests that are turned away because too many come: none of them is an error, each is asked again. After a restart the
server moreover knows for a moment neither its rights nor its kinds, and says 403 and 404: what it has allowed once
before is asked again as well.

What it refuses for good raises Refused, for whoever knows what was wanted; what cannot be reached raises InputError.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any

from bfp.errors import InputError

FIRST_S = 6.0  # before it has answered once: an address may be wrong
PATIENCE_S = 180.0
GRANTED_S = 45.0  # what was allowed once is refused for so long only
PAUSE_S = 1.0
CONNECT_S, READ_S = 5.0, 30.0
QUIET_S = 300.0  # a log may be silent; a connection that has died silently is found after so long

TOO_MANY, SERVER_ERRORS = 429, (500, 502, 503, 504)
KUBECONFIG_NAMES = "KUBECONFIG names another file"
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"

# As a kubelet writes it: to the nanosecond, without zeros at the end, in the time zone of its node.
_WRITTEN = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


class Refused(Exception):
    """What the API server refused. reason, message: its own; no_api: it does not know of such objects at all."""

    def __init__(self, status: int, reason: str, message: str, *, no_api: bool = False) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        self.no_api = no_api
        super().__init__(f"{status} {reason}: {message}")


class Broken(Exception):
    """A stream that ended before its end."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a pod's log and when it was written, nanoseconds since 1970 (UTC)."""

    time_ns: int
    text: str


def instant_ns(written: str) -> int | None:
    """The instant of a kubelet's timestamp, nanoseconds since 1970 (UTC); None where it is none."""
    found = _WRITTEN.fullmatch(written)
    if found is None:
        return None
    second, fraction, zone = found.groups()
    second_s = round(datetime.fromisoformat(second + zone).timestamp())
    return second_s * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def as_second(time_ns: int) -> str:
    """The second of an instant, as the API server takes it."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class KubeApi:
    """One API server, as a context of the kubeconfig describes it; inside a pod without one, that of its cluster."""

    def __init__(self, context: str | None, *, where: str) -> None:
        self._where = where
        self._context = context
        self._made: Any = None
        self._met = False
        self._granted: set[tuple[str, str]] = set()

    @property
    def server(self) -> str:
        return str(self._client.configuration.host)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._asked("GET", path, query=query)

    def find(self, path: str) -> dict[str, Any] | None:
        """What is at a path; None where nothing is, although it might be."""
        try:
            return self.get(path)
        except Refused as error:
            if error.status == 404 and not error.no_api:
                return None
            raise

    def items(self, path: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(path, query).get("items") or []
        return found

    def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("POST", path, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("PATCH", path, body=body)

    def delete(self, path: str, *, uid: str) -> None:
        """Delete this very object, and before it what belongs to it. Refused with 409 where another has its name."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        self._asked("DELETE", path, body={**options, "preconditions": {"uid": uid}})

    def await_change(self, path: str, *, name: str, version: str, wait_s: float) -> None:
        """Return when an object of a list has changed since a version of it, or may have, at last after wait_s.

        A watch that has expired (410) or breaks tells nothing but that it is time to look again.
        """
        began = time.monotonic()
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": version,
            "timeoutSeconds": str(math.ceil(wait_s)),
        }
        try:
            with closing(self._stream(path, query, read_s=wait_s + READ_S)) as lines:
                for line in lines:
                    if json.loads(line).get("type") != "ERROR":
                        return
                    break
        except (Broken, Refused, ValueError):
            pass
        if time.monotonic() - began < min(PAUSE_S, wait_s):
            time.sleep(min(PAUSE_S, wait_s))

    def log(self, path: str, query: Mapping[str, str]) -> Iterator[Line]:
        """The lines of a pod's log. Raises Broken where the connection does.

        What has no time is the kubelet's own word and not the pod's.
        """
        with closing(self._stream(path, {**query, "timestamps": "true"}, read_s=QUIET_S)) as lines:
            for line in lines:
                written, _, text = line.partition(" ")
                if (time_ns := instant_ns(written)) is not None:
                    yield Line(time_ns, text)

    # inside ----------------------------------------------------------------------------------------------------------

    def _asked(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What it answers, asked again for as long as that may help."""
        began = time.monotonic()
        while True:
            waited_s = time.monotonic() - began
            try:
                with self._answers(waited_s):
                    answer = self._call(method, path, query, body, (CONNECT_S, READ_S))
                    found: dict[str, Any] = json.loads(answer.data)
            except Refused as error:
                if not self._may_pass(error, method, path, waited_s):
                    if error.status == 404 and not error.no_api:
                        self._granted.add((method, path))
                    raise
            except _Passing:
                pass
            else:
                self._met = True
                self._granted.add((method, path))
                return found
            time.sleep(PAUSE_S)

    def _may_pass(self, error: Refused, method: str, path: str, waited_s: float) -> bool:
        if error.status == TOO_MANY or error.status in SERVER_ERRORS:
            return waited_s < (PATIENCE_S if self._met else FIRST_S)
        forgotten = error.status in (401, 403) or error.no_api
        return forgotten and (method, path) in self._granted and waited_s < GRANTED_S

    @contextmanager
    def _answers(self, waited_s: float) -> Iterator[None]:
        """Raises _Passing where it does not answer and may do so later, InputError where it has not for too long."""
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (HTTPError, OSError, ValueError) as error:
            if waited_s < (PATIENCE_S if self._met else FIRST_S):
                raise _Passing from error
            said = "since minutes" if self._met else "is the address right, and is a tunnel or VPN needed?"
            raise InputError(
                f"{self._where}: the API server {self.server} does not answer ({type(error).__name__}): {said}"
            ) from error

    def _stream(self, path: str, query: Mapping[str, str], *, read_s: float) -> Generator[str, None, None]:
        """What it sends, line by line as it comes. Raises Broken where it stops in between, Refused at once."""
        from urllib3.exceptions import HTTPError

        try:
            answer = self._call("GET", path, query, None, (CONNECT_S, read_s))
            try:
                rest = b""
                for chunk in answer.stream(amt=None, decode_content=False):
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        yield line.decode("utf-8", "replace")
                if rest:
                    yield rest.decode("utf-8", "replace")
            finally:
                answer.close()
        except (HTTPError, OSError) as error:
            raise Broken(str(error)) from error

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        timeouts_s: tuple[float, float],
    ) -> Any:
        from kubernetes.client.exceptions import ApiException

        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            with _hushed():
                return self._client.call_api(
                    path,
                    method,
                    query_params=list((query or {}).items()),
                    header_params={"Accept": "application/json", "Content-Type": kind},
                    body=body,
                    auth_settings=["BearerToken"],
                    _return_http_data_only=True,
                    _preload_content=False,
                    _request_timeout=timeouts_s,
                )
        except ApiException as error:
            if error.status:
                raise _refused(error) from error
            raise self._of_tls(error) from error
        except AttributeError as error:  # the client decodes the body of an answer that there was none of
            if not isinstance(error.__context__, ApiException):
                raise
            raise self._of_tls(error.__context__) from error

    def _of_tls(self, error: Any) -> Exception:
        """What a failure of TLS is: final where the certificate is not trusted, else a connection that broke."""
        from urllib3.exceptions import SSLError

        said = str(error.reason).strip()
        return InputError(f"{self._where}: {self.server}: {said}") if UNTRUSTED in said else SSLError(said)

    @property
    def _client(self) -> Any:
        if self._made is None:
            if find_spec("kubernetes") is None:
                raise InputError(f"{self._where}: needs the client of Kubernetes: pip install 'bfp[cluster]'")
            with _hushed():
                self._made = _client_of(self._context, where=self._where)
        return self._made


class _Passing(Exception):
    """No answer, for the moment."""


def _refused(error: Any) -> Refused:
    try:
        said = json.loads(error.body)
    except (TypeError, ValueError):
        said = {}
    if said.get("kind") != "Status":
        return Refused(error.status, str(error.reason), str(error.body)[:200], no_api=error.status == 404)
    return Refused(error.status, str(said.get("reason", "")), str(said.get("message", "")))


@contextmanager
def _hushed() -> Iterator[None]:
    """Nothing is logged on the screen by the client, which runs the program of a kubeconfig that gives credentials.

    It logs on the root logger that the program has failed, and asks as nobody; what the server says to that is told.
    """
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)  # without one, logging sets up one that writes to the screen
    try:
        yield
    finally:
        root.removeHandler(silent)


def _client_of(context: str | None, *, where: str) -> Any:
    import urllib3
    import yaml
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    settings = client.Configuration()
    # The file may have been named after the client was imported, which reads the variable once.
    file = os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")
    try:
        if context is None and "KUBERNETES_SERVICE_HOST" in os.environ and not os.path.exists(file):
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(config_file=file, context=context, client_configuration=settings)
    except ConfigException as error:
        chosen = f"context {context} of {file}" if context else file
        said = str(error).partition("{")[0]  # behind it stands the entry itself, which may hold a token
        raise InputError(
            f"{where}: {chosen}: {said}; `kubectl config get-contexts` lists what there is, and {KUBECONFIG_NAMES}"
        ) from error
    except OSError as error:
        raise InputError(f"{where}: {file}: cannot be read: {error.strerror}; {KUBECONFIG_NAMES}") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:  # it looks into whatever it has read
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1}: {getattr(error, 'problem', '')})" if mark else ""
        raise InputError(f"{where}: {file}: no kubeconfig{line}: put it right; {KUBECONFIG_NAMES}") from error
    settings.retries = False  # they are ours
    if not settings.verify_ssl:  # the kubeconfig says so, and kubectl does not warn either
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return client.ApiClient(settings)

"""A Ray cluster that is up, by its Jobs API: jobs are sent to the head's dashboard, and run beside it.

A job's id is made of the run and of which attempt it is, so that of two who send the same at once one job comes about.
Ray keeps jobs in its head: a cluster that was made anew knows of none, and the run folder tells what was done.

Ray's ports run whatever they are sent: a cluster asks for a token (RAY_AUTH_MODE=token), which the profile refers to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import closing, contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bfp
from bfp.drivers import Capacity
from bfp.errors import InputError
from bfp.runs import Listener
from bfp.specs.clusters import RayTarget
from bfp.specs.target import Secret
from bfp.targets.cluster import OVER, Check, Job, Stage
from bfp.targets.events import is_note
from bfp.targets.letter import COMMAND, Letter, run_digest
from bfp.targets.stopping import STOPPING

STOP_GRACE_S = 600  # Ray gives a driver 3 s to end; a step of pretraining and its checkpoint take longer
TIMEOUT_S = 10.0
ANSWER_S = 60.0  # of the Jobs API, which may have a package to unpack first
QUIET_S = 60.0  # a log that is silent for so long is asked for anew: its connection may have died without a word
RECONNECTS = 30  # times on end that a cluster which does not answer is asked again
MOST_NODES = "10000"  # without it Ray tells of a hundred
STAGES: dict[str, Stage] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


class RayJobs:
    """The Jobs API of one cluster."""

    def __init__(self, name: str, settings: RayTarget) -> None:
        self._name = name
        self._settings = settings
        self._client: Any = None

    def capacity(self) -> Capacity:
        nodes = self._nodes()
        total = {what: sum(node["resources_total"].get(what, 0) for node in nodes) for what in ("CPU", "GPU", "memory")}
        return Capacity(int(total["CPU"]), int(total["GPU"]), total["memory"] / 1e9, f"the cluster {self._name}")

    def nodes(self) -> int:
        return 0

    def lent(self) -> None:
        return None

    def manifest(self, letter: Letter) -> str:
        sent = {
            "submission_id": self._id(letter.run, letter.spec.name, 1),
            "entrypoint": COMMAND,
            "metadata": self._metadata(letter),
            "runtime_env": {
                "env_vars": self._environment(letter),
                **({"py_modules": [str(package_folder())]} if self._settings.code == "package" else {}),
            },
        }
        return json.dumps(sent, indent=2, ensure_ascii=False)

    def jobs(self, run: str) -> list[Job]:
        with self._telling():
            found = [job for job in self._jobs_api().list_jobs() if (job.metadata or {}).get("bfp_run") == run]
        return [_job(job) for job in sorted(found, key=lambda job: job.start_time or 0)]

    def send(self, letter: Letter, *, attempt: int, listener: Listener) -> Job:
        sent = json.loads(self.manifest(letter))
        sent["submission_id"] = self._id(letter.run, letter.spec.name, attempt)
        with self._telling():
            client = self._jobs_api()
            try:
                client.submit_job(**sent)
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
            return _job(client.get_job_info(sent["submission_id"]))

    def lines(self, job: Job, *, follow: bool) -> Iterator[str]:
        """The connection may break at any time: it is made again, and what was heard before is passed over."""
        if not follow:
            with self._telling():
                yield from self._jobs_api().get_job_logs(job.id).splitlines()
            return
        heard, silent = 0, 0
        while True:
            skip, rest, why = heard, "", "it was closed"
            try:
                with closing(self._chunks(job)) as chunks:
                    for chunk in chunks:
                        *whole, rest = (rest + chunk).split("\n")
                        for line in whole:
                            skip -= 1
                            if skip < 0:
                                heard += 1
                                yield line
            except _Broken as error:
                why = str(error)
            try:
                stage = self._stage(job)
                silent = 0
            except InputError as error:
                silent += 1
                if silent > RECONNECTS:
                    raise InputError(
                        f"{self._settings.address}: the cluster did not answer {silent} times on end ({why}); where it "
                        "is up the job goes on by itself: submit the same again to follow it, or to go on"
                    ) from error
                time.sleep(1.0)
                continue
            if stage is None:  # the cluster was made anew
                return
            if stage in OVER:
                yield from self._rest(job, heard)
                return
            time.sleep(1.0)

    def ends(self, job: Job) -> bool:
        """By its log: Ray's Jobs API does not tell that a job was told to stop."""
        return any(is_note(line, STOPPING) for line in self.lines(job, follow=False))

    def stop(self, job: Job) -> None:
        with self._telling():
            self._jobs_api().stop_job(job.id)

    def checks(self) -> Iterator[Check]:
        there = str(self._get("/api/version")["ray_version"])
        yield Check("reachable", "ok", f"{self._settings.address} lets us in")
        here = metadata.version("ray")
        if there == here:
            yield Check("Ray", "ok", f"{there} on both sides")
        else:
            yield Check(
                "Ray", "warn", f"{there} there, {here} here", "the driver runs there: bfp has to be made for that one"
            )
        nodes = self._nodes()
        of = self.capacity()
        yield Check("nodes", "ok", f"{len(nodes)}, {of.cpus} CPUs, {of.gpus} GPUs, {of.memory_gb:.0f} GB")

    # inside ----------------------------------------------------------------------------------------------------------

    def _id(self, run: str, name: str, attempt: int) -> str:
        return f"bfp-{name}-{run_digest(run)}-{attempt}"

    def _metadata(self, letter: Letter) -> dict[str, str]:
        return {"bfp_run": letter.run, "bfp_spec": letter.digest, "bfp": bfp.__version__}

    def _environment(self, letter: Letter) -> dict[str, str]:
        return {
            **self._settings.env,
            **letter.environment(),
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S),
        }

    def _headers(self) -> dict[str, str]:
        token = read_secret(self._settings.token, where=f"[{self._name}] token")
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def _jobs_api(self) -> Any:
        if self._client is None:
            if find_spec("aiohttp_cors") is None:  # of ray[default] alone
                raise InputError(f"--on {self._name}: needs Ray's job client: pip install 'bfp[cluster]'")
            # Both would be taken in place of the address that is given.
            for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
                os.environ.pop(name, None)
            from ray.job_submission import JobSubmissionClient

            class Client(JobSubmissionClient):
                """Which gives up on an answer that does not come: Ray's waits for ever."""

                def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
                    return super()._do_request(method, endpoint, **{"timeout": ANSWER_S, **more})

            for name in ("job.sdk", "dashboard_sdk"):
                logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
            self._client = Client(self._settings.address, headers=self._headers())
        return self._client

    def _nodes(self) -> list[dict[str, Any]]:
        alive = {
            "detail": "1",
            "limit": MOST_NODES,
            "filter_keys": "state",
            "filter_predicates": "=",
            "filter_values": "ALIVE",
        }
        found: list[dict[str, Any]] = self._get("/api/v0/nodes", alive)["data"]["result"]["result"]
        return found

    def _get(self, path: str, parameters: dict[str, str] | None = None) -> dict[str, Any]:
        """What the dashboard answers; a dry run asks it so, without importing Ray."""
        import requests

        with self._telling():
            answer = requests.get(
                f"{self._settings.address}{path}", params=parameters, headers=self._headers(), timeout=TIMEOUT_S
            )
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        return found

    def _stage(self, job: Job) -> Stage | None:
        """None where the cluster answers and knows nothing of the job: it was made anew."""
        with self._telling():
            found = [_job(each) for each in self._jobs_api().list_jobs() if each.submission_id == job.id]
        return found[0].stage if found else None

    def _rest(self, job: Job, heard: int) -> list[str]:
        """The lines of a job that is over behind those that were heard, parted as these were."""
        with self._telling():
            text = str(self._jobs_api().get_job_logs(job.id))
        return text.removesuffix("\n").split("\n")[heard:] if text else []

    def _chunks(self, job: Job) -> Generator[str, None, None]:
        """The log from its beginning, as it grows. Raises _Broken where the connection does, or is silent."""
        import aiohttp

        async def following(tail: AsyncIterator[str]) -> str:  # in the loop, which then closes what is left open
            return await asyncio.wait_for(anext(tail), QUIET_S)

        with asyncio.Runner() as loop:
            with self._telling():
                tail = self._jobs_api().tail_job_logs(job.id)
            while True:
                try:
                    yield loop.run(following(tail))
                except StopAsyncIteration:
                    return
                except (RuntimeError, OSError, aiohttp.ClientError) as error:
                    raise _Broken(str(error)) from error

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the cluster's answer means, in plain words."""
        import requests

        try:
            yield
        except requests.exceptions.HTTPError as error:
            self._tell_status(error.response.status_code if error.response is not None else 0, error)
        except requests.exceptions.RequestException as error:
            self._tell_silence(error)
        except ConnectionError as error:
            self._tell_silence(error)
        except Exception as error:  # the Jobs client's own, which are RuntimeError, and Ray's AuthenticationError
            of_a_token = type(error).__name__ == "AuthenticationError"
            if not (of_a_token or isinstance(error, RuntimeError)):
                raise
            said = str(error)
            status = 401 if "Authentication required" in said else 403 if "Authentication failed" in said else 0
            self._tell_status(status, error)

    def _tell_silence(self, error: Exception) -> None:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise InputError(
                f"{self._settings.address}: the certificate of the cluster {self._name} is not trusted here: name the "
                "file of who has signed it in REQUESTS_CA_BUNDLE"
            ) from error
        raise InputError(
            f"{self._settings.address}: the cluster {self._name} does not answer ({type(error).__name__}); is the "
            "address right, is the cluster up, and is a tunnel or VPN needed?"
        ) from error

    def _tell_status(self, status: int, error: Exception) -> None:
        address = self._settings.address
        if status == 401 and self._settings.token is None:
            raise InputError(
                f"{address}: the cluster {self._name} asks for a token (401), and none was sent: name where it is "
                f'found in bfp.toml, [{self._name}] token = {{env = "RAY_AUTH_TOKEN"}}'
            ) from error
        if status == 401:
            raise InputError(
                f"{address}: what answers for the cluster {self._name} does not take the token that was sent (401): it "
                "may be a proxy that wants another login; ask whoever runs the cluster"
            ) from error
        if status == 403:
            raise InputError(
                f"{address}: the cluster {self._name} does not take the token that was sent (403): it is another "
                "cluster's, or was made anew; ask whoever runs the cluster for it"
            ) from error
        said = str(error).strip().partition("\n")[0]
        raise InputError(f"{address}: the cluster {self._name} answered: {said}") from error


class _Broken(Exception):
    """A connection that ended before the job did."""


def _job(found: Any) -> Job:
    stage = STAGES.get(str(getattr(found.status, "value", found.status)), "running")
    said = (found.message or "").partition(", last available logs")[0].strip() if stage in ("waiting", "failed") else ""
    return Job(found.submission_id, stage, said, found.driver_exit_code, (found.metadata or {}).get("bfp_spec", ""))


def read_secret(secret: Secret | None, *, where: str) -> str | None:
    """A secret from where the profile says that it is. Raises InputError where it is not there."""
    if secret is None:
        return None
    if secret.env is not None:
        if not os.environ.get(secret.env):
            raise InputError(f"{where}: the environment variable {secret.env} is not set")
        return os.environ[secret.env].strip()
    assert secret.file is not None
    try:
        return Path(secret.file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(f"{where}: {secret.file}: cannot be read: {error.strerror}") from error


def package_folder() -> Path:
    """The bfp that runs here, as it is sent where `code` is `package`."""
    return Path(bfp.__file__).parent

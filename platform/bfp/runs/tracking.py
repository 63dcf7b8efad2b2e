"""A run's figures and spec to MLflow as well, where the profile names a server or a folder (extra `mlflow`).

A thread of its own sends them, so that a server that is slow or away neither delays nor ends a run: the first trouble
is told, and nothing is sent from then on; the run's folder has it all. There is one MLflow run for a run's folder,
found again by its tag when it is submitted again. Credentials come from where MLflow looks for them (its environment
variables); what is sent are figures, the fields of the spec as parameters, and spec.yaml.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

EXPERIMENT = "bfp"
TAG = "bfp.run"
SEND_S = 5.0  # figures are gathered for so long
END_S = 30.0  # the end of a run waits for the last of them at the most so long
_METRICS_PER_CALL, _PARAMETERS_PER_CALL, _LONGEST = 1000, 100, 500

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # without it MLflow 3 refuses folders
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Tracker:
    """Sends what one submission of a run says. uri: of the server or folder; folder: the run's, which is its tag."""

    def __init__(self, uri: str, *, folder: str, name: str, kind: str, spec_yaml: str) -> None:
        self._uri = uri
        self._tags = {TAG: folder, "bfp.kind": kind}
        self._name, self._spec_yaml = name, spec_yaml
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, float], int] | str] = queue.SimpleQueue()
        self._trouble: str | None = None
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Figures of one step; returns at once."""
        if self._thread.is_alive():  # else there was trouble, and nobody will take them
            self._waiting.put((step, {name: float(value) for name, value in values.items()}, _now_ms()))

    def trouble(self) -> str | None:
        """What went wrong, in a sentence, the first time that this is asked after it did."""
        found, self._trouble = self._trouble, None
        return found

    def close(self, outcome: str) -> None:
        """Send what is left and say how it ended (as `RunFolder.outcome`), for END_S at the most."""
        self._waiting.put(outcome)
        self._thread.join(END_S)
        if self._thread.is_alive():
            self._trouble = f"{self._uri}: MLflow has not taken the last figures within {END_S:.0f} s"

    def _send(self) -> None:
        try:
            self._track()
        except Exception as error:  # whatever its client raises: tracking is beside the run, and the run goes on
            reason = str(error).partition("\n")[0]
            self._trouble = (
                f"{self._uri}: MLflow cannot be reached or refuses ({type(error).__name__}: {reason}); figures go to "
                "the run's folder alone"
            )

    def _track(self) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        client = MlflowClient(tracking_uri=self._uri)
        run_id = self._known(client)
        if run_id is None:
            run_id = self._new(client)
            parameters = [Param(name, value) for name, value in _leaves(yaml.safe_load(self._spec_yaml))]
            for at in range(0, len(parameters), _PARAMETERS_PER_CALL):  # may not change later: an extended run's do
                client.log_batch(run_id, params=parameters[at : at + _PARAMETERS_PER_CALL])
        client.log_text(run_id, self._spec_yaml, "spec.yaml")
        outcome = None
        while outcome is None:
            metrics = list[Any]()
            until = time.monotonic() + SEND_S
            while outcome is None and len(metrics) < _METRICS_PER_CALL:
                try:
                    said = self._waiting.get(timeout=max(until - time.monotonic(), 0.001))
                except queue.Empty:
                    break
                if isinstance(said, str):
                    outcome = said
                else:
                    step, values, at_ms = said
                    metrics += [Metric(name, value, at_ms, step) for name, value in values.items()]
            for at in range(0, len(metrics), _METRICS_PER_CALL):
                client.log_batch(run_id, metrics=metrics[at : at + _METRICS_PER_CALL])
        ends = {"done": "FINISHED", "interrupted": "KILLED"}
        client.set_terminated(run_id, status=ends.get(outcome, "FAILED"))

    def _known(self, client: Any) -> str | None:
        """The MLflow run of this folder, which goes on; None where there is none."""
        experiment, page = client.get_experiment_by_name(EXPERIMENT), None
        while experiment is not None:
            runs = client.search_runs([experiment.experiment_id], page_token=page)
            for run in runs:
                if run.data.tags.get(TAG) == self._tags[TAG]:
                    client.update_run(run.info.run_id, status="RUNNING")
                    return str(run.info.run_id)
            if not (page := runs.token):
                break
        return None

    def _new(self, client: Any) -> str:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT)
        return str(client.create_run(number, run_name=self._name, tags=self._tags).info.run_id)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a spec that hold plain values or lists, by dotted path, as text of at most _LONGEST characters."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _leaves(entry, f"{path}.{name}".lstrip("."))
    elif path and value is not None:
        yield path, str(value)[:_LONGEST]


def _now_ms() -> int:
    return int(time.time() * 1000)

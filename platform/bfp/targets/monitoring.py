"""A run's figures as Ray's metrics, which Prometheus takes from every node: `infra/monitoring` shows them.

Ray puts `ray_` before their names. Each has the tags `run` (its name) and `kind`.

    bfp_done, bfp_total          units of the phase that goes on
    bfp_stacks, bfp_rejected     ingest: stacks written, scans left out
    bfp_repeats                  requests to the storage that had to be repeated
    bfp_loss, bfp_samples_per_s, bfp_data_wait_share, bfp_flop_utilisation     pretraining
    bfp_warnings_total           how many there were: a node or worker that was lost is one
"""

from __future__ import annotations

from typing import Any

from bfp.runs import Event

FIGURES = ("done", "total", "stacks", "rejected", "repeats")
FIGURES_OF_STEPS = ("loss", "samples_per_s", "data_wait_share", "flop_utilisation")
NAMES = [f"bfp_{name}" for name in (*FIGURES, *FIGURES_OF_STEPS, "warnings_total")]


class Monitored:
    """A listener of a run, on a Ray that is up."""

    def __init__(self, *, run: str, kind: str) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = {"run": run, "kind": kind}
        self._gauges: dict[str, Any] = {
            name: Gauge(f"bfp_{name}", tag_keys=("run", "kind")) for name in (*FIGURES, *FIGURES_OF_STEPS)
        }
        self._warnings = Counter("bfp_warnings_total", tag_keys=("run", "kind"))
        for metric in (*self._gauges.values(), self._warnings):
            metric.set_default_tags(tags)

    def __call__(self, event: Event) -> None:
        if event["event"] == "warning":
            self._warnings.inc()
        for name, value in event.items():
            if name in self._gauges and isinstance(value, int | float):
                self._gauges[name].set(value)

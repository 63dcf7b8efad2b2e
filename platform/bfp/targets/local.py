"""The target `local`: Ray inside this process, on this machine.

A run is checked before anything is written: the output can be written to, the name is not another spec's, nobody runs
it now, the machine has what the spec claims, and the driver's plan finds its inputs.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import bfp
from bfp import drivers, reports
from bfp.drivers import Plan
from bfp.errors import InputError, Interrupted
from bfp.runs import Listener, Run, RunFolder
from bfp.specs import Pretrain, Spec, dump, loads
from bfp.specs.submitting import differences
from bfp.storage import Place, place
from bfp.targets.failures import in_plain_words
from bfp.targets.hush import Hush
from bfp.targets.ray_here import cpus_here, start_ray, stop_ray
from bfp.targets.stopping import StopOnSignal


class Local:
    """This machine. Within `with`, jobs share one Ray, started by the first of them and ended on leaving."""

    def __init__(self, *, cpus: int | None = None) -> None:
        self._cpus = cpus or cpus_here()
        self._logs: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._logs is None:
            return
        failed = error is not None and not isinstance(error, Interrupted | InputError)
        if error is not None and failed:
            error.add_note(f"Ray's own logs: {self._logs}")
        stop_ray(self._logs, keep_logs=failed)
        self._logs = None

    def plan(self, spec: Spec) -> Plan:
        """What the run will do. Raises InputError, with nothing written, for what would keep it from running."""
        folder = run_folder(spec)
        place(spec.output).check_writable()
        check_name(spec, RunFolder(folder))
        check_claims(spec, cpus=self._cpus)
        return drivers.plan(spec)

    def submit(self, spec: Spec, *, listener: Listener) -> RunFolder:
        """Run the spec to its end, or go on where an earlier submission stopped; then write its report.

        Raises what went wrong as a BfpError; Interrupted when the user stopped it.
        """
        folder = run_folder(spec)
        run = Run(folder, spec_yaml=run_spec(spec), kind=spec.kind, version=bfp.__version__, listener=listener)
        with StopOnSignal(run, tell=lambda text: listener({"event": "note", "message": text})) as signals:
            going_on = ExitStack()
            going_on.enter_context(run)  # raises InputError, and leaves no page, where somebody else runs it
            try:
                with going_on:
                    self._drive(spec, run, signals)
            finally:
                reports.write_page(RunFolder(folder))
        if run.stopping:
            raise Interrupted(f"{spec.name} had just finished")
        return RunFolder(folder)

    def _drive(self, spec: Spec, run: Run, signals: StopOnSignal) -> None:
        run.phase("starting")
        with Hush() as hush:
            try:
                self._start_ray()
                signals.arm()
                drivers.execute(spec, run)
            except KeyboardInterrupt as error:
                raise Interrupted("stopped at once; what was committed or saved stays") from error
            except Exception as error:  # whatever a driver or Ray raises ends here, told in plain words
                if self._logs is not None:
                    Path(self._logs, "stderr.log").write_bytes(hush.heard())
                raise in_plain_words(error) from error
            finally:
                signals.settle()

    def _start_ray(self) -> None:
        import ray

        if not ray.is_initialized():  # one that a program of the user's has started is used, and left to it
            self._logs = start_ray(cpus=self._cpus)


def run_folder(spec: Spec) -> Place:
    """The folder of a spec's run."""
    return place(spec.output) / spec.name


def run_spec(spec: Spec) -> str:
    """What stands in a run's spec.yaml: the resolved spec under the version that resolved it."""
    return f"# resolved by bfp {bfp.__version__}\n{dump(spec)}"


def check_name(spec: Spec, run: RunFolder) -> None:
    """Raise InputError where the name is that of a run by another spec, or of one that is going on."""
    text = run.spec_text()
    if text is None:
        return
    try:
        before = loads(text, file=f"{run.folder}/spec.yaml")
    except InputError as error:
        raise InputError(
            f"{run.folder}: a run by another version of bfp, whose spec this one cannot read; give --name another"
        ) from error
    if changed := differences(before, spec):
        lines = "\n".join(f"    {entry.path}: {entry.old} → {entry.new}" for entry in changed)
        raise InputError(
            f"{run.folder}: a run with this name was made from another spec (its value → the new one):\n{lines}\n"
            "  give --name another, or take the changes back; `compute` and the checkpoints' cadence may change freely"
        )
    if holder := run.holder():
        raise InputError(
            f"{run.folder}: this run is going on (process {holder['pid']} on {holder['host']}); "
            f"follow it with `bfp status {run.folder}`"
        )


def check_claims(spec: Spec, *, cpus: int) -> None:
    """Raise InputError where training would wait for ever for CPUs that this machine does not have."""
    if not isinstance(spec, Pretrain):
        return
    claimed = spec.compute.workers * spec.compute.cpus_per_worker
    if claimed > cpus:
        raise InputError(
            f"compute: {spec.compute.workers} × {spec.compute.cpus_per_worker} CPUs are claimed and this machine has "
            f"{cpus}; lower compute.workers or compute.cpus_per_worker"
        )

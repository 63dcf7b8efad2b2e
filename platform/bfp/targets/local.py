"""The target `local`: Ray inside this process, on this machine; on a cluster, the Ray that the driver has joined.

A run is checked before anything is written: the output can be written to, the name is not another spec's, nobody runs
it now, the machine has what the spec claims, and the driver's plan finds its inputs. What goes wrong from then on is
the run's failure, whoever's fault it is: it has left a run folder, which says so.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import bfp
from bfp import drivers, reports
from bfp.drivers import Capacity, Plan, capacity_here
from bfp.errors import InputError, Interrupted, JobFailed
from bfp.runs import Listener, Run, RunFolder
from bfp.specs import Pretrain, Spec
from bfp.specs.profile import NO_PROFILE, Profile
from bfp.storage import place
from bfp.targets.checks import (
    check_claims,
    check_idle,
    check_same_spec,
    check_tracking,
    claims,
    run_folder,
    run_spec,
    with_claims,
)
from bfp.targets.failures import in_plain_words
from bfp.targets.hush import Hush
from bfp.targets.ray_here import set_environment, start_ray, stop_ray
from bfp.targets.ray_there import nodes_watched
from bfp.targets.stopping import GRACE_S, StopOnSignal


class Local:
    """This process. Within `with`, jobs share one Ray, started by the first of them and ended on leaving.

    joined: what the cluster lends whose Ray this process has joined; without it, this machine.
    """

    def __init__(
        self, *, cpus: int | None = None, joined: Capacity | None = None, profile: Profile = NO_PROFILE
    ) -> None:
        self._profile = profile
        self._joined = joined is not None
        self._capacity = joined or capacity_here(cpus)
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
        output, run = place(spec.output), RunFolder(run_folder(spec))
        output.check_writable()
        if (text := run.spec_text()) is not None:
            check_same_spec(spec, text, run=run)
        check_idle(run)
        check_claims(spec, self._capacity)
        check_tracking(self._profile)
        plan = drivers.plan(spec, capacity=self._capacity, profile=self._profile)
        if not output.creates_once():
            plan.warnings.append(
                f"{output}: this object store ignores conditional writes (If-None-Match), so nothing keeps two "
                "submitters from running one run at the same time; see to it that only one does"
            )
        return plan

    def submit(self, spec: Spec, *, listener: Listener) -> RunFolder:
        """Run the spec to its end, or go on where an earlier submission stopped; then write its report.

        Raises InputError, having written nothing, where somebody else runs it; JobFailed for what goes wrong from then
        on; Interrupted when the user stopped it.
        """
        found = RunFolder(run_folder(spec))
        run = Run(
            found.folder,
            spec_yaml=run_spec(spec),
            kind=spec.kind,
            version=bfp.__version__,
            listener=listener,
            accepts=lambda text: check_same_spec(spec, text, run=found),
            tracking=self._profile.local.mlflow,
        )
        grace_s = None if isinstance(spec, Pretrain) else GRACE_S
        tell = lambda text: listener({"event": "note", "message": text})  # noqa: E731
        with StopOnSignal(run, tell=tell, grace_s=grace_s, once=self._joined) as signals:
            going_on = ExitStack()
            going_on.enter_context(run)
            try:
                with going_on:
                    self._drive(spec, run, signals)
                reports.write_page(found)
            except BaseException as error:
                with suppress(InputError):  # a page that cannot be written hides nothing that went wrong before
                    reports.write_page(found)
                if isinstance(error, InputError):
                    raise JobFailed(str(error)) from error
                raise
        if run.stopping:
            raise Interrupted(f"stopped; {spec.name} had just finished, and is done")
        return found

    def _drive(self, spec: Spec, run: Run, signals: StopOnSignal) -> None:
        run.phase("starting")
        with Hush() as hush:
            try:
                self._start_ray()
                signals.arm()
                with self._watched(spec, run):
                    told = with_claims(spec, self._capacity) if self._joined else spec
                    drivers.execute(told, run, profile=self._profile)
            except KeyboardInterrupt as error:
                raise Interrupted("stopped at once, what was saved stays; submit the same again to go on") from error
            except Exception as error:  # whatever a driver or Ray raises ends here, told in plain words
                if self._logs is not None:
                    Path(self._logs, "stderr.log").write_bytes(hush.heard())
                raise in_plain_words(error) from error
            finally:
                signals.settle()

    def _watched(self, spec: Spec, run: Run) -> AbstractContextManager[None]:
        """On a cluster the run says which nodes come and go."""
        if not self._joined:
            return nullcontext()
        return nodes_watched(cpus=claims(spec, self._capacity).cpus, warn=run.warn, note=run.note)

    def _start_ray(self) -> None:
        set_environment()
        import ray

        if not ray.is_initialized():  # one that a program of the user's has started is used, and left to it
            self._logs = start_ray(cpus=self._capacity.cpus)

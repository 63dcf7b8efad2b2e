"""Ray inside this process: started once, quietly, for all jobs of a command, and gone with it.

Ray's chatter (its banners, progress bars, workers' output, usage reports) stays out of the user's sight; its logs
lie in a folder of their own that is removed when all went well, and named and kept for KEPT_DAYS when not. A process
that is killed leaves its folder behind; in it stands whose it was, and whoever starts Ray next removes it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bfp.errors import JobFailed
from bfp.runs.scratch import disown, owned_folder, remove_orphans

FOLDERS = "/tmp"  # short, since sockets lie below it, whose paths may have 107 characters
PREFIX = "bfp-ray-"
KEPT_DAYS = 7
STARTS = 3  # Ray gives each 30 s, and a busy machine may need more

MAX_OBJECT_STORE_BYTES = 2_000_000_000
OBJECT_STORE_SHARE = 0.2  # of the machine's memory: what passes between tasks here is small
MIN_OBJECT_STORE_BYTES = 100_000_000  # Ray refuses less than about 75 MB

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a FutureWarning otherwise
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread left over from a stopped run would start Ray again
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the end of training is noticed; 2 by default
    # Threads sleep while they wait: spinning made a training step up to 12 times as long on a busy machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_environment() -> None:
    """What Ray reads when it is imported, and hands on to its workers: to be called before the first `import ray`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def start_ray(*, cpus: int) -> str:
    """Start Ray in this process; returns the folder of its own logs, for `stop_ray`.

    Raises JobFailed, with the folder's name, where Ray does not start.
    """
    set_environment()
    import ray.data

    remove_orphans(PREFIX, FOLDERS, kept_s=KEPT_DAYS * 86_400)
    remove_orphans()
    # A folder of our own: the shared /tmp/ray belongs to whoever came first on a machine with several users.
    logs = str(owned_folder(PREFIX, FOLDERS))
    # Who ends a job (SLURM at its time limit, systemd, a closing terminal) tells all of its processes. Those of Ray are
    # deaf to it: they are needed until the driver has heard it and saved what stands.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        for start in range(1, STARTS + 1):
            try:
                ray.init(
                    address="local",  # never a cluster that RAY_ADDRESS happens to name
                    num_cpus=cpus,
                    object_store_memory=object_store_bytes(),
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    _temp_dir=f"{logs}/ray",  # which Ray opens to everybody; the folder around it is this user's alone
                )
                break
            except Exception as error:  # Ray raises a bare Exception when it waits for itself in vain
                if start < STARTS:
                    ray.shutdown()
                    continue
                stop_ray(logs, keep_logs=True)
                said = str(error).strip().partition("\n")[0]
                raise JobFailed(
                    f"Ray did not start ({type(error).__name__}: {said}): the machine may be busy, so try again; "
                    f"`bfp doctor` starts it by itself, and its own logs are in {logs}"
                ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    quieten()
    return logs


def quieten() -> None:
    """Keep Ray Data's and Ray Train's own words off the screen: what a user has to know, drivers say."""
    import ray.data

    for name in ("ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def stop_ray(logs: str, *, keep_logs: bool) -> None:
    """End the Ray that `start_ray` started."""
    import ray

    with _ending_the_deaf():
        ray.shutdown()
    remove_orphans()  # of the workers, which are ended as they are
    if keep_logs:
        disown(Path(logs))
    else:
        shutil.rmtree(logs, ignore_errors=True)


@contextmanager
def _ending_the_deaf() -> Iterator[None]:
    """End the children of this process that are told to end and do not hear it: Ray waits a second for each (Linux)."""
    done = threading.Event()

    def end() -> None:
        while not done.wait(0.02):
            for status in Path("/proc").glob("[0-9]*/status"):
                with suppress(OSError):
                    found = dict(line.split(":", 1) for line in status.read_text().splitlines())
                    told = int(found["ShdPnd"], 16) >> (signal.SIGTERM - 1) & 1
                    if told and int(found["PPid"]) == os.getpid():
                        os.kill(int(found["Pid"]), signal.SIGKILL)

    ending = threading.Thread(target=end)
    ending.start()
    try:
        yield
    finally:
        done.set()
        ending.join()


def object_store_bytes() -> int:
    """Memory for Ray's object store: a share of the machine's, within bounds, and no more than /dev/shm holds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = min(MAX_OBJECT_STORE_BYTES, int(OBJECT_STORE_SHARE * memory))
    if os.path.isdir("/dev/shm"):
        wanted = min(wanted, int(0.9 * shutil.disk_usage("/dev/shm").free))
    return max(MIN_OBJECT_STORE_BYTES, wanted)

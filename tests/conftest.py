"""Fixtures that many tests share: one Ray for the whole session, the trial data beside the checkout, a real S3 server.

What needs the trial data or a Ceph gateway skips, saying so, where it is not to be had.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of trial data (`BFP_SHARED`, else `shared` beside the checkout)."""
    folder = Path(os.environ.get("BFP_SHARED", CHECKOUT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no trial data at {folder}")
    return folder


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one embedded Ray; it claims more CPUs than the machine may have, since tests mostly wait."""
    import ray

    from bfp.targets.local import start_ray

    start_ray(cpus=4)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_bucket(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of an empty bucket on a real Ceph object gateway, started for this session."""
    up, down = shared / "object-store" / "ceph-up", shared / "object-store" / "ceph-down"
    if not up.exists() or shutil.which("radosgw") is None:
        pytest.skip("no Ceph gateway here: install ceph-mon, ceph-osd and radosgw")
    folder = tmp_path_factory.mktemp("ceph")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testkey",
        "AWS_SECRET_ACCESS_KEY": "testsecret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    try:
        with open(folder.with_suffix(".log"), "w+") as log:  # a file, since its daemons would hold a pipe open
            # Some releases of the gateway insist on encryption towards the monitor, which has no keys here.
            plain = {**os.environ, "CEPH_ARGS": "--ms_mon_client_mode=crc"}
            command = [str(up), str(folder), str(port)]
            started = subprocess.run(command, stdout=log, stderr=log, timeout=120, env=plain)
        if started.returncode:
            pytest.skip(f"the Ceph gateway did not start: {folder.with_suffix('.log').read_text()[-300:]}")
        os.environ.update(environment)
        import s3fs

        s3fs.S3FileSystem().mkdir("bfp-tests")
        yield "s3://bfp-tests"
    finally:
        os.environ.clear()
        os.environ.update(before)
        subprocess.run([str(down), str(folder)], capture_output=True, timeout=60)

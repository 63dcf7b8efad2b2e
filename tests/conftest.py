"""Fixtures that many tests share: one Ray for the whole session, the trial data beside the checkout, a real S3 server.

What needs the trial data or a Ceph gateway skips, saying so, where it is not to be had.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.ceph import Gateway, NoGateway, gateway, in_environment
from tests.kube import Kube, NoKubernetes, kube

CHECKOUT = Path(__file__).resolve().parents[1]

# What a shell starts in the background is deaf to Ctrl-C, which some tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


FIRST = ("tests/drivers/", "tests/test_readme.py", "tests/pretraining/test_loop.py", "tests/cli/", "tests/targets/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first: of two processes, none is left alone with it at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


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

    from bfp.targets.ray_here import start_ray

    start_ray(cpus=4)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A real Ceph object gateway, started for this session."""
    with ExitStack() as running:
        try:
            yield running.enter_context(gateway(tmp_path_factory.mktemp("ceph")))
        except NoGateway as error:
            pytest.skip(f"no Ceph gateway here: {error}")


@pytest.fixture(scope="session")
def kubernetes(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    """A real Kubernetes API server with KubeRay's CRDs, started for this session."""
    with ExitStack() as running:
        try:
            yield running.enter_context(kube(tmp_path_factory.mktemp("kube"), shared=shared))
        except NoKubernetes as error:
            pytest.skip(f"no Kubernetes API server here: {error}")


@pytest.fixture(scope="session")
def s3_bucket(s3_gateway: Gateway) -> Iterator[str]:
    """The URI of an empty bucket on that gateway, to which the environment leads."""
    import s3fs

    with in_environment(s3_gateway.environment()):
        s3fs.S3FileSystem().mkdir("bfp-tests")
        yield "s3://bfp-tests"

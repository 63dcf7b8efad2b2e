"""S3 clients that lose patience soon, and a proxy that deals faults between them and a real gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fsspec.implementations.memory import MemoryFileSystem

from bfp.storage import patience, s3
from tests.ceph import Gateway, in_environment
from tests.faults import FaultProxy

LIMIT_S = 1  # how long a client waits for an answer here


class CarelessStore(MemoryFileSystem):
    """A store that ignores `If-None-Match`."""

    protocol = "careless"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: object) -> None:
        super().pipe_file(path, value, mode="overwrite", **more)


@contextmanager
def clients(environment: Mapping[str, str]) -> Iterator[None]:
    """S3 clients of their own for the length of the block, made in that environment."""
    with in_environment(environment):
        s3.forget_clients()
        try:
            yield
        finally:
            s3.forget_clients()


@contextmanager
def impatience(*, patience_s: float, limit_s: float = LIMIT_S) -> Iterator[None]:
    """Waits and time limits a hundredth of the usual ones, so that thousands of faults take minutes."""
    before = {
        (module, name): getattr(module, name)
        for module, names in (
            (patience, ("PATIENCE_S", "FIRST_CONTACT_S", "FIRST_WAIT_S", "LONGEST_WAIT_S")),
            (s3, ("CONNECT_TIMEOUT_S", "REQUEST_TIMEOUT_S")),
        )
        for name in names
    }
    patience.PATIENCE_S = patience.FIRST_CONTACT_S = patience_s
    patience.FIRST_WAIT_S, patience.LONGEST_WAIT_S = 0.002, 0.1
    s3.CONNECT_TIMEOUT_S = s3.REQUEST_TIMEOUT_S = limit_s
    try:
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


@contextmanager
def faulty(gateway: Gateway, *, patience_s: float = 60, limit_s: float = LIMIT_S) -> Iterator[FaultProxy]:
    """A proxy before the gateway, to which the clients of this process lead; it deals nothing until it has a plan."""
    with (
        FaultProxy(gateway.endpoint, hold_s=5 * limit_s).serving() as proxy,
        impatience(patience_s=patience_s, limit_s=limit_s),
        clients({**gateway.environment(), "AWS_ENDPOINT_URL": proxy.endpoint}),
    ):
        yield proxy

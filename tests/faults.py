"""A proxy in front of an S3 server that deals faults, and remembers what it dealt.

A `Plan` says of the n-th request which fault it gets, from its number alone, so that a seed repeats a campaign as far
as the order of requests does. Requests are passed on as they are (their signature covers the client's Host), each on a
connection of its own, and answers are held in memory: a proxy for small tests.
"""

from __future__ import annotations

import random
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import IO
from urllib.parse import urlsplit

from tests.servers import serving


class Fault(StrEnum):
    """What becomes of a request. The first two and EXPIRED never reach the server; LOST, RESET, CUT and SLOW do."""

    ERROR = "500"
    SLOW_DOWN = "503 SlowDown"
    TIMEOUT = "timeout"
    RESET = "reset after k bytes"
    CUT = "truncated body"
    SLOW = "slow"
    LOST = "reply lost"
    EXPIRED = "expired credentials"


PASSING = (Fault.ERROR, Fault.SLOW_DOWN, Fault.TIMEOUT, Fault.RESET, Fault.CUT, Fault.SLOW, Fault.LOST)
"""Faults that a second try mends."""

ANSWERS = {
    Fault.ERROR: (500, "InternalError"),
    Fault.SLOW_DOWN: (503, "SlowDown"),
    Fault.EXPIRED: (400, "ExpiredToken"),
}

Plan = Callable[[int], Fault | None]

SLOW_FOR_S = 0.3


def share_of(share: float, *, seed: int, kinds: tuple[Fault, ...] = PASSING) -> Plan:
    """A share of all requests, each with a fault drawn from the kinds."""

    def plan(number: int) -> Fault | None:
        draw = random.Random(f"{seed}:{number}")
        return draw.choice(kinds) if draw.random() < share else None

    return plan


def only(number: int, fault: Fault) -> Plan:
    """The request of that number, counted from 1."""
    return lambda each: fault if each == number else None


def from_on(number: int, fault: Fault) -> Plan:
    """The request of that number and all after it."""
    return lambda each: fault if each >= number else None


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    head: bytes  # the request line and headers, up to the empty line
    body: bytes


class FaultProxy:
    """Serves at `endpoint`. `plan` may be set at any time, and counts from 1 again; `dealt` counts faults by kind."""

    def __init__(self, upstream: str, *, hold_s: float) -> None:
        """upstream: the server's URL. hold_s: how long a timeout holds its connection."""
        self._upstream = (urlsplit(upstream).hostname, urlsplit(upstream).port)
        self._hold_s = hold_s
        self._lock = threading.Lock()
        self._plan: Plan = lambda number: None
        self.requests = 0
        self.dealt: Counter[Fault] = Counter()
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that hangs up is none of ours."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def plan(self) -> Plan:
        return self._plan

    @plan.setter
    def plan(self, plan: Plan) -> None:
        with self._lock:
            self._plan, self.requests = plan, 0

    @contextmanager
    def serving(self) -> Iterator[FaultProxy]:
        with serving(self._server):
            yield self

    def _serve(self, client: socket.socket) -> None:
        stream = client.makefile("rb")
        lines = _read_head(stream)
        if not lines:
            return  # the client hung up
        with self._lock:
            self.requests += 1
            number = self.requests
            fault = self._plan(number)
            if fault is not None:
                self.dealt[fault] += 1
        if fault is Fault.TIMEOUT:  # before anything is said, also to a client that asks whether it may send its body
            time.sleep(self._hold_s)
            return
        request = _read_request(client, stream, lines)
        if fault in ANSWERS:
            client.sendall(_answer(request, *ANSWERS[fault]))
        else:
            _reply(client, self._ask(request), fault, draw=random.Random(number))

    def _ask(self, request: _Request) -> bytes:
        """The server's whole answer."""
        lines = request.head.split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith((b"connection:", b"expect:"))]
        with socket.create_connection(self._upstream, timeout=60) as server:
            server.sendall(b"\r\n".join([*kept, b"Connection: close", b"", b""]) + request.body)
            answer = bytearray()
            while piece := server.recv(1 << 18):
                answer += piece
        return bytes(answer)


def _read_head(stream: IO[bytes]) -> list[bytes]:
    """The request line and the headers; nothing where the client hung up."""
    lines = []
    while (line := stream.readline()) not in (b"\r\n", b""):
        lines.append(line.rstrip(b"\r\n"))
    return lines


def _read_request(client: socket.socket, stream: IO[bytes], lines: list[bytes]) -> _Request:
    """The request of that head, once its body is here."""
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    if headers.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        body = _read_chunks(stream)
    else:
        body = stream.read(int(headers.get(b"content-length", b"0")))
    return _Request(lines[0].split(b" ")[0].decode(), b"\r\n".join(lines), body)


def _read_chunks(stream: IO[bytes]) -> bytes:
    """A chunked body as it stands on the wire."""
    raw = bytearray()
    while True:
        line = stream.readline()
        raw += line
        length = int(line.split(b";")[0] or b"0", 16)
        raw += stream.read(length + 2)
        if not length:
            return bytes(raw)


def _answer(request: _Request, status: int, code: str) -> bytes:
    """An error as S3 says it; the answer to a HEAD has no body."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>dealt by the proxy</Message></Error>".encode()
    body = b"" if request.method == "HEAD" else text
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def _reply(client: socket.socket, answer: bytes, fault: Fault | None, *, draw: random.Random) -> None:
    if fault is None:
        client.sendall(answer)
    elif fault is Fault.SLOW:
        step = -(-len(answer) // 10)
        for start in range(0, len(answer), step):
            client.sendall(answer[start : start + step])
            time.sleep(SLOW_FOR_S / 10)
    elif fault is Fault.CUT:
        body = answer.index(b"\r\n\r\n") + 4
        client.sendall(answer[: draw.randrange(body, len(answer)) if body < len(answer) else body // 2])
    elif fault is Fault.RESET:
        client.sendall(answer[: draw.randrange(len(answer))])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing sends RST
    else:
        assert fault is Fault.LOST, fault

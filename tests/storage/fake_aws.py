"""A small AWS on loopback: objects that anybody may read, roles that can be assumed, and a machine's metadata.

It checks no signature; it remembers who asked, so that a test can say who should have. Ceph stands in for S3 elsewhere,
but knows neither roles nor metadata.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

from tests.servers import serving

ROLE = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><AssumedRoleUser>
<AssumedRoleId>x:y</AssumedRoleId><Arn>arn:aws:sts::1:assumed-role/r/y</Arn></AssumedRoleUser><Credentials>
<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>{token}</SessionToken>
<Expiration>{expires}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
LISTING = b"<ListBucketResult/>"


class Asked(NamedTuple):
    """A request for an object: method, range, access key ("" if unsigned), session token, and by pyarrow or not."""

    method: str
    range: str | None
    access_key: str
    token: str | None
    by_arrow: bool


class FakeAws:
    """Serves at `endpoint`. objects: by key, in any bucket. valid_s: how long a role's credentials say that they are.

    expired: access keys that have, whatever was said. A bucket's listing is empty. certificate: a PEM file with its
    key, to serve by https.
    """

    def __init__(self, objects: dict[str, bytes], *, valid_s: float = 3600, certificate: Path | None = None) -> None:
        self.objects = objects
        self.asked: list[Asked] = []
        self.assumed = 0
        self.expired: set[str] = set()
        aws = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path.startswith("/latest/"):
                    self.answer(aws._metadata(self.path))
                    return
                signed = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization", ""))
                asked = Asked(
                    self.command,
                    self.headers.get("Range"),
                    signed[1] if signed else "",
                    self.headers.get("x-amz-security-token"),
                    "aws-sdk-cpp" in self.headers.get("User-Agent", ""),
                )
                aws.asked.append(asked)
                _, _, key = self.path.partition("?")[0][1:].partition("/")
                data = aws.objects.get(key) if key else LISTING
                if asked.access_key in aws.expired:
                    self.answer(EXPIRED, status=400, headers={"Content-Type": "application/xml"})
                elif data is None:
                    self.answer(b"", status=404)
                elif part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                    start, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
                    said = f"bytes {start}-{end}/{len(data)}"
                    self.answer(data[start : end + 1], status=206, headers={"Content-Range": said})
                else:
                    self.answer(data)

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_PUT(self) -> None:
                self.answer(b"token")  # of the metadata service, which is asked for one first

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                aws.assumed += 1
                expires = (datetime.now(UTC) + timedelta(seconds=valid_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
                said = ROLE.format(key=f"ROLE{aws.assumed}", token=f"token{aws.assumed}", expires=expires)
                self.answer(said.encode(), headers={"Content-Type": "text/xml"})

            def answer(self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                always = {"ETag": '"a"', "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
                for name, value in {**always, "Content-Length": str(len(body)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *said: object) -> None:
                """Nothing is printed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.endpoint = self.endpoint.replace("http:", "https:")

    @contextmanager
    def serving(self) -> Iterator[FakeAws]:
        with serving(self._server):
            yield self

    def _metadata(self, path: str) -> bytes:
        """What a machine is told of its role."""
        if path.rstrip("/").endswith("security-credentials"):
            return b"scanner"
        told = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": "MACHINE",
            "SecretAccessKey": "s",
            "Token": "t",
            "LastUpdated": "2025-01-01T00:00:00Z",
            "Expiration": "2099-01-01T00:00:00Z",
        }
        return json.dumps(told).encode()

"""Discovery at scale: seconds and peak memory from the listing of a large BIDS dataset in a bucket to its shards.

    python -m tests.benchmarks.listing [OBJECTS …]        120,000 and 1,000,000 unless told otherwise

The bucket is made: a server on this machine answers ListObjectsV2 with pages of 1,000 names, of scans that are wanted,
three to a session, which is the most that discovery ever keeps of an object; beside them a participants.tsv of all
subjects and, of every TABLE_EVERY-th subject, a sessions.tsv. The client, its parsing and discovery are the real ones,
each in a process of its own. Beside them stands the time of the listing alone, so that the rest is what discovery adds.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from bfp.cohorts import Source, discover, plan_shards
from bfp.storage import Place

MODALITIES = ("FLAIR", "T1w", "T2w")  # in the order of their names
PAGE = 1000
TABLE_EVERY = 40  # of 120,000 scans 1,000 subjects have one
ROOT = "s3://made/dataset"


def key(number: int) -> str:
    """The name of a scan; names are in order of their numbers."""
    subject = f"sub-{number // 3:07d}"
    return f"dataset/{subject}/ses-01/anat/{subject}_ses-01_{MODALITIES[number % 3]}.nii.gz"


def table(name: str, objects: int) -> bytes | None:
    """What stands in an object that is no scan; None where there is none of this name."""
    if name == "dataset/participants.tsv":
        subjects = (f"sub-{number:07d}\t{20 + number % 70}\tF" for number in range(-(-objects // 3)))
        return "\n".join(["participant_id\tage\tsex", *subjects]).encode()
    return b"session_id\tdiagnosis\nses-01\tCN\n" if name.endswith("_sessions.tsv") else None


def page(start: int, objects: int) -> bytes:
    """A page of the listing, as S3 words it."""
    end = min(start + PAGE, objects)
    named = [(key(number), number) for number in range(start, end)]
    for number in range(start, end):
        if number % (3 * TABLE_EVERY) == 0:
            subject = f"sub-{number // 3:07d}"
            named.append((f"dataset/{subject}/{subject}_sessions.tsv", number))
    if end == objects:
        named.append(("dataset/participants.tsv", objects))
    contents = "".join(
        f"<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number * 2654435761:032x}&quot;</ETag><Size>{10_000_000 + number}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for name, number in named
    )
    more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < objects else ""
    return (
        "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"
        f"<Name>made</Name><KeyCount>{len(named)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>{more}"
        f"<IsTruncated>{str(end < objects).lower()}</IsTruncated>{contents}</ListBucketResult>"
    ).encode()


def bucket_of(objects: int) -> ThreadingHTTPServer:
    """A server of nothing but the listing of so many scans, and their tables."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            body = table(asked.path.removeprefix("/made/"), objects)
            if body is None:
                body = page(int(parse_qs(asked.query).get("continuation-token", ["0"])[0]), objects)
            self.send_response(200)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_HEAD(self) -> None:
            """There is no .bidsignore."""
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def measure(what: str) -> dict[str, float]:
    """In a process of its own: "listing" alone, or "discovery" up to the shards."""
    began = time.monotonic()
    if what == "listing":
        found = sum(file.place.name.endswith(".nii.gz") for file in Place(ROOT).files())
    else:
        sessions = discover(Source("made", "bids", Place(ROOT)), wanted=MODALITIES)
        shards = plan_shards(sessions, mean_sessions=16, preprocessing="", version=1)
        found = sum(shard.scans for shard in shards)
        labelled = sum("diagnosis" in session.labels for session in sessions)
        assert all("age" in session.labels for session in sessions)
        assert labelled == -(-len(sessions) // TABLE_EVERY), labelled
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"objects": found, "seconds": time.monotonic() - began, "peak_mb": peak / 1e6}


def measured(what: str, objects: int) -> dict[str, float]:
    server = bucket_of(objects)
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}", "AWS_NO_SIGN_REQUEST": "YES"}
    line = [sys.executable, "-m", "tests.benchmarks.listing", "--measure", what]
    done = subprocess.run(line, env={**os.environ, **environment}, capture_output=True, text=True)
    server.shutdown()
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
        return
    for objects in [int(given) for given in sys.argv[1:]] or [120_000, 1_000_000]:
        for what in ("listing", "discovery"):
            found = measured(what, objects)
            assert found["objects"] == objects, found
            print(
                f"{what:10} {objects:>9,} objects: {found['seconds']:6.1f} s, {found['peak_mb']:6,.0f} MB", flush=True
            )


if __name__ == "__main__":
    main()

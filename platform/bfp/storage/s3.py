"""S3: the requests that `place` makes of an object store, each tried patiently.

s3fs carries the requests, one by one, and finds an answer that was cut short. pyarrow reads tables, piece by piece. (It
would read a whole object at two thirds of the CPU time, 9 ms for 10 MB, and takes a HEAD that was cut short for that of
an empty object.)

Where the store is and who asks is found by botocore: in the environment (AWS_PROFILE, AWS_ENDPOINT_URL), the files of
named profiles (`endpoint_url`, `region`, `addressing_style`, `role_arn`) and with the cloud that the machine stands in.
pyarrow is given the same: it knows fewer ways by itself, and reads unsigned where they lead nowhere. Without any
credentials, or with AWS_NO_SIGN_REQUEST=YES, requests are not signed, as public buckets want it.

A put that must be the first one (`create`), and an upload in parts, carry a mark, drawn for them, in the object's
metadata. A reply can be lost after the store did what was asked; what is sent again then (aiohttp does so by itself) is
told that the object is there, or that the upload is no more, and the mark says whose the object is. An upload whose
beginning was answered to nobody cannot be told from another's to the same name, and is left: it holds no part, and a
lifecycle rule of the bucket (AbortIncompleteMultipartUpload) clears it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bfp.errors import InputError
from bfp.storage.patience import Exhausted, answer_of, patiently

CONNECT_TIMEOUT_S = 10
REQUEST_TIMEOUT_S = 60  # without a byte; pyarrow's own limits are 1 s and 3 s: too short for a busy store
SLOWEST_BYTES_S = 256 << 10  # of an upload: what is slower was broken off on the way
PART_BYTES = 64 << 20  # a larger object is put in parts of this size, or of 1/10,000 of it, the most that S3 takes
MOST_PARTS = 10_000
PARTS_AT_ONCE = 4  # which bounds the memory of an upload
ARROW_TRIES = 10  # pyarrow's waits grow from 0.5 to 10 s on average: up to 2 minutes in all, as PATIENCE_S

MARK = "bfp-write"
"""The name of the mark in an object's metadata."""

_REFUSALS = {
    "ExpiredToken": "the credentials have expired; renew them",
    "ExpiredTokenException": "the credentials have expired; renew them",
    "TokenRefreshRequired": "the credentials have expired; renew them",
    "InvalidToken": "the store does not know these credentials; {check}",
    "InvalidAccessKeyId": "the store does not know these credentials; {check}",
    "SignatureDoesNotMatch": "the secret does not fit the access key; {check}",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_REGION",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "NoSuchBucket": "there is no bucket {bucket} at {endpoint}; make it, or check its name and AWS_ENDPOINT_URL",
}
_CHECK = "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL"
_BODILESS = {"400", "401", "403"}  # codes of answers to HEAD, which do not tell why


class Refused(OSError):
    """The store says no, in words for the user, and would say so again."""


class Taken(Exception):
    """There is an object of that name already."""


def head(bucket: str, key: str) -> dict[str, Any] | None:
    """Size ("ContentLength"), "ETag" and "Metadata" of an object; None where there is none."""
    if not key:
        return None
    try:
        return _request("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None


def modified_s(bucket: str, key: str) -> float | None:
    """When an object was made, in seconds by the store's clock, which tells whole ones; None where there is none."""
    from email.utils import parsedate_to_datetime

    found = head(bucket, key)
    return parsedate_to_datetime(found["LastModified"]).timestamp() if found else None


def listed(bucket: str, prefix: str, *, delimiter: str = "") -> Iterator[dict[str, Any]]:
    """The pages of a listing in the order of keys as UTF-8: "Contents" and, with a delimiter, "CommonPrefixes"."""
    following: dict[str, str] = {}
    while True:
        page = _request("list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter=delimiter, **following)
        yield page
        if not page.get("IsTruncated"):
            return
        following = {"ContinuationToken": page["NextContinuationToken"]}


class Content(NamedTuple):
    """The bytes of an object, and the ETag that came with them, as a listing tells it."""

    data: bytes
    etag: str


def read(bucket: str, key: str) -> Content:
    """The whole object, from one request."""
    from fsspec.asyn import sync

    async def fetch() -> Content:
        answer = await _ask("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            return Content(bytes(await body.read()), str(answer.get("ETag", "")).strip('"'))

    return patiently(lambda: sync(_filesystem().loop, fetch), store="s3")


def open_arrow(bucket: str, key: str) -> Any:
    """A pyarrow file, read piece by piece by pyarrow, which tries again by itself."""
    return patiently(lambda: _arrow().open_input_file(f"{bucket}/{key}"), store="s3")


def open_parquet(bucket: str, key: str, *, pre_buffer: bool) -> tuple[Any, Any]:
    """A pyarrow.parquet.ParquetFile, and the file of `open_arrow` that it reads.

    Two requests: pyarrow asks for the size, which cannot be told it, and reads the end.
    """
    from pyarrow.parquet import ParquetFile

    def open_it() -> tuple[Any, Any]:
        source = _arrow().open_input_file(f"{bucket}/{key}")
        try:
            return ParquetFile(source, pre_buffer=pre_buffer, page_checksum_verification=True), source
        except ValueError:
            # pyarrow takes an answer that was cut short among its headers for that of an empty file
            if (found := head(bucket, key)) and source.size() != found["ContentLength"]:
                raise ConnectionError(f"{key}: the answer was cut short") from None
            raise

    return patiently(open_it, store="s3")


def put(bucket: str, key: str, data: bytes) -> None:
    """Make or replace the object."""
    _put(bucket, key, len(data), lambda start, length: data[start : start + length])


def put_file(bucket: str, key: str, file: Path) -> None:
    """Make or replace the object from a file, without holding it in memory."""
    with open(file, "rb") as source:
        handle = source.fileno()
        _put(bucket, key, file.stat().st_size, lambda start, length: os.pread(handle, length, start))


def create(bucket: str, key: str, data: bytes) -> bool:
    """Make the object, of at most 5 GB; False where there was one, whoever asked twice.

    One put whatever the size: Ceph 16 ignores the condition at the end of an upload in parts, and lets everybody win.
    """
    mark = secrets.token_hex(8)
    try:
        _request("put_object", Bucket=bucket, Key=key, Body=data, Metadata={MARK: mark}, IfNoneMatch="*")
    except Taken:
        return _mark_of(bucket, key) == mark
    return True


def delete(bucket: str, key: str) -> None:
    """Remove the object; nothing happens where there is none."""
    _request("delete_object", Bucket=bucket, Key=key)


def _put(bucket: str, key: str, size: int, piece: Callable[[int, int], bytes]) -> None:
    """piece: the bytes from a start, of a length."""
    at = {"Bucket": bucket, "Key": key}
    if size <= PART_BYTES:
        _request("put_object", Body=piece(0, size), **at)
        return
    mark = secrets.token_hex(8)
    upload = {**at, "UploadId": _request("create_multipart_upload", Metadata={MARK: mark}, **at)["UploadId"]}
    length = max(PART_BYTES, -(-size // MOST_PARTS))

    def put_part(number: int) -> dict[str, Any]:
        body = piece((number - 1) * length, length)
        return {"PartNumber": number, "ETag": _request("upload_part", PartNumber=number, Body=body, **upload)["ETag"]}

    try:
        with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
            parts = list(pool.map(put_part, range(1, -(-size // length) + 1)))
        _request("complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload)
    except BaseException as error:
        # where the reply was lost, the upload that is asked for again is no more
        if isinstance(error, FileNotFoundError) and _mark_of(bucket, key) == mark:
            return
        with suppress(OSError):
            _request("abort_multipart_upload", **upload)
        raise


def _mark_of(bucket: str, key: str) -> str:
    found = head(bucket, key)
    return str(found["Metadata"].get(MARK, "")) if found else ""


def _request(method: str, **arguments: Any) -> dict[str, Any]:
    """One request of botocore's client, by its name there, tried patiently.

    Raises FileNotFoundError for an absent key or bucket, Taken for a condition that does not hold.
    """
    from fsspec.asyn import sync

    try:
        return patiently(lambda: sync(_filesystem().loop, _ask, method, **arguments), store="s3")
    except Exception as error:  # s3fs makes an OSError of some of botocore's, and leaves others
        if answer_of(error)[1] == 412:
            raise Taken from error
        raise


async def _ask(method: str, **arguments: Any) -> dict[str, Any]:
    """One request, on s3fs's loop, until its answer begins; all of the answer where that is no object's content.

    With a time limit of our own: aiohttp's does not count while a body is sent, nor while the server is to say that it
    may be sent.
    """
    limit_s = CONNECT_TIMEOUT_S + 2 * REQUEST_TIMEOUT_S + len(arguments.get("Body", b"")) / SLOWEST_BYTES_S
    return dict(await asyncio.wait_for(_filesystem()._call_s3(method, **arguments), limit_s))


@contextmanager
def explaining(bucket: str) -> Iterator[None]:
    """Turn a store's no into Refused, in words; a reply that does not tell why is followed by a question that does.

    For whatever is asked of the bucket, by s3fs or pyarrow.
    """
    try:
        yield
    except Exhausted:
        raise
    except Exception as error:  # of many kinds; those that are no answer of a store go on as they are
        code, status = answer_of(error)
        # pyarrow calls an object of a bucket that is gone an absent object
        by_arrow = not status and ("AWS Error" in str(error) or isinstance(error, FileNotFoundError))
        if by_arrow or code in _BODILESS:
            _ask_why(bucket)
        if words := _refusal(code, status, bucket):
            raise Refused(words) from error
        raise


def _ask_why(bucket: str) -> None:
    """Raise Refused where the store says no to whatever is asked of the bucket."""
    try:
        _request("list_objects_v2", Bucket=bucket, MaxKeys=1)
    except Exception as error:  # where this fails otherwise, what failed first is what the caller raises
        if words := _refusal(*answer_of(error), bucket):
            raise Refused(words) from error


def _refusal(code: str, status: int, bucket: str) -> str:
    """Why the store says no, and what to do; "" where it does not."""
    endpoint = _filesystem().s3.meta.endpoint_url
    if code in _REFUSALS:
        return _REFUSALS[code].format(check=_CHECK, bucket=bucket, endpoint=endpoint)
    if status in (401, 403):
        if _credentials() is None:
            return f"no permission without credentials; {_CHECK}"
        return "no permission with these credentials; ask the owner of the bucket"
    if 400 <= status < 500 and status != 404:
        return f"the store answers {status} {code}"
    return ""


# the clients ----------------------------------------------------------------------------------------------------------


@cache
def _session() -> Any:
    """botocore's session, which knows where the store is and who asks."""
    # Ceph and other gateways answer 411 to the checksums that newer clients send by default.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    os.environ.setdefault("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    try:
        import s3fs  # noqa: F401  its absence, too, is told here
        from aiobotocore.session import AioSession
    except ImportError as error:
        raise InputError(f"s3:// needs a package that is not installed: {error}; pip install 'bfp[s3]'") from error
    session = AioSession()
    # a listing says when each object was made, which took half of the time to read
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    return session


@cache
def _credentials() -> Any:
    """What signs requests, which renews itself; None where they go unsigned: the user says so, or has no credentials.

    A machine that nothing else names credentials for asks its cloud for those of its role. Where there is no cloud,
    botocore has given that up after two tries of 1 s (AWS_METADATA_SERVICE_TIMEOUT, AWS_METADATA_SERVICE_NUM_ATTEMPTS).
    """
    session = _session()
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("yes", "true", "on", "1"):
        return None
    from fsspec.asyn import get_loop, sync

    return sync(get_loop(), session.get_credentials)


def _ca_bundle() -> str | None:
    """The file of certificates that the store's is checked with, where the user names one."""
    return _session().get_config_variable("ca_bundle") or None


@cache
def _filesystem() -> Any:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if (endpoint := os.environ.get(name)) and "://" not in endpoint:
            raise InputError(f"{name}: {endpoint} names no scheme; expected https://… or http://…")
    if (bundle := _ca_bundle()) and not os.path.exists(bundle):
        raise InputError(f"AWS_CA_BUNDLE (a profile's ca_bundle): no such file: {bundle}; certificates are expected")
    credentials = _credentials()
    import s3fs

    filesystem = s3fs.S3FileSystem(
        session=_session(),
        anon=credentials is None,
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": REQUEST_TIMEOUT_S,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    )
    filesystem.retries = 1  # `patiently` is what tries again
    return filesystem


def _arrow() -> Any:
    """pyarrow's filesystem, which signs as `_filesystem` does now; paths in it are "bucket/key".

    A file that it has opened keeps the credentials of that time: botocore renews them 10 minutes before they expire.
    """
    credentials = _credentials()
    if credentials is None:
        return _arrow_signing("", "", "")
    from fsspec.asyn import sync

    now = sync(_filesystem().loop, credentials.get_frozen_credentials)
    return _arrow_signing(now.access_key, now.secret_key, now.token or "")


@lru_cache(maxsize=1)
def _arrow_signing(access_key: str, secret_key: str, token: str) -> Any:
    """Without an access key it does not sign."""
    from pyarrow import fs

    meta = _filesystem().s3.meta
    host = urlsplit(meta.endpoint_url).hostname or ""
    return fs.S3FileSystem(
        anonymous=not access_key,
        access_key=access_key or None,
        secret_key=secret_key or None,
        session_token=token or None,
        endpoint_override=None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else meta.endpoint_url,
        region=None if meta.region_name == "aws-global" else meta.region_name,
        force_virtual_addressing=(meta.config.s3 or {}).get("addressing_style") == "virtual",
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ARROW_TRIES),
        tls_ca_file_path=_ca_bundle(),
    )


def forget_clients() -> None:
    """Make new clients at the next request, from the environment as it is then."""
    for made in (_session, _credentials, _filesystem, _arrow_signing):
        made.cache_clear()

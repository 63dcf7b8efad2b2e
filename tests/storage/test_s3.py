"""On a real gateway: what it fails at is mended by trying again, and what no try mends is said at once."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfp.errors import StorageError
from bfp.storage import Place, repeats, s3
from tests.ceph import Gateway, Keys
from tests.faults import PASSING, Fault, FaultProxy, from_on, only, share_of
from tests.storage.makers import clients, faulty, impatience

ONCE = pytest.mark.parametrize("fault", PASSING)


@pytest.fixture(scope="module")
def proxy(s3_gateway: Gateway, s3_bucket: str) -> Iterator[FaultProxy]:
    with faulty(s3_gateway) as made:
        yield made


@pytest.fixture
def folder(s3_bucket: str, proxy: FaultProxy) -> Iterator[Place]:
    """A folder of its own in the bucket, behind the proxy, which deals nothing before or after the test."""
    nothing = proxy.plan = lambda number: None
    yield Place(s3_bucket) / f"s3-{secrets.token_hex(4)}"
    proxy.plan = nothing


@ONCE
def test_one_fault_changes_no_answer(fault: Fault, folder: Place, proxy: FaultProxy) -> None:
    file = folder / "scan.nii.gz"
    file.write(b"before")
    proxy.plan = only(1, fault)
    file.write(b"123456789" * 1000)
    proxy.plan = only(1, fault)
    assert file.read() == b"123456789" * 1000
    proxy.plan = only(1, fault)
    assert [entry.size for entry in folder.files()] == [9000]
    proxy.plan = only(1, fault)
    assert file.exists()
    proxy.plan = only(1, fault)
    assert not (folder / "other").exists()
    proxy.plan = only(1, fault)
    file.delete()
    assert folder.names() == []


@ONCE
def test_one_fault_gives_a_creation_to_who_made_it(fault: Fault, folder: Place, proxy: FaultProxy) -> None:
    file = folder / "commit.json"
    proxy.plan = only(1, fault)
    assert file.create(b"{}")
    proxy.plan = only(1, fault)
    assert not file.create(b"{}"), "the same content is no proof of having been first"


def test_a_fault_spoils_no_upload_in_parts(
    folder: Place, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)  # the least that S3 takes
    big = tmp_path / "checkpoint"
    big.write_bytes(secrets.token_bytes(12 << 20))
    begin, *parts, complete = range(1, 6)
    for number, fault in (
        (begin, Fault.LOST),
        (parts[1], Fault.RESET),
        (parts[2], Fault.ERROR),
        (complete, Fault.LOST),
    ):
        proxy.plan = only(number, fault)
        (folder / "big").upload(big)
        assert (folder / "big").read() == big.read_bytes()


def test_a_large_file_is_created_once(folder: Place, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    data = secrets.token_bytes(12 << 20)
    proxy.plan = only(1, Fault.LOST)
    assert (folder / "part").create(data)
    assert not (folder / "part").create(data)


def test_a_fifth_of_all_requests_may_fail(folder: Place, proxy: FaultProxy) -> None:
    dealt, repeated = proxy.dealt.total(), repeats()
    proxy.plan = share_of(0.2, seed=0)
    for number in range(25):
        file = folder / f"{number:02d}"
        assert file.create(bytes([number]) * 100_000)
        assert file.read() == bytes([number]) * 100_000
    assert folder.names() == [f"{number:02d}" for number in range(25)]
    assert proxy.dealt.total() - dealt >= 10
    assert repeats() > repeated


@ONCE
def test_a_table_is_read_whole_whichever_request_fails(fault: Fault, folder: Place, proxy: FaultProxy) -> None:
    table = pa.table({"value": range(200_000)})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, row_group_size=20_000)
    (folder / "part.parquet").write(buffer.getvalue().to_pybytes())

    def read() -> pa.Table:
        with (folder / "part.parquet").open_parquet(pre_buffer=True) as file:
            return file.read()

    proxy.plan = from_on(1000, fault)
    assert read().equals(table)
    size, footer, columns = range(1, proxy.requests + 1)
    for number in (size, footer, columns):
        proxy.plan, dealt = only(number, fault), proxy.dealt[fault]
        assert read().equals(table)
        assert proxy.dealt[fault] == dealt + 1


def test_a_store_that_stays_away_ends_patience_and_is_named(s3_gateway: Gateway, s3_bucket: str) -> None:
    with faulty(s3_gateway, patience_s=0.3) as proxy:
        proxy.plan = from_on(1, Fault.SLOW_DOWN)
        for ask in (Place.read, Place.entry, lambda file: file.create(b"")):
            with pytest.raises(StorageError, match=r"bfp-tests/x: cannot .*503.* \(tried \d+ times in \d+ s\)"):
                ask(Place(s3_bucket) / "x")


def asked(ask: object, file: Place) -> str:
    """The error that this gives."""
    with pytest.raises(StorageError) as refused:
        ask(file)  # type: ignore[operator]
    return str(refused.value)


WAYS = pytest.mark.parametrize(
    "ask",
    [
        Place.read,
        Place.entry,
        Place.open_parquet,
        lambda file: list(file.parent.files()),
        lambda file: file.create(b"x"),
    ],
    ids=["read", "entry", "open_parquet", "files", "create"],
)


@pytest.fixture(scope="module")
def stranger(s3_gateway: Gateway) -> Keys:
    return s3_gateway.add_user("stranger")


@WAYS
def test_what_no_try_mends_is_said_at_once_and_why(
    ask: object, s3_gateway: Gateway, s3_bucket: str, stranger: Keys
) -> None:
    file, own = Place(s3_bucket) / "refusals/x", s3_gateway.environment()
    with faulty(s3_gateway, limit_s=60) as proxy:  # no answer that is late is asked for again
        before = repeats()
        proxy.plan = from_on(1, Fault.EXPIRED)
        assert "the credentials have expired; renew them" in asked(ask, file)
        assert repeats() == before
    with clients({**own, "AWS_SECRET_ACCESS_KEY": "wrong"}):
        said = asked(ask, file)
        assert "the secret does not fit the access key; check AWS_PROFILE" in said
        assert "wrong" not in said
    with clients({**own, "AWS_ACCESS_KEY_ID": "nobody"}):
        assert "the store does not know these credentials; check AWS_PROFILE" in asked(ask, file)
    with clients({**own, "AWS_ACCESS_KEY_ID": stranger.access, "AWS_SECRET_ACCESS_KEY": stranger.secret}):
        assert "no permission with these credentials; ask the owner of the bucket" in asked(ask, file)
    with clients({**own, "AWS_NO_SIGN_REQUEST": "YES"}):
        assert "no permission without credentials; check AWS_PROFILE" in asked(ask, file)
    with clients(own):
        if ask is not Place.entry:  # absence is its answer, whatever is absent
            said = asked(ask, Place("s3://no-such-bucket-bfp/refusals/x"))
            assert f"there is no bucket no-such-bucket-bfp at {s3_gateway.endpoint}; make it, or check" in said


def test_a_public_bucket_is_read_without_credentials(
    s3_gateway: Gateway, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    owner = s3fs.S3FileSystem(skip_instance_cache=True)
    owner.mkdir("bfp-public")
    owner.pipe_file("bfp-public/sub-01/scan", b"voxels")
    allowed = {
        "Effect": "Allow",
        "Principal": "*",
        "Resource": ["arn:aws:s3:::bfp-public", "arn:aws:s3:::bfp-public/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [{**allowed, "Action": ["s3:GetObject", "s3:ListBucket"]}]}
    owner.call_s3("put_bucket_policy", Bucket="bfp-public", Policy=json.dumps(policy))
    folder = Place("s3://bfp-public")

    def seen() -> list[bytes]:
        return [entry.place.read() for entry in folder.files()]

    with clients({"AWS_NO_SIGN_REQUEST": "YES", "AWS_SECRET_ACCESS_KEY": "wrong"}):
        assert seen() == [b"voxels"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with clients({"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), "AWS_CONFIG_FILE": str(tmp_path / "none")}):
        assert seen() == [b"voxels"]
        assert "no permission without credentials" in asked(lambda file: file.write(b""), folder / "x")


def test_a_named_profile_says_who_asks_and_where(
    s3_gateway: Gateway, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in s3_gateway.environment():
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {s3_gateway.endpoint}\ns3 =\n    addressing_style = path\n"
    )
    keys = s3_gateway.keys
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {keys.access}\naws_secret_access_key = {keys.secret}\n"
    )
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    with clients({"AWS_PROFILE": "lab", **{name: str(tmp_path / file) for name, file in files.items()}}):
        file = Place(s3_bucket) / "profiles/x"
        file.write(b"by profile")
        assert file.read() == b"by profile"
        assert [entry.place for entry in file.parent.files()] == [file]


@pytest.mark.long
def test_a_listing_of_many_pages_is_in_order_and_leaves_nothing_out(s3_bucket: str) -> None:
    import s3fs

    names = [f"sub-{number:04d}/scan" for number in range(1050)] + [
        "a b",
        "a+b",
        "a%20b",
        "ä",
        "ž",
        "Z",
        "é/ü",
        "\U0001f9e0",
    ]
    folder = Place(s3_bucket) / "many"
    s3fs.S3FileSystem(skip_instance_cache=True).pipe({f"{folder}/{name}": b"" for name in [*names, "empty-folder/"]})
    found = [entry.place.uri.removeprefix(f"{folder}/") for entry in folder.files()]
    assert found == sorted(names, key=str.encode)


@pytest.mark.parametrize("name", ["a b", "a+b", "a%20b", "a#b?c=d", "ä-ž", "x//y", "..a", "quote'\"<&>"])
def test_odd_names_come_back_as_they_were_written(name: str, s3_bucket: str) -> None:
    folder = Place(s3_bucket) / "odd"
    file = Place(f"{folder}/{name}")
    assert file.create(name.encode())
    assert file.read() == name.encode()
    assert file in [entry.place for entry in folder.files()]
    file.delete()
    assert not file.exists()


def test_an_answer_cut_among_its_headers_is_no_damaged_table(folder: Place, proxy: FaultProxy) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"value": range(1000)}), buffer)
    (folder / "part.parquet").write(buffer.getvalue().to_pybytes())
    proxy.plan = only(1, Fault.CUT)  # of the HEAD by which pyarrow learns the size
    with (folder / "part.parquet").open_parquet() as file:
        assert file.metadata.num_rows == 1000


@pytest.mark.parametrize("size_bytes", [10, 20_000_000])
def test_a_server_that_accepts_and_never_says_a_word_ends_patience(
    size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "SLOWEST_BYTES_S", 100_000_000)
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    with socket.create_server(("127.0.0.1", 0)) as silent, impatience(patience_s=0.1):
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with clients({**keys, "AWS_ENDPOINT_URL": endpoint}), pytest.raises(StorageError, match="TimeoutError"):
            Place("s3://bucket/x").write(bytes(size_bytes))

"""Who asks: s3fs and pyarrow sign alike, whichever way botocore finds credentials."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfp.errors import InputError
from bfp.storage import Place
from bfp.store import layout
from bfp.store.reader import SliceStore, StackFile
from tests.storage.fake_aws import FakeAws
from tests.storage.makers import clients
from tests.store.makers import make_store

FILE = Place("s3://bucket/part.parquet")
PROFILES = """
[profile base]
region = us-east-1
[profile lab]
region = us-east-1
role_arn = arn:aws:iam::1:role/reader
source_profile = base
"""


def table() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"value": range(1000)}), buffer)
    return buffer.getvalue().to_pybytes()


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which nothing says who asks, with the files of profiles in tmp_path, which are empty."""
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    for name in ("config", "credentials"):
        (tmp_path / name).write_text("")
    return {
        "AWS_CONFIG_FILE": f"{tmp_path}/config",
        "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def lab(aws: FakeAws, bare: dict[str, str]) -> dict[str, str]:
    """The environment of a profile that assumes a role."""
    Path(bare["AWS_CONFIG_FILE"]).write_text(PROFILES)
    Path(bare["AWS_SHARED_CREDENTIALS_FILE"]).write_text(
        "[base]\naws_access_key_id = BASE\naws_secret_access_key = s\n"
    )
    return {**bare, "AWS_PROFILE": "lab", "AWS_ENDPOINT_URL": aws.endpoint}


def read_table() -> None:
    with FILE.open_parquet() as file:
        assert file.read().num_rows == 1000


def test_a_profile_s_role_signs_what_pyarrow_reads_too(bare: dict[str, str]) -> None:
    with FakeAws({"part.parquet": table()}).serving() as aws, clients(lab(aws, bare)):
        assert FILE.read() == table()
        read_table()
        FILE.open_arrow().close()
        assert {(asked.access_key, asked.token) for asked in aws.asked} == {("ROLE1", "token1")}
        assert {asked.by_arrow for asked in aws.asked} == {True, False}


def test_pyarrow_signs_with_the_credentials_of_a_role_once_they_are_renewed(bare: dict[str, str]) -> None:
    with FakeAws({"part.parquet": table()}, valid_s=30).serving() as aws, clients(lab(aws, bare)):
        read_table()
        first = aws.assumed
        read_table()  # botocore renews what is about to expire
        assert aws.assumed > first
        assert aws.asked[-1].access_key == f"ROLE{aws.assumed}"
        assert aws.asked[-1].token == f"token{aws.assumed}"


def opened(aws: FakeAws) -> int:
    """How often pyarrow opened a file."""
    return sum(asked.by_arrow and asked.method == "HEAD" for asked in aws.asked)


@pytest.mark.parametrize("read", [SliceStore.read_row_group, SliceStore.read_packed])
def test_stacks_are_read_on_with_new_credentials_once_those_of_an_open_file_have_expired(
    read: Callable[[SliceStore, StackFile, int], object], bare: dict[str, str], tmp_path: Path
) -> None:
    made = make_store(tmp_path, sessions=1)
    commits = list(layout.read_snapshot(made, 1).commits)
    objects = {entry.place.uri.removeprefix(f"{made}/"): entry.read() for entry in made.files()}
    with FakeAws(objects, valid_s=30).serving() as aws, clients(lab(aws, bare)):  # which botocore renews all the time
        store = SliceStore.of_commits(Place("s3://bucket"), commits)
        (file,) = store.stack_files()
        for _ in range(2):
            read(store, file, 0)
        assert opened(aws) == 1
        aws.expired = {f"ROLE{number + 1}" for number in range(aws.assumed)}
        read(store, file, 0)
        assert opened(aws) == 2


def test_a_table_and_a_page_of_it_cost_three_requests(bare: dict[str, str]) -> None:
    with FakeAws({"part.parquet": table()}).serving() as aws:
        with clients({**bare, "AWS_NO_SIGN_REQUEST": "YES", "AWS_ENDPOINT_URL": aws.endpoint}):
            parquet, raw = FILE.open_parquet_and_bytes()
            column = parquet.metadata.row_group(0).column(0)
            assert len(raw.read_at(column.total_compressed_size, column.data_page_offset)) > 100
        assert [asked.method for asked in aws.asked] == ["HEAD", "GET", "GET"]


def test_a_machine_s_role_is_found(bare: dict[str, str]) -> None:
    with FakeAws({"part.parquet": table()}).serving() as aws:
        own = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": aws.endpoint, "AWS_ENDPOINT_URL": aws.endpoint}
        with clients({**bare, **own}):
            assert FILE.exists()
            read_table()
            assert "AWS_EC2_METADATA_DISABLED" not in os.environ, "workers that are started now inherit it"
        assert {asked.access_key for asked in aws.asked} == {"MACHINE"}


def test_a_machine_without_a_cloud_waits_for_none_for_long(bare: dict[str, str]) -> None:
    with FakeAws({"part.parquet": table()}).serving() as aws, socket.create_server(("127.0.0.1", 0)) as silent:
        own = {
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ENDPOINT_URL": aws.endpoint,
        }
        with clients({**bare, **own}):
            began = time.monotonic()
            read_table()
            assert FILE.read() == table()
            assert time.monotonic() - began < 6
        assert {asked.access_key for asked in aws.asked} == {""}


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of a store on this machine, which nobody else vouches for; its key stands in the file too."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("no openssl here, to make a certificate with")
    file = tmp_path / "certificate.pem"
    asked = "req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([openssl, *asked.split(), "-keyout", file, "-out", file], check=True, capture_output=True)
    return file


def test_a_store_with_a_certificate_of_its_own_is_read_by_s3fs_and_pyarrow(
    certificate: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    with FakeAws({"part.parquet": table()}, certificate=certificate).serving() as aws:
        own = {**bare, "AWS_ENDPOINT_URL": aws.endpoint, "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "s"}
        with clients({**own, "AWS_CA_BUNDLE": str(certificate)}):
            assert FILE.read() == table()
            read_table()
        assert {asked.by_arrow for asked in aws.asked} == {True, False}
        gone = tmp_path / "gone.pem"
        with clients({**own, "AWS_CA_BUNDLE": str(gone)}), pytest.raises(InputError, match=f"no such file: {gone}"):
            FILE.read()

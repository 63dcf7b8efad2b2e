"""Schemes that fsspec serves: the same promises as far as they can keep them, and what they cannot said in words."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bfp.errors import InputError, StorageError
from bfp.storage import Place, repeats
from tests.servers import serving
from tests.storage.fake_aws import FakeAws
from tests.storage.makers import impatience


class Flaky(MemoryFileSystem):
    """A store whose connection breaks at the first of each kind of request, and at the first read of an open file."""

    protocol = "flaky"
    broken: set[str] = set()  # noqa: RUF012  shared by all instances, as the store is

    @classmethod
    def break_once(cls, what: str) -> None:
        if what not in cls.broken:
            cls.broken.add(what)
            raise ConnectionResetError(f"{what}: gone")

    def __getattribute__(self, name: str) -> Any:
        if name in ("info", "cat_file", "find", "ls", "modified", "pipe_file", "put_file", "rm_file"):
            Flaky.break_once(name)
        return super().__getattribute__(name)

    def _open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **more)
        Flaky.break_once("open")
        return FlakyFile(self.store[path].getvalue())


class FlakyFile(pa.BufferReader):
    @property
    def size(self) -> int:
        return super().size()

    def read(self, size: int = -1) -> bytes:
        Flaky.break_once("read")
        return super().read(None if size < 0 else size)


def table() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"value": range(1000)}), buffer)
    return buffer.getvalue().to_pybytes()


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A folder of a flaky store, in which stands part.parquet."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    folder = Place(f"flaky://bucket/{secrets.token_hex(4)}")
    Flaky.broken = {"pipe_file"}
    (folder / "part.parquet").write(table())
    Flaky.broken = set()
    with impatience(patience_s=5):
        yield folder


def rows_of(file: Place) -> int:
    with file.open_parquet() as parquet:
        return parquet.read().num_rows


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        (Place.read, table()),
        (Place.size, len(table())),
        (lambda file: b"".join(file.pieces(1000)), table()),
        (rows_of, 1000),
        (lambda file: file.open_arrow().read(), table()),
        (lambda file: file.modified_s() is not None, True),
        (lambda file: [entry.place for entry in file.parent.files()] == [file], True),
        (lambda file: file.parent.names(), ["part.parquet"]),
        (lambda file: file.write(b"new"), None),
        (lambda file: file.upload(Path(__file__)), None),
        (Place.delete, None),
    ],
    ids=["read", "size", "pieces", "parquet", "arrow", "modified_s", "files", "names", "write", "upload", "delete"],
)
def test_a_broken_connection_changes_no_answer(ask: Callable[[Place], object], answer: object, flaky: Place) -> None:
    before = repeats()
    assert ask(flaky / "part.parquet") == answer
    assert Flaky.broken
    assert repeats() - before == len(Flaky.broken)


def test_a_creation_is_asked_for_once(flaky: Place) -> None:
    with pytest.raises(StorageError, match="pipe_file: gone"):
        (flaky / "commit.json").create(b"{}")
    assert (flaky / "commit.json").create(b"{}")


def test_a_listing_tells_places_as_they_were_named() -> None:
    folder = Place(f"memory://bucket/{secrets.token_hex(4)}")
    for name in ("b", "a/x", "a-b"):
        (folder / name).write(b"1")
    assert [entry.place for entry in folder.files()] == [folder / "a-b", folder / "a/x", folder / "b"]
    assert all(entry.place.entry() for entry in folder.files())
    assert (folder.names(), folder.folders()) == (["a-b", "b"], ["a"])
    with pytest.raises(StorageError, match="nothing is there"):
        list((folder / "none").files())


def test_a_server_that_is_not_there_is_named() -> None:
    with impatience(patience_s=0.1), pytest.raises(StorageError, match=r"^ftp://127.0.0.1:9/x: cannot .*efused.*; see"):
        Place("ftp://127.0.0.1:9/x").exists()


def test_what_a_scheme_wants_to_know_besides_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wanting(MemoryFileSystem):
        protocol = "wanting"

        def __init__(self, project: str, **more: object) -> None:
            super().__init__(**more)

    fsspec.register_implementation("wanting", Wanting, clobber=True)
    with pytest.raises(InputError, match=r"wanting://x/y: fsspec wants to know more.*'project'.*\.config/fsspec"):
        Place("wanting://x/y").exists()


class Web(SimpleHTTPRequestHandler):
    """A web server of a folder; /locked it refuses to list, and /busy it is too busy for."""

    def send_head(self) -> Any:
        for part, status in (("locked", 403), ("busy", 503)):
            if part in self.path:
                self.send_error(status)
                return None
        return super().send_head()

    def log_message(self, *said: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Place]:
    for name in ("c/sub-02/b", "c/a", "locked/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=str(tmp_path)))
    with serving(server):
        yield Place(f"http://127.0.0.1:{server.server_address[1]}")


def test_a_web_server_s_folder_is_a_cohort(web: Place) -> None:
    found = list((web / "c").files())
    assert [(entry.place, entry.size) for entry in found] == [(web / "c/a", 2), (web / "c/sub-02/b", 2)]
    assert all(entry.etag for entry in found)
    assert found[1].place.read() == b"12"
    assert not (web / "none").exists()
    assert not (web / "none").folders()


def test_a_folder_that_cannot_be_listed_is_not_left_out(web: Place) -> None:
    with pytest.raises(StorageError, match="403"):
        list(web.files())


def test_a_server_that_is_too_busy_has_not_lost_the_file(web: Place) -> None:
    with impatience(patience_s=0.1), pytest.raises(StorageError, match=r"busy: cannot look for it: .*503.*\(tried"):
        (web / "busy").exists()


def test_a_table_is_read_from_a_web_server() -> None:
    with FakeAws({"part.parquet": table()}).serving() as server:
        assert rows_of(Place(f"{server.endpoint}/bucket/part.parquet")) == 1000


def test_what_a_scheme_cannot_do_is_said(web: Place) -> None:
    with pytest.raises(StorageError, match="http:// cannot do that"):
        (web / "c/a").modified_s()

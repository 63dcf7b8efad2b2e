"""Other schemes than s3://: what `place` asks of fsspec's filesystems, each tried patiently but for `create`.

Tried by tests are memory:// and http(s)://, by hand ftp://; the last two to read from, as cohorts. What another scheme
of fsspec's needs to know beside its URI (a user, a project) stands in ~/.config/fsspec, where fsspec looks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bfp.errors import InputError
from bfp.storage.patience import answer_of, may_pass, patiently

Value = TypeVar("Value")

# what clients call a mark, or a time that changes with the content, in the order of trust
_MARKS = ("ETag", "etag", "md5Hash", "mtime", "modify", "Last-Modified", "last_modified", "updated", "created")


class Found(NamedTuple):
    """A file, as `place.Entry`."""

    uri: str
    size: int
    etag: str


def entry(uri: str) -> Found | None:
    """The file; None where there is none."""
    try:
        info = _ask(uri, lambda filesystem, path: filesystem.info(path))
    except FileNotFoundError:
        return None
    return _found(uri, info) if info.get("type", "file") == "file" else None


def read(uri: str) -> bytes:
    return bytes(_ask(uri, lambda filesystem, path: filesystem.cat_file(path)))


def open_arrow(uri: str) -> Any:
    """A pyarrow file, read by a `_Source`."""
    import pyarrow

    return pyarrow.PythonFile(_Source(uri), mode="r")


def modified_s(uri: str) -> float | None:
    try:
        return float(_ask(uri, lambda filesystem, path: filesystem.modified(path)).timestamp())
    except FileNotFoundError:
        return None


def files(uri: str) -> Iterator[Found]:
    """Every file below a folder, in order of URI; from one flat listing where the filesystem has one."""
    filesystem, root = _at(uri)
    if not _lists_flat(filesystem):
        yield from _walk(uri)
        return
    listing = _ask(uri, lambda filesystem, path: filesystem.find(path, detail=True))
    if not listing:
        _ask(uri, lambda filesystem, path: filesystem.info(path))  # which tells an empty folder from none
    for name in sorted(listing):
        below = name[len(root.rstrip("/")) :].lstrip("/")
        if below and listing[name].get("type", "file") == "file":
            yield _found(f"{uri}/{below}", listing[name])


def names(uri: str, kind: str) -> list[str]:
    """What is directly in a folder, sorted; nothing where there is no folder. kind: "file" or "directory"."""
    try:
        return sorted(name for name, info in _listed(uri) if info["type"] == kind)
    except FileNotFoundError:
        return []


def write(uri: str, data: bytes) -> None:
    _ask(uri, lambda filesystem, path: filesystem.pipe_file(path, data))


def upload(uri: str, file: Path) -> None:
    _ask(uri, lambda filesystem, path: filesystem.put_file(str(file), path))


def create(uri: str, data: bytes) -> bool:
    """False where there is a file. Asked once: a second try could not tell its own file from another's."""
    filesystem, path = _at(uri)
    try:
        filesystem.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def delete(uri: str) -> None:
    """Nothing happens where there is none."""
    try:
        _ask(uri, lambda filesystem, path: filesystem.rm_file(path))
    except FileNotFoundError:
        return


class _Source:
    """A file to read from, as pyarrow wants one; opened again where a read fails that may pass."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._at = 0
        self._file: Any = None
        self._ask_file(lambda file: None)

    def read(self, size: int = -1) -> bytes:
        def read_on(file: Any) -> bytes:
            file.seek(self._at)
            return bytes(file.read(size))

        data = self._ask_file(read_on)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    @property
    def closed(self) -> bool:
        return self._file is None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _ask_file(self, work: Callable[[Any], Value]) -> Value:
        def ask(filesystem: Any, path: str) -> Value:
            if self._file is None:
                self._file = filesystem.open(path, "rb")
                self._size = int(self._file.size)
            try:
                return work(self._file)
            except Exception:
                self._file = None
                raise

        return _ask(self._uri, ask)


def _ask(uri: str, work: Callable[[Any, str], Value]) -> Value:
    """What `work` makes of the filesystem that a URI names and the path in it, tried patiently."""

    def ask() -> Value:
        filesystem, path = _at(uri)
        try:
            return work(filesystem, path)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
            # fsspec's http and ftp call whatever goes wrong an absent file
            told = cause if cause is not None and not _is_absence(cause) else error
            if may_pass(told):
                filesystem.clear_instance_cache()  # ftp would go on with the connection that broke
            if told is error:
                raise
            raise told from None

    return patiently(ask, store=uri.partition("://")[0])


def _is_absence(cause: BaseException) -> bool:
    status = answer_of(cause)[1]
    if status:
        return status in (404, 410)
    return not may_pass(cause) and (isinstance(cause, FileNotFoundError) or not isinstance(cause, OSError))


def _at(uri: str) -> tuple[Any, str]:
    """The filesystem that a URI names, and the path in it."""
    import fsspec.core

    scheme = uri.partition("://")[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except ImportError as error:
        # in fsspec's words, which name the package to install
        raise InputError(f"{scheme}:// needs a package that is not installed: {error}") from error
    except ValueError as error:
        if "not known" not in str(error):
            raise InputError(f"{uri}: fsspec does not understand it: {error}; see its page on {scheme}://") from error
        raise InputError(
            f"{scheme}:// is no scheme that fsspec knows; use a path, s3:// or another of its schemes"
        ) from error
    except TypeError as error:
        raise InputError(
            f"{uri}: fsspec wants to know more for {scheme}://: {error}; write it into ~/.config/fsspec/bfp.json, as "
            f'{{"{scheme}": {{…}}}}'
        ) from error
    return filesystem, path


def _lists_flat(filesystem: Any) -> bool:
    """Whether it has a way of its own to list all that is below a folder.

    fsspec's walks, and leaves out without a word the folders that it could not list.
    """
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    kind = type(filesystem)
    return kind.find is not AbstractFileSystem.find or getattr(kind, "_find", None) not in (None, AsyncFileSystem._find)


def _walk(uri: str) -> Iterator[Found]:
    for name, info in sorted(_listed(uri), key=lambda each: each[0] + "/" * (each[1]["type"] == "directory")):
        if info["type"] == "directory":
            yield from _walk(f"{uri}/{name}")
        elif info["type"] == "file":
            yield _found(f"{uri}/{name}", info)


def _listed(uri: str) -> list[tuple[str, dict[str, Any]]]:
    """What is directly in a folder, by name."""

    def listing(filesystem: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
        inside = (info for info in filesystem.ls(path, detail=True) if info["name"].rstrip("/") != path.rstrip("/"))
        named = [(info["name"].rstrip("/").rpartition("/")[2], info) for info in inside]
        # a page of a web server has links that sort it
        return [(name, info) for name, info in named if not (name.startswith("?") and uri.startswith("http"))]

    return _ask(uri, listing)


def _found(uri: str, info: dict[str, Any]) -> Found:
    if info.get("size") is None:  # a web server's page tells names alone
        info = _ask(uri, lambda filesystem, path: filesystem.info(path))
    if info.get("size") is None:
        raise OSError(f"the server does not tell how large {uri} is")
    mark = next((info[name] for name in _MARKS if info.get(name)), "")
    if isinstance(mark, datetime):  # one client tells the same time as a number in a listing
        mark = mark.timestamp()
    return Found(uri, int(info["size"]), str(mark).strip('"'))

"""Every folder and file that bfp touches, by URI, on disk or in an object store.

A `Place` is to URIs what `pathlib.Path` is to files: a value that can be compared, pickled and joined with `/`. Local
places use the operating system, `s3://` what stands in `s3`, other schemes what stands in `remote`. Importing this
module imports none of their clients.

Promises that everything above builds on:

- `write` replaces a file whole: a reader sees the old bytes or the new ones, never a mixture;
- `create` writes a file only if there is none, and says whether it did (POSIX link, S3 `If-None-Match: *`);
- what may pass is tried again for a while (`patience`), but for a `create` outside s3://, and whatever goes wrong then,
  or would not pass, is a `StorageError` that names the place and the remedy.

Credentials come from where the client library looks for them (environment, profile); none is ever read here.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from bfp.errors import DamagedFile, InputError, StorageError
from bfp.storage import remote, s3
from bfp.storage.patience import Exhausted


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a listing: its place, size in bytes, and a mark that changes whenever its content does.

    modified_s: as `Place.modified_s` tells it; None where the listing did not tell.
    """

    place: Place
    size: int
    etag: str
    modified_s: float | None = field(default=None, compare=False)

    def read(self) -> bytes:
        """The file as it was listed.

        Raises StorageError also where it is another by now: by its length, or by the mark of what was read (the time
        of writing of the opened file, the ETag of the answer; of other schemes what is said of the file afterwards).
        A copy that takes over the length and the time of writing is not told from what it replaces.
        """
        data, etag = self.place._read()
        if len(data) != self.size or (self.etag and etag and etag != self.etag):
            now = f"{len(data)} bytes, but {self.size}" if len(data) != self.size else "not the file that it was"
            raise StorageError(f"{self.place}: {now} when it was listed: it is being written to; submit again")
        return data


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A folder or file, by absolute local path or URI. Use `place()` to make one from what a user wrote."""

    uri: str

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.uri.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.uri).name

    @property
    def parent(self) -> Place:
        return Place(self.uri.rstrip("/").rpartition("/")[0] or "/")

    @property
    def scheme(self) -> str:
        return self.uri.partition("://")[0] if "://" in self.uri else "file"

    @property
    def is_local(self) -> bool:
        return self.scheme == "file"

    @property
    def bucket(self) -> str:
        """The bucket of a place in an object store."""
        return self.uri.partition("://")[2].partition("/")[0]

    @property
    def key(self) -> str:
        """The name within the bucket; "" for the bucket itself."""
        return self.uri.partition("://")[2].partition("/")[2]

    @property
    def path(self) -> Path:
        """The path of a local place."""
        assert self.is_local, self.uri
        return Path(self.uri)

    # reading ---------------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a file stands here (a folder of an object store is no file)."""
        with plainly(self, "look for"):
            # fsspec's own isfile calls a store that cannot be reached an absent file
            return self.path.exists() if self.is_local else self.entry() is not None

    def size(self) -> int:
        """Bytes of the file."""
        with plainly(self, "read"):
            if self.is_local:
                return self.path.stat().st_size
            if (found := self.entry()) is None:
                raise FileNotFoundError(self.uri)
            return found.size

    def entry(self) -> Entry | None:
        """The file as a listing would show it (see `files` for size -1), or None where there is none."""
        with plainly(self, "look for"):
            if self.is_local:
                return _local_entry(self) if os.path.lexists(self.uri) or self.unseen() else None
            if self.scheme == "s3":
                found = s3.head(self.bucket, self.key)
                return Entry(self, int(found["ContentLength"]), found["ETag"].strip('"')) if found else None
            other = remote.entry(self.uri)
            return Entry(self, other.size, other.etag) if other else None

    def unseen(self) -> str:
        """Why nobody can tell whether a local file is there, in words; "" where that can be told."""
        try:
            os.stat(self.uri)
        except PermissionError:
            return "no permission to look at it; is its folder, or that of what it links to, closed (no x)?"
        except (OSError, ValueError) as error:  # a ValueError: nothing can have that name
            if isinstance(error, OSError) and error.errno not in _NOTHING_THERE:
                return f"it cannot be looked at: {error.strerror}"
        return ""

    def read(self) -> bytes:
        """The whole file."""
        with plainly(self, "read"):
            if self.is_local:
                return self.path.read_bytes()
            if self.scheme == "s3":
                return s3.read(self.bucket, self.key).data
            return remote.read(self.uri)

    def read_if_there(self) -> bytes | None:
        """The whole file; None where there is none."""
        try:
            return self.read()
        except StorageError as error:
            if _is_absence(error):
                return None
            raise

    def _read(self) -> tuple[bytes, str]:
        """The whole file, and the mark of an `Entry` of what was read; "" where none is known."""
        with plainly(self, "read"):
            if self.is_local:
                with open(self.path, "rb") as file:
                    return file.read(), _local_mark(os.fstat(file.fileno()))
            if self.scheme == "s3":
                found = s3.read(self.bucket, self.key)
                return found.data, found.etag
        data, after = self.read(), self.entry()
        return data, after.etag if after else ""

    def pieces(self, size: int = 1 << 22) -> Iterator[bytes]:
        """The file's bytes in turn, so many at once at most; all of them, or StorageError is raised."""
        with plainly(self, "read"):
            if self.is_local:
                with open(self.path, "rb") as file:
                    while piece := file.read(size):
                        yield piece
                return
        whole = self.size()
        with plainly(self, "read"), self.open_arrow() as source:
            # by pyarrow each piece is a request of its own, and tried again by itself
            for start in range(0, whole, size):
                piece = source.read_at(min(size, whole - start), start)
                if len(piece) < min(size, whole - start):
                    raise ConnectionError(f"{len(piece)} bytes at {start} of {whole}")
                yield piece

    def modified_s(self) -> float | None:
        """When the file was last written, in seconds by the storage's clock; None where there is no file."""
        with plainly(self, "look for"):
            if self.is_local:
                try:
                    return self.path.stat().st_mtime
                except (FileNotFoundError, NotADirectoryError):
                    return None
            if self.scheme == "s3":
                return s3.modified_s(self.bucket, self.key)
            return remote.modified_s(self.uri)

    def now_s(self) -> float:
        """The time by the clock that `modified_s` tells, which need not be this machine's: that of a file made here."""
        probe = self._probe()
        probe.write(b"")
        try:
            written = probe.modified_s()
        finally:
            probe.delete()
        if written is None:
            raise StorageError(f"{probe}: was written, and is gone")
        return written

    def open_arrow(self) -> Any:
        """A pyarrow file that is read at any place; close it, or use it in `with`."""
        with plainly(self, "read"):
            if self.is_local:
                return _local_arrow().open_input_file(self.uri)
            if self.scheme == "s3":
                return s3.open_arrow(self.bucket, self.key)
            return remote.open_arrow(self.uri)

    def open_parquet(self, *, pre_buffer: bool = False) -> Any:
        """A pyarrow.parquet.ParquetFile; close it, or use it in `with`. As in `open_parquet_and_bytes`."""
        return self.open_parquet_and_bytes(pre_buffer=pre_buffer)[0]

    def open_parquet_and_bytes(self, *, pre_buffer: bool = False) -> tuple[Any, Any]:
        """A pyarrow.parquet.ParquetFile, and the pyarrow file that it reads, opened once for both.

        pre_buffer joins the reads of neighbouring columns and does them side by side: right for many small ones.
        Raises DamagedFile where what stands there is no Parquet file.
        """
        import pyarrow.parquet

        with plainly(self, "read"), intact(self, "a Parquet file"):
            if self.scheme == "s3":
                return s3.open_parquet(self.bucket, self.key, pre_buffer=pre_buffer)
            source = self.open_arrow()
            return pyarrow.parquet.ParquetFile(source, pre_buffer=pre_buffer, page_checksum_verification=True), source

    def files(self, *, hidden: bool = True) -> Iterator[Entry]:
        """Every file below this folder, in order of URI, from one flat listing, of which a page is held at a time.

        A dangling link is listed with size -1, so that whoever reads it can say so, and so is a file of which no more
        than the name can be seen (`unseen`); what is no regular file (a FIFO, a socket) is not listed, and a link to a
        folder that holds it is not followed. hidden: False leaves out, on disk, what lies in folders whose name begins
        with a dot; an object store lists it all the same. Raises StorageError where the folder does not exist or cannot
        be listed.
        """
        if self.is_local:
            yield from self._local_files((os.path.realpath(self.uri),), hidden=hidden)
            return
        if self.scheme == "s3":
            with plainly(self, "list"):
                for found in self._s3_listing("Contents"):
                    if not found["Key"].endswith("/"):  # what some tools put for an empty folder
                        here = Place(f"s3://{self.bucket}/{found['Key']}")
                        modified_s = datetime.fromisoformat(found["LastModified"]).timestamp()
                        yield Entry(here, int(found["Size"]), found["ETag"].strip('"'), modified_s)
            return
        with plainly(self, "list"):
            for other in remote.files(self.uri):
                yield Entry(Place(other.uri), other.size, other.etag)

    def _s3_listing(self, kind: Literal["Contents", "CommonPrefixes"], *, delimiter: str = "") -> Iterator[dict]:
        """What a listing of this folder says of its objects, or, with a delimiter, of the folders in it."""
        prefix = f"{self.key}/" if self.key else ""
        for page in s3.listed(self.bucket, prefix, delimiter=delimiter):
            yield from page.get(kind, ())

    def _local_files(self, real: tuple[str, ...], *, hidden: bool) -> Iterator[Entry]:
        """real: the real path of this folder, and before it of the folders from which links led here."""
        with plainly(self, "list"):
            entries = [(entry, _is_folder(entry)) for entry in os.scandir(self.path)]
        for entry, is_folder in sorted(entries, key=lambda pair: pair[0].name + "/" * pair[1]):
            here = Place(os.path.join(self.uri, entry.name))
            if not is_folder:
                if (file := _local_entry(here)) is not None:
                    yield file
            elif entry.name.startswith(".") and not hidden:
                continue
            elif not entry.is_symlink():
                yield from here._local_files((*real[:-1], os.path.join(real[-1], entry.name)), hidden=hidden)
            elif not any(_holds(os.path.realpath(entry.path), folder) for folder in real):
                yield from here._local_files((*real, os.path.realpath(entry.path)), hidden=hidden)

    def names(self) -> list[str]:
        """The names of the files directly in this folder, sorted; none where the folder does not exist."""
        with plainly(self, "list"):
            if self.is_local:
                if not self.path.is_dir():
                    return []
                return sorted(entry.name for entry in os.scandir(self.path) if os.path.isfile(entry.path))
            if self.scheme == "s3":
                keys = (found["Key"] for found in self._s3_listing("Contents", delimiter="/"))
                return sorted(key.rpartition("/")[2] for key in keys if not key.endswith("/"))
            return remote.names(self.uri, "file")

    def folders(self) -> list[str]:
        """The names of the folders directly in this folder, sorted; none where the folder does not exist."""
        with plainly(self, "list"):
            if self.is_local:
                if not self.path.is_dir():
                    return []
                return sorted(entry.name for entry in os.scandir(self.path) if _is_folder(entry))
            if self.scheme == "s3":
                prefixes = (found["Prefix"] for found in self._s3_listing("CommonPrefixes", delimiter="/"))
                return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes)
            return remote.names(self.uri, "directory")

    # writing ---------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Replace the file, whole."""
        with plainly(self, "write"):
            if self.scheme == "s3":
                s3.put(self.bucket, self.key, data)
                return
            if not self.is_local:
                remote.write(self.uri, data)
                return
            with self._aside() as (file, name):
                file.write(data)
                _flush(file)
                os.replace(name, self.path)

    def append(self, data: bytes) -> None:
        """Add whole lines to a local file; a last line that a crash cut short is ended first."""
        with plainly(self, "write"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    data = data if file.read(1) == b"\n" else b"\n" + data
                file.write(data)

    def create(self, data: bytes) -> bool:
        """Write the file if there is none; False, and nothing changed, if there is one."""
        with plainly(self, "write"):
            if self.is_local:
                return self._create_local(data)
            if self.scheme == "s3":
                return s3.create(self.bucket, self.key, data)
            return remote.create(self.uri, data)

    def _create_local(self, data: bytes) -> bool:
        """A file without a name until it is whole: a process that is killed leaves nothing behind (Linux).

        Elsewhere, and on file systems that have no such files, a named one stands aside until it is linked.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(self.path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
        except (AttributeError, OSError):
            with self._aside() as (file, name):
                file.write(data)
                _flush(file)
                return _link(str(name), self.path)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            _flush(file)
            # With a directory's handle, os.link follows the link that /proc shows; without one it does not.
            return _link(f"/proc/self/fd/{handle}", self.path, src_dir_fd=handle)

    def upload(self, file: Path) -> None:
        """Replace the file by a local one, without holding it in memory."""
        with plainly(self, "write"):
            if self.scheme == "s3":
                s3.put_file(self.bucket, self.key, file)
                return
            if not self.is_local:
                remote.upload(self.uri, file)
                return
            with open(file, "rb") as source, self._aside() as (target, name):
                while block := source.read(1 << 22):
                    target.write(block)
                _flush(target)
                os.replace(name, self.path)

    def touch(self) -> bool:
        """Make the file count as written now, its content as it is; False where there is none."""
        try:
            if self.is_local:
                with plainly(self, "write"):
                    os.utime(self.path)
            else:
                self.write(self.read())
        except StorageError as error:
            if _is_absence(error):
                return False
            raise
        return True

    def delete(self) -> None:
        """Remove the file; nothing happens where there is none."""
        with plainly(self, "delete"):
            if self.is_local:
                self.path.unlink(missing_ok=True)
            elif self.scheme == "s3":
                s3.delete(self.bucket, self.key)
            else:
                remote.delete(self.uri)

    def check_writable(self) -> None:
        """Raise StorageError, having left nothing behind, where this folder could not be written to."""
        if not self.is_local:
            probe = self._probe()
            probe.write(b"")
            probe.delete()
            return
        folder = self.path
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise StorageError(f"{self.uri}: {folder} is a file; give a folder")
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise StorageError(
                f"{self.uri}: cannot write in {folder}: {error.strerror}; choose another place"
            ) from error

    def creates_once(self) -> bool:
        """Whether `create` keeps its promise here: some object stores ignore `If-None-Match` and let everybody win."""
        if self.is_local:
            return True
        probe = self._probe()
        probe.create(b"first")
        kept = not probe.create(b"second")
        probe.delete()
        return kept

    def _probe(self) -> Place:
        """A file of this folder that is there for a moment; `left_by_a_kill` knows its name."""
        return self / f".bfp-{secrets.token_hex(6)}"

    @contextmanager
    def _aside(self) -> Iterator[tuple[IO[bytes], Path]]:
        """A new file beside a local one, under a name that is gone at the end, but for a kill (`left_by_a_kill`)."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        name = self.path.parent / f".{self.path.name}.{secrets.token_hex(4)}"
        try:
            with open(name, "wb") as file:
                yield file, name
        finally:
            name.unlink(missing_ok=True)


_AUTHORITY = re.compile(r"([\w+.-]+)://(?:\[[^/]*?\])?([^/?#]*)")
_SIGNED = re.compile(
    r"[?&;#](?:[\w-]*(?:signature|credential|token|secret|password|api[_-]?key)|sig|AWSAccessKeyId|Key-Pair-Id)=", re.I
)


_LEFT = re.compile(r"[.]bfp-[0-9a-f]{12}|[.].+[.][0-9a-f]{8}")


def left_by_a_kill(name: str) -> bool:
    """Whether a file of this name is one that bfp takes away itself unless it is killed meanwhile."""
    return bool(_LEFT.fullmatch(name))


def place(text: str, *, base: Path | None = None) -> Place:
    """The place that a user named: a URI as it is, a path made absolute from `base` (else the working directory).

    Raises InputError for a URI that carries a secret: places stand in errors, events and tables.
    """
    if "://" in text:
        scheme, _, rest = text.partition("://")
        if scheme != scheme.lower():
            raise InputError(f"{scheme}://…: schemes are in small letters; write {scheme.lower()}://")
        if secret := _secret(text):
            shown = re.split("[?#]", text)[0].rpartition("/")[2].rpartition("@")[2].rpartition(":")[2]
            raise InputError(
                f"{scheme}://…/{shown}: holds a {secret}, which would stand in logs and tables; name the place without "
                "it, and give the credentials to the client (s3://: AWS_PROFILE; others: a file in ~/.config/fsspec)"
            )
        if scheme == "file":
            return Place(os.path.abspath(rest))
        if not rest.strip("/"):
            raise InputError(f"{text}: names no bucket; expected {scheme}://bucket/key")
        return Place(text.rstrip("/"))
    if slip := re.match(r"([A-Za-z][\w+.-]+):/", text):
        raise InputError(f"{text}: neither a path nor a URI; expected {slip[1].lower()}://…")
    return Place(os.path.abspath(os.path.join(base or Path.cwd(), os.path.expanduser(text))))


def _is_absence(error: StorageError) -> bool:
    """Whether it says that there is no such file; there is none below a file either."""
    return isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)


def _secret(uri: str) -> str:
    """What kind of secret a URI carries; "" for none. `name@host` is none but for http, where tokens are given so."""
    for scheme, authority in _AUTHORITY.findall(uri):
        user, at, _ = authority.rpartition("@")
        # keys of AWS may hold a "/": what comes before it is then no host with a port
        if ":" in user or (at and scheme in ("http", "https")) or re.search(r":\d*[^\d]", authority):
            return "password"
    return "signature" if _SIGNED.search(uri) else ""


_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)  # the last: a link that leads to itself


def _local_entry(here: Place) -> Entry | None:
    """None for what is no regular file."""
    try:
        found = here.path.stat()
    except OSError:
        return Entry(here, -1, "")
    if not stat.S_ISREG(found.st_mode):
        return None
    return Entry(here, found.st_size, _local_mark(found), found.st_mtime)


def _local_mark(found: os.stat_result) -> str:
    return str(found.st_mtime_ns)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """As `is_dir`, which raises for a link that leads to itself."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _holds(folder: str, path: str) -> bool:
    """Whether a path, real as the folder's, is the folder or lies in it."""
    return os.path.commonpath([folder, path]) == folder


def _link(source: str, target: Path, *, src_dir_fd: int | None = None) -> bool:
    """Give a file its name; False where the name is taken."""
    try:
        os.link(source, target, src_dir_fd=src_dir_fd, follow_symlinks=True)
    except FileExistsError:
        return False
    return True


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@cache
def _local_arrow() -> Any:
    from pyarrow import fs

    return fs.LocalFileSystem(use_mmap=True)


# clients of stores, whose errors share no base and cannot be imported where they are not installed
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "ftplib", "paramiko", "gcsfs", "google", "azure")


@contextmanager
def plainly(here: Place, verb: str) -> Iterator[None]:
    """Turn what the storage clients raise into a StorageError in plain words."""
    try:
        with s3.explaining(here.bucket) if here.scheme == "s3" else nullcontext():
            yield
    except FileNotFoundError as error:
        raise StorageError(f"{here}: cannot {verb} it: nothing is there") from error
    except PermissionError as error:
        raise StorageError(f"{here}: cannot {verb} it: no permission; check the owner or the credentials") from error
    except IsADirectoryError as error:
        raise StorageError(f"{here}: cannot {verb} it: it is a folder, and a file is expected") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise StorageError(f"{here}: cannot {verb} it: a file stands where a folder should be") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"{here}: cannot {verb} it: no space left; make room there") from error
        raise StorageError(f"{here}: cannot {verb} it: {error}{_remedy(here, error)}") from error
    except NotImplementedError as error:
        raise StorageError(f"{here}: cannot {verb} it: {here.scheme}:// cannot do that; use a path or s3://") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        raise StorageError(f"{here}: cannot {verb} it: {error}{_remedy(here, error)}") from error


def _remedy(here: Place, error: Exception) -> str:
    """What to do about what a client says in its own words."""
    if isinstance(error, s3.Refused):
        return ""  # the words are ours, and say it
    if isinstance(error, Exhausted):
        return "; see that the store can be reached, then do it again"
    return "; check the disk" if here.is_local else "; check the address, the credentials and the network"


_DAMAGED_PAGE = re.compile("page integrity|decompress|[Cc]orrupt|[Tt]hrift")


@contextmanager
def intact(here: Place, kind: str) -> Iterator[None]:
    """Turn what decoding a file raises into DamagedFile.

    Unicode's, JSON's and most of Arrow's errors are ValueErrors; Arrow's of pages are OSErrors like those of disks.
    kind: what the file should be, as in "a Parquet file".
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and not _DAMAGED_PAGE.search(str(error)):
            raise
        said = str(error).partition("\n")[0]
        raise DamagedFile(f"{here}: damaged, or not {kind} ({said}); put back a good copy, or move it away") from error

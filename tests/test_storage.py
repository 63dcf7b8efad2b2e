from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from bfp.errors import DamagedFile, InputError, StorageError
from bfp.storage import Place, patience, place
from tests.storage.makers import CarelessStore


def test_a_path_is_made_absolute_and_a_uri_is_left_alone(tmp_path: Path) -> None:
    assert place("a/b", base=tmp_path).uri == str(tmp_path / "a/b")
    assert place("s3://bucket/key/").uri == "s3://bucket/key"
    assert (place("s3://bucket") / "a.json").parent.uri == "s3://bucket"
    assert pickle.loads(pickle.dumps(place("s3://bucket/key"))) == Place("s3://bucket/key")


@pytest.mark.parametrize(
    "uri",
    [
        "http://reader:SECRET@host/scan.nii",
        "https://SECRET@host/scan.nii",
        "ftp://reader:SECRET@host/x",
        "s3://KEY:SECRET/x@bucket/scan",
        "simplecache::http://reader:SECRET@host/scan.nii",
        "https://bucket.s3.amazonaws.com/scan?X-Amz-Credential=A&X-Amz-Signature=SECRET",
        "https://storage/scan?versionId=1&x-goog-signature=SECRET",
        "https://account.blob/scan?sv=2024&sig=SECRET",
        "https://host/scan?access_token=SECRET#part",
    ],
)
def test_a_uri_that_carries_a_secret_is_refused_without_repeating_it(uri: str) -> None:
    with pytest.raises(InputError, match=r"holds a (password|signature).*; name the place without it") as refused:
        place(uri)
    assert "SECRET" not in str(refused.value)
    assert "reader" not in str(refused.value)


def test_a_uri_that_only_looks_so_is_taken(tmp_path: Path) -> None:
    for uri in ("s3://bucket/a@b:c?d=e#f", "abfs://container@account.dfs.core.windows.net/x", "sftp://reader@host/x"):
        assert place(uri).uri == uri
    assert place("a:b@c?sig=1", base=tmp_path).uri == f"{tmp_path}/a:b@c?sig=1"


def test_a_uri_without_a_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="names no bucket"):
        place("s3://")


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    file = place("x/file.json", base=tmp_path)
    file.write(b"old")
    file.write(b"new")
    assert file.read() == b"new"
    assert os.listdir(tmp_path / "x") == ["file.json"]


@pytest.mark.parametrize("way", ["write", "upload", "create", "create without unnamed files"])
def test_a_file_that_could_not_be_written_leaves_nothing_beside_it(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, big = place("x/file.json", base=tmp_path), tmp_path / "big"
    big.write_bytes(bytes(5000))
    file.write(b"old")
    if way == "create without unnamed files":
        monkeypatch.delattr(os, "O_TMPFILE")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"json: cannot write it: .*File too large; check the disk$"):
            if way == "write":
                file.write(bytes(5000))
            elif way == "upload":
                file.upload(big)
            else:
                (file.parent / "other.json").create(bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert file.read() == b"old"
    assert os.listdir(tmp_path / "x") == ["file.json"]


def test_only_the_first_creation_of_a_file_counts(tmp_path: Path) -> None:
    file = place("commit.json", base=tmp_path)
    assert file.create(b"first")
    assert not file.create(b"second")
    assert file.read() == b"first"
    assert os.listdir(tmp_path) == ["commit.json"]


def _race(uri: str, number: int, rounds: int, results: multiprocessing.Queue) -> None:
    results.put([Place(f"{uri}/{turn}").create(str(number).encode()) for turn in range(rounds)])


def test_of_many_processes_that_create_a_file_one_wins_each_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue = context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), number, 50, results)) for number in range(4)]
    for racer in racers:
        racer.start()
    wins = [results.get(timeout=300) for _ in racers]
    for racer in racers:
        racer.join()
    assert [sum(turn) for turn in zip(*wins, strict=True)] == [1] * 50


def test_a_listing_is_flat_sorted_and_tells_a_dangling_link(tmp_path: Path) -> None:
    for name in ("b/two", "a/one", "a-3"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "b/gone").symlink_to(tmp_path / "nowhere")
    entries = list(Place(str(tmp_path)).files())
    assert [entry.place.uri.removeprefix(f"{tmp_path}/") for entry in entries] == ["a-3", "a/one", "b/gone", "b/two"]
    assert [entry.size for entry in entries] == [2, 2, -1, 2]


def test_links_that_lead_in_a_circle_end_no_listing(tmp_path: Path) -> None:
    cohort, elsewhere = tmp_path / "cohort", tmp_path / "elsewhere"
    for folder in (cohort / "sub", elsewhere):
        folder.mkdir(parents=True)
        (folder / "scan").write_bytes(b"12")
    (cohort / "itself").symlink_to(cohort / "itself")
    (cohort / "sub/up").symlink_to(cohort)
    (cohort / "sub/root").symlink_to("/")
    (cohort / "there").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(cohort / "sub")
    found = [(entry.place.uri.removeprefix(f"{cohort}/"), entry.size) for entry in Place(str(cohort)).files()]
    assert found == [("itself", -1), ("sub/scan", 2), ("there/back/scan", 2), ("there/scan", 2)]
    assert Place(str(cohort)).names() == []
    assert Place(str(cohort)).folders() == ["sub", "there"]


def test_what_is_no_regular_file_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "scan.nii.gz").write_bytes(b"12")
    assert [entry.place.name for entry in Place(str(tmp_path)).files()] == ["scan.nii.gz"]
    assert Place(str(tmp_path / "pipe.nii.gz")).entry() is None


def test_a_store_that_cannot_be_reached_is_not_an_absent_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 1.0)

    class Away(MemoryFileSystem):
        protocol = "away"

        def info(self, path: str, **more: object) -> dict:
            raise OSError("Unable to locate credentials")

    fsspec.register_implementation("away", Away)
    with pytest.raises(StorageError, match="Unable to locate credentials"):
        Place("away://bucket/store.json").exists()
    with pytest.raises(StorageError, match="Cannot connect"):
        Place("http://127.0.0.1:9/store.json").exists()


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    file = Place(str(tmp_path / "part.parquet"))
    file.write(b"no columns here")
    with pytest.raises(DamagedFile, match=r"part.parquet: damaged, or not a Parquet file \(.*magic bytes"):
        file.open_parquet()


def test_a_file_s_mark_changes_with_its_content(tmp_path: Path) -> None:
    file = Place(str(tmp_path / "scan"))
    file.write(b"aa")
    (before,) = Place(str(tmp_path)).files()
    file.write(b"bb")
    (after,) = Place(str(tmp_path)).files()
    assert before.etag != after.etag


def test_a_file_that_goes_while_it_is_looked_at_has_a_time_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, stat = place("lease", base=tmp_path), Path.stat

    def stat_once(self: Path, **more: bool) -> os.stat_result:
        found = stat(self, **more)
        self.unlink()
        return found

    file.write(b"")
    with monkeypatch.context() as deleting:
        deleting.setattr(Path, "stat", stat_once)
        assert file.modified_s() is not None
    assert file.modified_s() is None
    file.write(b"")
    assert (file / "below").modified_s() is None


def test_what_was_listed_is_read_as_it_was_or_not_at_all(tmp_path: Path) -> None:
    check_entries_are_read_as_listed(Place(str(tmp_path)) / "scan")


def test_what_was_listed_elsewhere_is_read_as_it_was_or_not_at_all() -> None:
    check_entries_are_read_as_listed(Place("memory://marks/scan"))


def check_entries_are_read_as_listed(file: Place) -> None:
    file.write(b"aa")
    (listed,) = file.parent.files()
    assert listed.read() == b"aa"
    for other, message in ((b"bb", "not the file that it was"), (b"bbb", "3 bytes, but 2")):
        file.write(other)
        with pytest.raises(StorageError, match=f"{message} when it was listed: .*; submit again"):
            listed.read()


def test_a_missing_folder_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no-such: cannot list it: nothing is there"):
        list(Place(str(tmp_path / "no-such")).files())


def test_a_file_where_a_folder_should_be_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="is a file; give a folder"):
        Place(str(tmp_path / "file/below")).check_writable()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_in_which_nobody_can_write_is_found_out_whoever_asks(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"/proc/x: cannot write in /proc: .*; choose another place"):
        Place("/proc/x").check_writable()
    Place(str(tmp_path / "new")).check_writable()
    assert os.listdir(tmp_path) == []


def test_an_unknown_scheme_is_said_in_words() -> None:
    with pytest.raises(InputError, match="no scheme that fsspec knows"):
        Place("gopher://host/x").exists()


def test_a_package_that_a_scheme_needs_is_named() -> None:
    with pytest.raises(InputError, match="needs a package that is not installed: Please install gcsfs"):
        Place("gs://bucket/x").exists()


def test_a_store_that_lets_everybody_create_is_found_out_and_nothing_is_left_there(tmp_path: Path) -> None:
    fsspec.register_implementation("careless", CarelessStore)
    for folder, kept in (
        (Place("careless://runs"), False),
        (Place("memory://runs"), True),
        (Place(f"{tmp_path}"), True),
    ):
        assert folder.creates_once() is kept
        assert folder.names() == []


def test_an_object_store_keeps_the_same_promises(s3_bucket: str, tmp_path: Path) -> None:
    folder = Place(s3_bucket) / "storage"
    file = folder / "commit.json"
    assert not file.exists()
    assert file.create(b"first")
    assert not file.create(b"second")
    assert file.read() == b"first"
    assert file.size() == 5
    file.write(b"third")
    assert file.read() == b"third"
    (tmp_path / "big").write_bytes(bytes(1_000_000))
    (folder / "deep/big").upload(tmp_path / "big")
    assert [(entry.place.name, entry.size) for entry in folder.files()] == [("commit.json", 5), ("big", 1_000_000)]
    assert folder.names() == ["commit.json"]
    folder.check_writable()
    assert folder.creates_once()
    assert folder.names() == ["commit.json"]
    check_entries_are_read_as_listed(folder / "marks" / "scan")
    file.delete()
    file.delete()
    assert not file.exists()
    with pytest.raises(StorageError, match="nothing is there"):
        file.read()


def test_a_bucket_that_is_not_there_is_said_in_words(s3_bucket: str) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket-bfp"):
        Place("s3://no-such-bucket-bfp/x").check_writable()

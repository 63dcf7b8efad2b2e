import threading
from pathlib import Path

import pytest

from bfp.cohorts import Scan
from bfp.cohorts.reading import AHEAD_SCANS, Contents, ReadAhead
from bfp.errors import Reason, StorageError, Unusable
from bfp.storage import Entry, Place
from tests.cohorts.makers import entry, touch


class Store:
    """Files of which each is read when the test says so; `asked` are those whose reading began."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *sizes: int) -> None:
        self.scans = []
        for number, size in enumerate(sizes):
            (folder / f"{number}.nii").write_bytes(bytes([number]) * size)
            self.scans.append(Scan("T1w", entry(folder / f"{number}.nii")))
        self.asked: list[str] = []
        self._may_go, self._changed = threading.Event(), threading.Condition()
        reads = Place._read

        def read(file: Place) -> tuple[bytes, str]:
            with self._changed:
                self.asked.append(file.name)
                self._changed.notify_all()
            assert self._may_go.wait(120)
            return reads(file)

        monkeypatch.setattr(Place, "_read", read)

    def go(self) -> None:
        self._may_go.set()

    def wait_for(self, count: int) -> list[str]:
        """The files asked for, once there are so many."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= count, timeout=120), self.asked
            return sorted(self.asked)


def test_files_come_in_turn_and_a_few_are_read_before_theirs(tmp_path, monkeypatch):
    store = Store(tmp_path, monkeypatch, *[3] * 10)
    ahead = ReadAhead(store.scans)
    with pytest.raises(TimeoutError):
        ahead.take(store.scans[0], timeout_s=0.1)
    asked = store.wait_for(1 + AHEAD_SCANS)
    assert asked == [f"{number}.nii" for number in range(1 + AHEAD_SCANS)]
    store.go()
    found = [ahead.take(scan, timeout_s=10).file for scan in store.scans[1:]]
    assert found == [bytes([number]) * 3 for number in range(1, 10)]
    assert len(store.asked) == 10


def test_bytes_read_ahead_are_bounded_and_a_file_over_the_bound_waits_for_its_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("bfp.cohorts.reading.AHEAD_BYTES", 10)
    store = Store(tmp_path, monkeypatch, 4, 4, 4, 11, 4)
    store.go()
    ahead = ReadAhead(store.scans)
    begun = []
    for scan in store.scans:
        ahead.take(scan, timeout_s=10)
        begun.append(len(store.wait_for(0)))
    assert all(each <= most for each, most in zip(begun, (3, 3, 3, 5, 5), strict=True)), begun
    assert store.wait_for(5) == [f"{number}.nii" for number in range(5)]


def test_what_was_never_announced_is_read_at_once(tmp_path, monkeypatch):
    store = Store(tmp_path, monkeypatch, 3, 4)
    store.go()
    ahead = ReadAhead(store.scans[:1])
    assert len(ahead.take(store.scans[1], timeout_s=10).file) == 4
    assert len(ahead.take(store.scans[0], timeout_s=10).file) == 3


def test_what_nobody_took_is_not_waited_for(tmp_path, monkeypatch):
    store = Store(tmp_path, monkeypatch, *range(1, 13))
    store.go()
    ahead = ReadAhead(store.scans)
    for number in (0, 2, 11):
        assert len(ahead.take(store.scans[number], timeout_s=10).file) == number + 1
    assert len(set(store.wait_for(0))) == len(store.wait_for(0))


def test_what_goes_wrong_with_a_file_is_raised_at_its_turn(tmp_path):
    touch(tmp_path, "a.nii", "b.nii")
    scans = [Scan("T1w", entry(tmp_path / name)) for name in ("a.nii", "b.nii")]
    scans.append(Scan("T1w", Entry(Place(f"{tmp_path}/none.nii"), -1, "")))
    (tmp_path / "b.nii").write_bytes(b"more")
    ahead = ReadAhead(scans)
    assert ahead.take(scans[0], timeout_s=10) == Contents(b"a.nii")
    with pytest.raises(StorageError, match=r"b\.nii"):
        ahead.take(scans[1], timeout_s=10)
    with pytest.raises(Unusable) as missing:
        ahead.take(scans[2], timeout_s=10)
    assert missing.value.reason is Reason.MISSING

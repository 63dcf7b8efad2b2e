"""Temporary folders: gone at the end, and those of processes that were killed by whoever comes next."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from bfp.runs import born_at
from bfp.runs.scratch import PREFIX, disown, owned_folder, remove_orphans, scratch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def owned(folder: Path, owner: str) -> Path:
    (folder / "session").mkdir(parents=True)
    (folder / "owner").write_text(owner)
    return folder


def test_folders_of_killed_processes_and_those_kept_long_are_removed_and_no_others(here: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    owned(here / "bfp-ray-killed", f"{killed.pid} 1")
    owned(here / "bfp-ray-number-given-out-again", f"{os.getpid()} 1")
    alive = owned(here / "bfp-ray-alive", f"{os.getpid()} {born_at(os.getpid())}")
    odd = owned(here / "bfp-ray-odd", "")
    other = owned(here / "bfp-other", f"{killed.pid} 1")
    kept, long_kept = here / "bfp-ray-kept", here / "bfp-ray-long-kept"
    kept.mkdir()
    (long_kept / "session").mkdir(parents=True)
    long_ago = time.time() - 8 * 86_400
    os.utime(long_kept, (long_ago, long_ago))
    remove_orphans("bfp-ray-", str(here))
    assert sorted(here.iterdir()) == [other, alive, kept, long_kept, odd]
    remove_orphans("bfp-ray-", str(here), kept_s=7 * 86_400)
    assert sorted(here.iterdir()) == [other, alive, kept, odd]


def test_a_scratch_folder_is_this_user_s_alone_empty_and_gone_at_the_end(here: Path) -> None:
    with pytest.raises(KeyError), scratch() as folder:
        (made,) = here.iterdir()
        assert made.stat().st_mode & 0o777 == 0o700
        assert list(folder.iterdir()) == []
        (folder / "checkpoint").mkdir()
        with scratch() as second:
            assert second != folder
        assert folder.is_dir()
        raise KeyError
    assert list(here.iterdir()) == []


def test_a_folder_that_is_disowned_stays(here: Path) -> None:
    folder = owned_folder(PREFIX, str(here))
    disown(folder)
    remove_orphans()
    assert list(here.iterdir()) == [folder]

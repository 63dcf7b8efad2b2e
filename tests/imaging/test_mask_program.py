"""The brain by a program of the user's own: what it finds, and each way in which it may fail."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from bfp.errors import Reason, Unusable
from bfp.imaging.mask_program import MaskProgram, program_mask
from bfp.imaging.session import PreparedSession, prepare_session
from tests.imaging.makers import grid, head, recipe, scan, volume
from tests.imaging.programs import write_program

NATIVE = grid(axes="LPS", shape=(70, 86, 62), spacing_mm=(2.4, 2.2, 2.6), tilt_deg=(4.0, -6.0, 3.0))
BRAIN_ML = 4 / 3 * np.pi * 60 * 77 * 60 / 1000  # of the phantom


def program(folder: Path, how: str, *, limit_s: float = 60) -> MaskProgram:
    return MaskProgram((str(write_program(folder)), "{scan}", "{mask}", how), limit_s)


def prepared(folder: Path, how: str, **modalities: str) -> PreparedSession:
    scans = {name: scan(NATIVE, contrast=contrast, noise=4.0) for name, contrast in modalities.items()}
    return prepare_session(scans, recipe=recipe(brain="program", brain_program=program(folder, how)))


@pytest.mark.parametrize("how", ["threshold", "coarse"])
def test_what_the_program_leaves_out_is_black_in_every_scan(tmp_path: Path, how: str) -> None:
    done = prepared(tmp_path, how, T1w="T1w", FLAIR="FLAIR")
    assert done.rejected == {}
    (stacks,) = done.prepared
    places = stacks.working.ras(np.moveaxis(np.indices(stacks.working.shape), 0, -1))[:, :, stacks.slices]
    outside = ((places / np.array([65.0, 82.0, 65.0])) ** 2).sum(axis=-1) > 1
    for channel in (0, 2):
        assert not stacks.pixels[:, channel][outside.T[:, ::-1]].any()
        assert stacks.pixels[:, channel].any()
    assert [facts.brain for facts in stacks.facts] == ["program", "program"]
    assert stacks.facts[0].brain_ml == pytest.approx(BRAIN_ML, rel=0.1)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("fails", "threshold.py ended with exit code 3"),
        ("writes nothing", "threshold.py wrote no {mask}, with exit code 0"),
        ("writes no image", "of what threshold.py wrote: not a NIfTI file: begins with"),
        ("blank", "the mask is blank: every voxel is 0"),
        ("elsewhere", "cannot be laid on the scan that it was drawn on: it covers 0% of the head in the T1w"),
        ("as the scan, without its header", "it has the shape of the T1w, and its corners lie up to"),
    ],
)
def test_a_program_that_finds_no_brain_costs_the_scan_and_says_why(tmp_path: Path, how: str, told: str) -> None:
    unusable = prepared(tmp_path, how, T1w="T1w").rejected["T1w"]
    assert unusable.reason is Reason.NO_BRAIN_MASK
    assert told in unusable.detail


def test_a_mask_that_is_too_small_for_a_brain_is_doubted(tmp_path: Path) -> None:
    small = grid(axes="LPS", shape=(70, 86, 62), spacing_mm=(0.8, 0.9, 0.7))
    marked = volume(small, np.where(np.indices(small.shape).sum(axis=0) < 60, 20, 200).astype(np.int16))
    marks = recipe(brain="program", brain_program=program(tmp_path, "threshold"), min_foreground=0.0)
    (stacks,) = prepare_session({"T1w": marked}, recipe=marks).prepared
    assert "ml, 300 to 2,100 are expected: is it a brain?" in stacks.facts[0].warnings[-1]


def test_a_scan_that_is_skull_stripped_already_is_not_shown_to_the_program(tmp_path: Path) -> None:
    points = NATIVE.ras(np.moveaxis(np.indices(NATIVE.shape), 0, -1))
    inside = (points**2 / np.array([60.0, 77.0, 60.0]) ** 2).sum(axis=-1) < 1
    stripped = volume(NATIVE, np.where(inside, head(NATIVE), 0).astype(np.float32))
    failing = recipe(brain="program", brain_program=program(tmp_path, "fails"))
    (stacks,) = prepare_session({"T1w": stripped}, recipe=failing).prepared
    assert stacks.facts[0].brain == "image"
    assert stacks.facts[0].warnings[-1].startswith("skull-stripped already: ")


def test_a_program_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"threshold\.py had not ended after 3 s, a scan's limit") as caught:
        program_mask(scan(NATIVE), program(tmp_path, "hangs", limit_s=3))
    assert caught.value.reason is Reason.TIMEOUT
    own, child = map(int, (tmp_path / "pids").read_text().split())
    with pytest.raises(ProcessLookupError):
        os.kill(own, 0)
    deadline = time.monotonic() + 120
    while _runs(child):  # it is nobody's child now, and stays for a moment or, without an init, as a zombie
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_program_that_runs_out_of_memory_is_no_fault_of_the_scan(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"threshold\.py was ended by signal 9, as where memory runs out"):
        program_mask(scan(NATIVE), program(tmp_path, "runs out of memory"))
    shell = MaskProgram(("/bin/sh", "-c", "exit 137 # {scan} {mask}"), 60)  # of what a script had started
    with pytest.raises(MemoryError, match="sh was ended by signal 9"):
        program_mask(scan(NATIVE), shell)


def test_nothing_of_a_scan_is_left_and_what_the_program_prints_is_not_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scratches = tmp_path / "scratch"
    scratches.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratches))
    program_mask(scan(NATIVE), program(tmp_path, "threshold"))
    with pytest.raises(Unusable):
        program_mask(scan(NATIVE), program(tmp_path, "fails"))
    assert list(scratches.iterdir()) == []
    assert capfd.readouterr() == ("", "")

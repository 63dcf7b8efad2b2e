"""Every command of the README is run as it is printed, in its order, by the installed `bfp`.

The user's BIDS folder is a small made one. The runs that the README looks at are the demo's own specs, made small
(`tests.chain`): this is also the test that the four jobs fit together from scans to predictions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bfp.demo.cohort import make_cohort
from bfp.demo.plan import Groups
from tests.chain import run_chain
from tests.conftest import CHECKOUT

BIN = Path(sys.executable).parent


def commands() -> list[str]:
    """The lines of the README's sh blocks, comments off."""
    blocks = re.findall(r"```sh\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"}
    return subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a BIDS dataset at data/bids and small runs of the demo's specs at demo/runs."""
    here = tmp_path_factory.mktemp("readme")
    for name, groups, prefix in (("cohort", Groups(4, 4, 0), ""), ("tonight", Groups(2, 2, 0), "n")):
        made = here / "demo" / name
        make_cohort(made, subjects=groups, seed=0, workers=2, progress=lambda done, total: None, prefix=prefix)
    shutil.copytree(here / "demo/cohort", here / "data/bids")
    run_chain("demo", cwd=here)
    return here


def test_every_command_of_the_readme_does_what_it_says(folder: Path) -> None:
    shown = commands()
    assert len(shown) > 15
    for command in shown:
        if "--on lab" in command:  # tests/targets/test_ray_jobs.py has a cluster for it
            continue
        if command.startswith("make "):
            known = subprocess.run(["make", "-n", command.split()[1]], cwd=CHECKOUT, capture_output=True, text=True)
            assert known.returncode == 0, f"{command}: {known.stderr}"
            continue
        done = run(command, folder)
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    assert (folder / "stores/my-store/snapshots/1.json").exists()
    assert (folder / "demo/runs/infer/report/index.html").exists()


def test_plain_timm_loads_the_exported_encoder_as_the_readme_says(folder: Path) -> None:
    source = re.search(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
    assert source is not None
    assert run("bfp export demo/runs/pretrain encoder-again", folder).returncode == 0
    code = source.group(1).replace("local-dir:encoder", "local-dir:encoder-again")
    code += "\nimport sys, torch; assert 'bfp' not in sys.modules; print(encoder(torch.zeros(1, 3, 56, 56)).shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "torch.Size([1, 32])", done.stderr

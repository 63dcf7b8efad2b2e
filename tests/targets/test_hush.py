"""What libraries say past Python stays out of sight, what we say does not."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os, subprocess, sys, warnings
from bfp.targets.hush import Hush

with Hush() as hush:
    os.write(2, b"from C++\\n")
    subprocess.run(["sh", "-c", "echo from a child >&2"])
    warnings.warn("a deprecation")
    sys.stderr.write("the display\\n")
    sys.stdout.write(repr(hush.heard()))
os.write(2, b"and afterwards\\n")
sys.stderr.write("all is as before\\n")
"""


def test_only_what_we_say_reaches_the_user():
    asked = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert asked.stderr == "the display\nand afterwards\nall is as before\n"
    assert asked.stdout == repr(b"from C++\nfrom a child\n")


def test_something_else_in_the_place_of_stderr_is_left_alone(capsys):
    from bfp.targets.hush import Hush

    before = sys.stderr
    with Hush():
        sys.stderr.write("captured")
        assert sys.stderr is before
    assert capsys.readouterr().err == "captured"

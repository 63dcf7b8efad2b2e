"""The profile: where it is looked for, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bfp.errors import SpecError
from bfp.specs.clusters import EXAMPLE
from bfp.specs.profile import profile_for
from bfp.specs.template import template

COMMAND = '[local]\nbrain_program = ["{}", "-i", "{{scan}}", "-m", "{{mask}}"]\n'


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_the_profile_beside_the_spec_goes_before_that_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    spec, own = tmp_path / "jobs" / "ingest.yaml", tmp_path / "xdg" / "bfp" / "bfp.toml"
    without = profile_for(spec)
    assert without.file == f"{tmp_path}/jobs/bfp.toml or {own}"
    assert without.local.brain_program is None
    write(own, COMMAND.format("hd-bet"))
    assert profile_for(spec).file == str(own)
    assert profile_for(spec).local.brain_program == ["hd-bet", "-i", "{scan}", "-m", "{mask}"]
    write(tmp_path / "jobs" / "bfp.toml", COMMAND.format("./bin/mask.sh"))
    command = profile_for(spec).local.brain_program
    assert command is not None
    assert command[0] == f"{tmp_path}/jobs/bin/mask.sh"


def test_without_xdg_the_users_profile_is_in_dot_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    write(tmp_path / ".config/bfp/bfp.toml", COMMAND.format("~/bin/mask.sh"))
    command = profile_for(tmp_path / "a" / "ingest.yaml").local.brain_program
    assert command is not None
    assert command[0] == f"{tmp_path}/bin/mask.sh"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'brain_program = ["hd-bet", "{scan}"]',
            "  local.brain_program: [hd-bet, '{scan}']\n    lacks {mask} behind the program's name, as in [",
        ),
        ('brain_program = ["hd-bet"]', "lacks {scan} and {mask} behind"),
        ("brain_program = []", "  local.brain_program: []\n    give at least one"),
        ('brain_program = ["", "{scan}", "{mask}"]', "  local.brain_program[0]: ''\n    must not be empty"),
        ('brain_program = "hd-bet {scan} {mask}"', "{mask}'\n    a list: [a, b]"),
        ("brain_programme = []", "  local.brain_programme: []\n    no such field; the nearest is brain_program"),
        (
            'mlflow = "https://me:pw@host"',
            "  local.mlflow: https://…@host\n    no user or password may stand here",
        ),
        ("[locale]", "  locale.target\n    missing; one of ray, kuberay, slurm; this machine's table is called local"),
        (
            '[lab]\ntarget = "slurm"\nwarning_s = 600\ntime_h = 0.1',
            "  lab.warning_s: 600\n    less than the time limit, which is 360 s",
        ),
        (
            '[lab]\ntarget = "slurm"\nenvironment = "/e"\ncontainer = "/c"',
            "  lab.environment\n    one of environment and container",
        ),
        ("brain_program = [\n'{scan}'\n'{mask}']", "bfp.toml:4\n    not TOML: Unclosed array (at line 4, column 1)"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said_with_its_field(tmp_path: Path, text: str, told: str) -> None:
    file = write(tmp_path / "bfp.toml", f"[local]\n{text}\n")
    with pytest.raises(SpecError) as caught:
        profile_for(tmp_path / "ingest.yaml")
    assert str(caught.value).startswith(str(file))
    assert told in str(caught.value)


def test_a_tracking_folder_is_sought_from_the_profiles_own(tmp_path: Path) -> None:
    for text, expected in (("mlruns", f"file://{tmp_path}/mlruns"), ("https://host/a", "https://host/a")):
        write(tmp_path / "bfp.toml", f'[local]\nmlflow = "{text}"\n')
        assert profile_for(tmp_path / "ingest.yaml").local.mlflow == expected


def test_a_spec_says_that_a_program_is_used_and_never_which() -> None:
    text = template("ingest", schema="x")
    assert "One of: none, given, image, deepbet, program." in text.replace("\n", " ").replace("  # ", "")
    assert EXAMPLE[0] not in text

"""`brain: program` in plans and runs: which command is taken, and which is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bfp.cli.main import run as run_command
from bfp.drivers import infer, ingest
from bfp.drivers.inputs import recipe_of
from bfp.drivers.preparing import find_brain_program
from bfp.errors import InputError
from bfp.runs import Run, RunFolder
from bfp.specs import Infer, Ingest, dump
from bfp.specs.preprocessing import Preprocessing
from bfp.specs.profile import NO_PROFILE, Profile, profile_for
from bfp.specs.target import LocalTarget
from bfp.storage import place
from bfp.store import layout
from bfp.store.reader import SliceStore
from tests.cohorts.makers import write_scan
from tests.imaging.programs import write_program
from tests.inference.makers import make_model, rewrite, write_subject

BY_PROGRAM = Preprocessing.model_validate({"brain": "program"})


def a_profile(*command: str) -> Profile:
    return Profile("/x/bfp.toml", local=LocalTarget(brain_program=list(command)))


def an_ingest(folder: Path, **fields: Any) -> Ingest:
    write_scan(folder / "bids/sub-01/anat/sub-01_T1w.nii.gz")
    coarse = {"spacing_mm": 5.0, "slice_spacing_mm": 6.0, "size": 44, "brain": "program"}
    return Ingest.model_validate(
        {
            "kind": "ingest",
            "name": "run",
            "output": f"{folder}/runs",
            "store": f"{folder}/store",
            "cohorts": [{"name": "demo", "bids": f"{folder}/bids"}],
            "preprocessing": coarse | fields,
            "pictures": False,
        }
    )


def test_without_a_profile_or_its_program_a_plan_says_what_to_write_where(tmp_path: Path) -> None:
    spec = an_ingest(tmp_path)
    with pytest.raises(InputError, match=r"write into bfp\.toml:\n    \[local\]\n    brain_program = \[.mri_synthstr"):
        ingest.plan(spec)
    with pytest.raises(InputError, match=r"^/x/bfp\.toml: local\.brain_program: no-such: no such program that can"):
        ingest.plan(spec, profile=a_profile("no-such", "{scan}", "{mask}"))
    assert not (tmp_path / "store").exists()
    assert find_brain_program(Preprocessing(), NO_PROFILE) == []


def test_the_commands_take_the_profile_beside_the_spec_and_validate_needs_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "ingest.yaml"
    spec.write_text(dump(an_ingest(tmp_path)))
    assert run_command(["validate", str(spec)]) == 0
    assert run_command(["submit", "--dry-run", str(spec)]) == 2
    assert f"write into {tmp_path}/bfp.toml or {tmp_path}/xdg/bfp/bfp.toml:" in capfd.readouterr().err
    write_program(tmp_path)
    (tmp_path / "bfp.toml").write_text('[local]\nbrain_program = ["./threshold.py", "{scan}", "{mask}", "threshold"]\n')
    assert run_command(["submit", "--dry-run", str(spec)]) == 0
    assert "the time and memory that the program takes are not counted" in "".join(capfd.readouterr())


def test_the_program_is_found_on_path_and_has_the_limit_of_a_scan() -> None:
    command = find_brain_program(BY_PROGRAM, a_profile("sh", "{scan}", "{mask}"))
    assert Path(command[0]).is_absolute()
    made = recipe_of(BY_PROGRAM, brain_program=command, scan_timeout_s=7).brain_program
    assert made is not None
    assert (made.name, made.command[1:], made.limit_s) == ("sh", ("{scan}", "{mask}"), 7)


def test_a_store_holds_the_command_and_refuses_another_wherever_the_program_lies(tmp_path: Path) -> None:
    spec, stored = an_ingest(tmp_path), {"brain_program": ["sh", "{scan}", "{mask}"]}
    made = spec.preprocessing.stored(brain_program=["/opt/bin/sh", "{scan}", "{mask}"])
    assert made == spec.preprocessing.stored() | stored
    assert Preprocessing.of_stored(made) == spec.preprocessing
    layout.make(place(spec.store), made)
    assert ingest.plan(spec, profile=a_profile("sh", "{scan}", "{mask}")).figures["sessions"] == 1
    told = r'brain_program: the store has \["sh", .*, asked for is \["sh", "-x", "\{scan\}", "\{mask\}"\]'
    with pytest.raises(InputError, match=told):
        ingest.plan(spec, profile=a_profile("sh", "-x", "{scan}", "{mask}"))


def test_a_model_is_shown_brains_by_its_own_program_alone(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", brain="program")
    told = json.loads((model / "model.json").read())
    rewrite(model, preprocessing={**told["preprocessing"], "brain_program": ["sh", "{scan}", "{mask}"]})
    write_subject(tmp_path / "clinic", "01")
    spec = Infer.model_validate(
        {
            "kind": "infer",
            "name": "tonight",
            "output": f"{tmp_path}/runs",
            "model": model.uri,
            "cohorts": [{"name": "clinic", "bids": f"{tmp_path}/clinic"}],
        }
    )
    with pytest.raises(InputError, match=r'bfp\.toml:\n    \[local\]\n    brain_program = \["sh", "\{scan\}", "\{m'):
        infer.plan(spec)
    with pytest.raises(InputError, match=r'\["sh", "\{mask\}", .*; the model was trained with \["sh", "\{scan\}", '):
        infer.plan(spec, profile=a_profile("sh", "{mask}", "{scan}"))
    assert infer.plan(spec, profile=a_profile("/bin/sh", "{scan}", "{mask}")).figures["sessions"] == 1


def test_an_ingest_cuts_brains_out_by_the_program_of_the_profile(tmp_path: Path, ray_session: None) -> None:
    spec = an_ingest(tmp_path)
    write_program(tmp_path)
    (tmp_path / "bfp.toml").write_text('[local]\nbrain_program = ["./threshold.py", "{scan}", "{mask}", "threshold"]\n')
    with Run(place(spec.output) / "run", spec_yaml="", kind="ingest", version="0", listener=lambda event: None) as run:
        ingest.execute(spec, run, profile=profile_for(tmp_path / "ingest.yaml"))
    store = SliceStore.open(place(spec.store))
    assert store.preprocessing["brain_program"] == ["threshold.py", "{scan}", "{mask}", "threshold"]
    assert store.scans()["brain"].to_pylist() == ["program"]
    blocks = RunFolder(run.folder).results()["blocks"]
    (methods,) = (block for block in blocks if block["title"] == "Methods")
    assert "outside the brain mask of threshold.py, a program of the user's own, were set to zero" in str(methods)

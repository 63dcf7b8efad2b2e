"""The profiles in infra/profiles are read as they are; the README and the guides speak of targets that they show."""

from __future__ import annotations

import re

import pytest

from bfp.specs.clusters import SlurmTarget
from bfp.specs.profile import read_profile
from tests.conftest import CHECKOUT

PROFILES = sorted((CHECKOUT / "infra" / "profiles").glob("*.toml"))
GUIDES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "infra" / "guides").glob("*.md"))]


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.name)
def test_an_example_profile_is_read_without_a_mistake(file):
    assert read_profile(file).clusters


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.name)
def test_an_example_for_slurm_takes_runs_in_object_storage(file):
    for target in read_profile(file).clusters.values():
        assert not isinstance(target, SlurmTarget) or target.logs is not None


@pytest.mark.parametrize("guide", GUIDES, ids=lambda file: file.name)
def test_every_target_of_a_guide_stands_in_the_profile_that_it_shows_and_overwrites_none(guide, tmp_path):
    text = guide.read_text()
    appended = re.findall(r"^cat (infra/profiles/\S+) >> \S*bfp\.toml", text, re.MULTILINE)
    shown = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    profile = tmp_path / "bfp.toml"
    profile.write_text("\n".join([*shown, *((CHECKOUT / file).read_text() for file in appended)]))
    assert set(re.findall(r"--on ([a-z]+)", text)) <= set(read_profile(profile).clusters)
    assert not re.search(r"^cp .*bfp\.toml", text, re.MULTILINE)

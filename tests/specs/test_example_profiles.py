"""The profiles in infra/profiles are read as they are."""

from __future__ import annotations

import pytest

from bfp.specs.profile import read_profile
from tests.conftest import CHECKOUT

PROFILES = sorted((CHECKOUT / "infra" / "profiles").glob("*.toml"))


@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.name)
def test_an_example_profile_is_read_without_a_mistake(file):
    assert read_profile(file).clusters

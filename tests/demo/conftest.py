import pytest

from bfp.demo.anatomy import Template, load_template


@pytest.fixture(scope="session")
def template() -> Template:
    pytest.importorskip("nilearn", reason="the demo's anatomy comes with nilearn")
    return load_template()

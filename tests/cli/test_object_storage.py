"""The whole path from and to object storage, as a user submits it: scans, store, runs and model lie in one bucket."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bfp.demo.cohort import make_cohort
from bfp.demo.plan import Groups
from bfp.storage import Place
from tests.chain import SMALL, run_chain
from tests.test_readme import run


@pytest.fixture(scope="module")
def bucket(s3_bucket: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of a folder in the bucket with two BIDS datasets: cohort and tonight."""
    import s3fs

    here, there = tmp_path_factory.mktemp("cohorts"), f"{s3_bucket}/chain-{os.getpid()}"
    for name, groups, prefix in (("cohort", Groups(4, 4, 0), ""), ("tonight", Groups(1, 1, 0), "n")):
        make_cohort(here / name, subjects=groups, seed=0, workers=2, progress=lambda done, total: None, prefix=prefix)
    s3fs.S3FileSystem().put(f"{here}/", f"{there}/", recursive=True)
    return there


@pytest.mark.long
def test_scans_become_predictions_without_leaving_the_bucket(bucket: str, tmp_path: Path) -> None:
    said = run_chain(bucket, cwd=tmp_path)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in said
    shown = run(f"bfp show {bucket}/runs/finetune --json", tmp_path)
    assert 0 <= json.loads(shown.stdout)["figures"]["auroc"] <= 1
    assert json.loads(run(f"bfp show {bucket}/runs/infer --json", tmp_path).stdout)["figures"]["sessions"] == 2
    for kind in SMALL:
        assert b"</html>" in (Place(bucket) / f"runs/{kind}/report/index.html").read()
    assert list(tmp_path.iterdir()) == [], "something was written here instead"

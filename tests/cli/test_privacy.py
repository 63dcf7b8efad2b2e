"""A patient's name in every place of a scan that can hold text, and secrets in the environment, are told to nobody.

The same scans are ingested twice by `bfp submit`, once with the name planted: outside the identity columns (cohort,
subject, session, uri) nothing may differ, to the last pixel of a picture.
"""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import pyarrow.parquet as pq
import pytest

from tests.cohorts.makers import head, write, write_scan
from tests.test_readme import run

NAME = "DOE^JANE"
SECRET = "planted-and-secret-4f1c"
FORMS = tuple(form.encode() for form in (NAME, NAME.lower(), "DOE%5EJANE", SECRET))
IDENTITY = {"cohort", "subject", "session", "uri", "etag", "size_bytes"}  # the last two: of other bytes, others


def named(data: bytes, name: str) -> bytes:
    """The NIfTI file with the name in all text fields, an extension, and the fields of gzip's own header."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    for field, length in (("descrip", 80), ("db_name", 18), ("aux_file", 24), ("intent_name", 16)):
        image.header[field] = (name * 10)[:length]
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, name.encode() * 20))
    content = image.to_bytes()
    raw = zlib.compressobj(6, zlib.DEFLATED, -15)
    text = name.encode("latin-1") + b".nii\0" + name.encode("latin-1") + b"\0"  # FNAME and FCOMMENT
    tail = struct.pack("<II", zlib.crc32(content), len(content))
    return b"\x1f\x8b\x08\x18" + bytes(4) + b"\x00\xff" + text + raw.compress(content) + raw.flush() + tail


def make_scans(root: Path, name: str) -> None:
    """Good scans of three sessions and some of each sort that is left out, below folders and under names of a name."""
    for number in (1, 2, 3):
        for modality in ("T1w", "FLAIR"):
            file = root / name / f"sub-0{number}_{modality}_{name}.nii.gz"
            write_scan(file, seed=number)
            file.write_bytes(named(file.read_bytes(), name))
            write(file.with_name(file.name.replace(".nii.gz", ".json")), json.dumps({"PatientName": name}))
    good = (root / name / f"sub-01_T1w_{name}.nii.gz").read_bytes()
    broken = {"04": good[:3000], "05": f"no scan of {name}".encode(), "06": b""}
    for subject, data in broken.items():
        (root / name / f"sub-{subject}_T1w_{name}.nii.gz").write_bytes(data)
    (root / name / f"sub-07_T1w_{name}.nii.gz").symlink_to(f"annex/{name}.nii.gz")
    write_scan(root / name / f"sub-08_T1w_{name}.nii.gz", voxels=0 * head((34, 42, 30)))
    write_scan(root / name / f"no-subject_{name}.nii.gz", seed=1)


class Outcome(NamedTuple):
    """What submits left and said. ray_logs: Ray's own, which one that failed (too many scans left out) keeps."""

    folder: Path
    said: str
    ray_logs: Path | None = None


def ingested(folder: Path, name: str) -> Outcome:
    make_scans(folder / "scans", name)
    write(
        folder / "ingest.yaml",
        "kind: ingest\nname: all\noutput: runs\nstore: store\n"
        "cohorts: [{name: one, glob: scans/**/*.nii.gz, "
        "pattern: 'sub-(?P<subject>[0-9]+)_(?P<modality>T1w|FLAIR)_'}]\n"
        "preprocessing: {register: header, size: 56, spacing_mm: 5.0, slice_spacing_mm: 12.0}\n",
    )
    done = run("bfp submit ingest.yaml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return Outcome(folder, done.stdout + done.stderr)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return ingested(tmp_path_factory.mktemp("plain"), "plain")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("HF_TOKEN", SECRET)
        made = ingested(tmp_path_factory.mktemp("planted"), NAME)
        strict = run("bfp submit ingest.yaml --name strict --set store=another --set max_rejected=0", made.folder)
        assert strict.returncode == 1, strict.stdout + strict.stderr
        said = [made.said, strict.stdout, strict.stderr]
        for command in ("store show store", "store check store", "show runs/all", "status runs/strict"):
            said.append(run(f"bfp {command}", made.folder).stdout)
    logs = Path(strict.stderr.rpartition("Ray's own logs: ")[2].split()[0])
    assert logs.is_dir(), strict.stderr
    yield Outcome(made.folder, "\n".join(said), logs)
    shutil.rmtree(logs)


def texts_of(file: Path) -> bytes:
    """What a file says outside the identity columns: a table column by column, any other file as it is."""
    if file.suffix != ".parquet":
        return file.read_bytes()
    table = pq.read_table(file)
    columns = [name for name in table.column_names if name not in IDENTITY and name != "pixels"]
    return repr(table.select(columns).to_pylist()).encode()


def written(outcome: Outcome) -> list[Path]:
    """Every file of the store, the runs and Ray's logs; Ray's sockets are none."""
    assert outcome.ray_logs is not None
    roots = [outcome.folder / "store", outcome.folder / "another", outcome.folder / "runs", outcome.ray_logs]
    return sorted(file for root in roots for file in root.rglob("*") if file.is_file())


def test_neither_name_nor_secret_is_found_in_anything_that_was_written_or_said(planted: Outcome) -> None:
    files = written(planted)
    assert len(files) > 40
    for form in FORMS:
        assert [str(file) for file in files if form in texts_of(file)] == []
        assert form.decode() not in planted.said
    uris = [pq.read_table(file)["uri"].to_pylist() for file in (planted.folder / "store/scans").iterdir()]
    assert all(NAME in uri for own in uris for uri in own), "the identity columns tell the file, whatever its name"


def test_the_name_changes_nothing_outside_the_identity_columns(planted: Outcome, plain: Outcome) -> None:
    def tables(outcome: Outcome) -> dict[str, list[str]]:
        folder = outcome.folder / "store"
        names = ("stacks", "scans", "sessions", "rejected")
        return {name: sorted(repr(texts_of(file)) for file in (folder / name).iterdir()) for name in names}

    def pictures(outcome: Outcome) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (outcome.folder / "runs/all/pictures").iterdir()}

    assert tables(planted) == tables(plain)
    assert pictures(planted) == pictures(plain)
    assert len(pictures(plain)) == 2

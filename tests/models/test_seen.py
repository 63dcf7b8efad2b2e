import pyarrow as pa
import pytest

from bfp.errors import InputError
from bfp.models.seen import fingerprints, met, read_seen, write_seen
from bfp.storage import place


def scans(*rows):
    """(subject, what its voxels came to) of each scan."""
    return pa.table(
        {
            "cohort": ["ds-a"] * len(rows),
            "subject": [subject for subject, _ in rows],
            "shape": [[60, 72, 58]] * len(rows),
            "window_low": pa.array([2.5] * len(rows), pa.float32()),
            "window_high": pa.array([100.0 + voxels for _, voxels in rows], pa.float32()),
            "foreground": pa.array([0.31] * len(rows), pa.float32()),
            "brain_ml": pa.array([None] * len(rows), pa.float32()),
            "bias_field_ratio": pa.array([None] * len(rows), pa.float32()),
        }
    )


@pytest.fixture
def seen(tmp_path):
    folder = place(str(tmp_path))
    write_seen(folder, [fingerprints(scans(("01", 1), ("01", 2), ("02", 3)))])
    return read_seen(folder)


def test_who_was_pretrained_on_is_known_by_name(seen):
    assert met(seen, scans(("01", 77), ("03", 78))) == (frozenset({"ds-a/01"}), frozenset())


def test_a_person_under_another_name_is_known_by_the_voxels(seen):
    assert met(seen, scans(("renamed", 1), ("renamed", 2), ("new", 9))) == (frozenset(), frozenset({"ds-a/renamed"}))


def test_one_scan_of_several_that_looks_alike_proves_nothing(seen):
    assert not met(seen, scans(("new", 3), ("new", 8), ("new", 9))).anyhow


def test_no_name_stands_in_the_file_and_lists_are_united(tmp_path):
    folder = place(str(tmp_path))
    tables = [fingerprints(scans(("patient-smith", 1))), fingerprints(scans(("patient-smith", 1), ("02", 2)))]
    write_seen(folder, tables)
    assert read_seen(folder).num_rows == 2
    assert b"smith" not in (folder / "seen.parquet").read()


def test_an_encoder_may_not_tell_and_a_damaged_list_is_no_list(tmp_path):
    folder = place(str(tmp_path))
    assert read_seen(folder) is None
    (folder / "seen.parquet").write(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"seen\.parquet: damaged"):
        read_seen(folder)

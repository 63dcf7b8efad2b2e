from pathlib import Path

import pytest

from bfp.cohorts.bidsignore import ignored_by, read_bidsignore
from bfp.errors import InputError
from bfp.storage import place
from tests.cohorts.makers import write


@pytest.mark.parametrize(
    ("line", "ignored", "kept"),
    [
        ("*_T1map.nii.gz", ["sub-01/anat/sub-01_T1map.nii.gz", "x_T1map.nii.gz"], ["sub-01/anat/sub-01_T1w.nii.gz"]),
        ("extra", ["extra", "extra/a", "sub-01/extra/b"], ["sub-01/extras"]),
        ("extra/", ["extra/a", "sub-01/extra/b"], ["extra", "sub-01/extra"]),
        ("/extra", ["extra/a"], ["sub-01/extra/b"]),
        ("sub-01/anat", ["sub-01/anat/a"], ["x/sub-01/anat/a"]),
        ("**/anat/*_PD.nii", ["anat/a_PD.nii", "sub-01/ses-a/anat/a_PD.nii"], ["sub-01/ses-a/func/a_PD.nii"]),
        ("sub-01/**", ["sub-01/anat/a"], ["sub-01", "sub-010/anat/a"]),
        ("sub-0?", ["sub-01/a"], ["sub-012/a"]),
        ("sub-0[1-3]", ["sub-02/a"], ["sub-04/a"]),
        ("sub-0[!1-3]", ["sub-04/a"], ["sub-02/a"]),
        ("a+(b).nii", ["a+(b).nii"], ["aab.nii"]),
        ("[odd", ["[odd"], ["o"]),
    ],
)
def test_a_line_ignores_what_it_would_in_gitignore(tmp_path: Path, line: str, ignored: list, kept: list) -> None:
    rules = read_bidsignore(place(str(write(tmp_path / ".bidsignore", f"# none\n\n{line}  \n"))))
    assert [path for path in ignored if ignored_by(rules, path) != line] == []
    assert [path for path in kept if ignored_by(rules, path)] == []


def test_the_last_line_that_speaks_of_a_path_holds(tmp_path: Path) -> None:
    rules = read_bidsignore(place(str(write(tmp_path / ".bidsignore", "sub-*\n!sub-02\nsub-02/b\n"))))
    assert [ignored_by(rules, path) for path in ("sub-01/a", "sub-02/a", "sub-02/b", "x")] == [
        "sub-*",
        "",
        "sub-02/b",
        "",
    ]


def test_a_dataset_without_the_file_ignores_nothing(tmp_path: Path) -> None:
    assert read_bidsignore(place(str(tmp_path / ".bidsignore"))) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"ok\nsub-0[9-1]\n", r"\.bidsignore:2: sub-0\[9-1\]: not a pattern"), (b"\xff\xfe", "not a text file in UTF-8")],
)
def test_a_file_that_cannot_be_understood_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / ".bidsignore").write_bytes(content)
    with pytest.raises(InputError, match=told):
        read_bidsignore(place(str(tmp_path / ".bidsignore")))

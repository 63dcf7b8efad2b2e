import numpy as np
import pyarrow as pa

from bfp.features.doubles import Double, doubles
from bfp.features.extraction import schema


def features(planes_of):
    """planes_of: {subject: [planes of each stack]}, a number for each picture."""
    rows = [(subject, planes) for subject, stacks in planes_of.items() for planes in stacks]
    return pa.table(
        {
            "cohort": ["a"] * len(rows),
            "subject": [subject for subject, _ in rows],
            "session": [""] * len(rows),
            "part": [""] * len(rows),
            "height": np.zeros(len(rows), np.float32),
            "planes": [planes for _, planes in rows],
            "vector": [[0.0]] * len(rows),
        },
        schema=schema(1),
    )


def test_a_scan_under_two_names_is_found_also_where_one_of_them_has_more():
    found = doubles(
        features(
            {
                "p": [[1, 2, 0], [3, 4, 0]],
                "q": [[5, 6, 0], [7, 8, 0]],
                "r": [[1, 2, 9], [3, 4, 10], [11, 12, 13]],
                "s": [[7, 0, 0], [20, 0, 0]],
            }
        )
    )
    assert found == [Double("a/p", "a/r", 4, 4), Double("a/q", "a/s", 1, 2)]


def test_empty_planes_single_planes_and_visits_of_one_person_are_no_doubles():
    alike = {
        "p": [[1, 0, 0], [2, 0, 0], [3, 0, 0], [1, 0, 0]],
        "q": [[1, 0, 0], [4, 0, 0], [5, 0, 0]],
        "r": [[0, 0, 0]],
    }
    assert doubles(features(alike)) == []


def test_a_scan_under_three_names_makes_three_pairs():
    assert len(doubles(features({name: [[1, 2, 3]] for name in "pqr"}))) == 3


def test_a_plane_that_many_have_tells_nobody_apart():
    people = {f"s{number:02}": [[99, 0, 0]] for number in range(30)}
    assert doubles(features(people)) == []

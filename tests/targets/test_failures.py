"""What went wrong on a worker, without Ray's wrappers."""

from __future__ import annotations

import pytest
from ray.exceptions import ObjectStoreFullError, OutOfMemoryError, RayTaskError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from bfp.errors import InputError, JobFailed, Reason, Unusable
from bfp.targets.failures import in_plain_words, root_cause


def task_error(cause: Exception) -> Exception:
    return RayTaskError("unit", "Traceback …", cause, proctitle="ray::unit", pid=1, ip="::1")


CAUSE = ValueError("no good\nat all")


@pytest.mark.parametrize(
    "error",
    [
        CAUSE,
        task_error(CAUSE),
        task_error(CAUSE).as_instanceof_cause(),
        task_error(task_error(CAUSE)),
        WorkerGroupError("rank 0 failed", {0: CAUSE}),
        ControllerError(task_error(CAUSE)),
    ],
)
def test_the_cause_is_found_under_every_wrapper(error):
    assert str(root_cause(error)) == str(CAUSE)
    told = in_plain_words(error)
    assert isinstance(told, JobFailed)
    assert str(told) == "ValueError: no good"


def test_an_error_of_bfp_stays_what_it_is():
    wrong = InputError("labels.csv: no column called diagnosis")
    assert in_plain_words(task_error(wrong).as_instanceof_cause()) is wrong
    unusable = Unusable(Reason.EMPTY, "all zero")
    assert in_plain_words(unusable) is unusable


@pytest.mark.parametrize(
    ("error", "said"),
    [(OutOfMemoryError("killed"), "ran out of memory"), (ObjectStoreFullError("full"), "object store is full")],
)
def test_what_ray_itself_suffers_is_told_with_a_remedy(error, said):
    assert said in str(in_plain_words(error))
    assert "lower compute.workers" in str(in_plain_words(error))


def test_a_mistake_of_ours_is_told_with_its_place():
    from bfp.imaging.grid import Grid

    with pytest.raises(TypeError) as caught:
        Grid(*range(20))
    assert "TypeError" in str(in_plain_words(caught.value))
    with pytest.raises(KeyError) as caught:
        from bfp.specs.document import value_at

        value_at({}, ("a",))
    assert "at bfp/specs/document.py:" in str(in_plain_words(caught.value))

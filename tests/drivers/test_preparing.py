import pytest

from bfp.cohorts import Scan, Session
from bfp.cohorts.sessions import Key
from bfp.drivers.attempts import Lost
from bfp.drivers.preparing import cost_of, not_done, too_many
from bfp.errors import Reason
from bfp.specs.preprocessing import Preprocessing
from bfp.storage import Entry, Place


def test_too_many_rejected_scans_are_told_but_not_those_that_nobody_asked_for():
    rejected = {Reason.TRUNCATED: 1, Reason.UNWANTED: 7, Reason.DUPLICATE: 2}
    assert too_many(rejected, used=4, allowed=0.2, meanwhile="x") == ""
    assert too_many(rejected, used=4, allowed=None, meanwhile="x") == ""
    told = too_many(rejected, used=4, allowed=0.1, meanwhile="no snapshot was taken")
    assert told.startswith("1 of 5 scans (20.0%) are rejected, more than max_rejected: 0.1; no snapshot was taken. The")


def test_work_that_was_not_done_is_told_with_each_cause_once():
    words = {"unit": "session", "verb": "predicted", "smaller": "leave out the largest"}
    assert not_done(9, [], Lost(), **words) == ""
    first, *causes = not_done(9, ["no space left"] * 2, Lost(out_of_memory=1, died=2), **words).splitlines()
    assert first == "5 of 9 sessions could not be predicted; the others are kept: submit again to go on"
    assert [line.strip().partition(",")[0] for line in causes] == [
        "no space left",
        "1 ran out of memory",
        "2 lost their worker each time",
    ]
    assert causes[1].endswith("give a worker more memory, or leave out the largest")
    full = [f"part-{number}: no space left" for number in range(12)]
    _, *shown, more = not_done(12, full, Lost(), **words).splitlines()
    assert [line.strip() for line in shown] == full[:3]
    assert more.strip() == "and 9 causes more, such as these"


@pytest.mark.parametrize(
    ("fields", "stacks", "filled", "seconds"),
    [
        ({}, 180, 360, 0.07 * 2 + 0.5),
        ({"register": "none"}, 180, 360, 0.07 * 2),
        ({"register": "none", "bias_field": "n4"}, 180, 360, (0.07 + 1.6) * 2),
        ({"stacks": {"form": "neighbours"}, "brain": "given"}, 360, 1080, 0.07 * 2 + 0.5),
        ({"stacks": {"form": "neighbours", "gap_mm": 1.0}, "slice_spacing_mm": 2.0}, 180, 540, 0.07 * 2),
    ],
)
def test_the_cost_follows_from_scans_slices_and_registrations(fields, stacks, filled, seconds):
    scans = tuple(Scan(name, Entry(Place(f"/{name}"), 1, "")) for name in ("T1w", "FLAIR"))
    sessions = [Session(Key("c", "01", ""), scans), Session(Key("c", "02", ""), ())]
    assert cost_of(sessions, Preprocessing.model_validate(fields)) == (stacks, filled, seconds)

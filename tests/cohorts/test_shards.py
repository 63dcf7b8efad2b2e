from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bfp.cohorts import LabelMap, Scan, Session, Shard, plan_shards
from bfp.cohorts.sessions import Key
from bfp.cohorts.shards import LONGEST
from bfp.storage import Entry, Place


def session(subject: str, *, cohort: str = "c", etag: str = "e", labels: dict[str, str] | None = None) -> Session:
    file = Entry(Place(f"/d/{subject}_T1w.nii.gz"), 7, etag)
    return Session(Key(cohort, subject, ""), (Scan("T1w", file),), labels=labels or {})


def planned(sessions: list[Session], *, mean: int = 4, preprocessing: str = "p", version: int = 1) -> list[Shard]:
    return plan_shards(sessions, mean_sessions=mean, preprocessing=preprocessing, version=version)


subjects = st.sets(st.from_regex(r"[a-z0-9]{1,6}", fullmatch=True), min_size=1, max_size=60)


@given(subjects, st.randoms(use_true_random=False))
def test_every_session_is_in_one_shard_whatever_the_order_they_come_in(names: set[str], random) -> None:
    sessions = [session(name) for name in names]
    shuffled = random.sample(sessions, len(sessions))
    shards = planned(shuffled)
    assert [each.key for shard in shards for each in shard.sessions] == sorted(each.key for each in sessions)
    assert shards == planned(sessions)
    assert all(len(shard.sessions) <= LONGEST * 4 for shard in shards)


@given(subjects)
def test_one_more_subject_changes_the_shards_around_it_alone(names: set[str]) -> None:
    before = {shard.name for shard in planned([session(name) for name in names], mean=2)}
    after = planned([session(name) for name in {*names, "zz9zz9z"}], mean=2)
    changed = [shard for shard in after if shard.name not in before]
    assert len(changed) <= 2
    assert any(each.key.subject == "zz9zz9z" for shard in changed for each in shard.sessions)


def test_shards_have_the_mean_that_was_asked_for() -> None:
    shards = planned([session(f"s{number}") for number in range(2000)], mean=8)
    assert 6 < 2000 / len(shards) < 10


def test_a_shard_ends_at_a_multiple_of_the_mean_where_no_hash_ends_it() -> None:
    names = [f"s{number}" for number in range(400)]
    endless = [session(name) for name in names if len(planned([session(name), session("z")], mean=4)) == 1]
    sizes = [len(shard.sessions) for shard in planned(endless, mean=4)]
    assert set(sizes[:-1]) == {4 * LONGEST}


def test_no_shard_spans_two_cohorts() -> None:
    shards = planned([session("a", cohort="x"), session("a", cohort="y")], mean=1000)
    assert [shard.cohort for shard in shards] == ["x", "y"]


def test_a_shards_name_follows_from_its_scans_and_their_preprocessing_but_not_from_labels() -> None:
    one = session("a")
    (base,) = planned([one])
    (labelled,) = planned([replace(one, labels={"age": "70"})])
    assert labelled.name == base.name
    others = [
        planned([session("a", etag="other")]),
        planned([one], preprocessing="q"),
        planned([one], version=2),
        planned([replace(one, key=Key("c", "a", "2"))]),
    ]
    assert len({base.name, *(shards[0].name for shards in others)}) == 5


def test_what_is_doubtful_by_a_scans_name_is_part_of_the_shards_name() -> None:
    plain = session("01")
    (scan,) = plain.scans
    doubtful = replace(plain, scans=(replace(scan, warnings=("with a contrast agent",)),))
    assert planned([plain])[0].name != planned([doubtful])[0].name


def test_duplicates_are_part_of_a_shards_name_since_one_may_take_the_place_of_its_scan() -> None:
    plain, spare = Scan("T1w", Entry(Place("/1"), 1, "a")), Scan("T1w", Entry(Place("/2"), 1, "a"))
    other = replace(spare, file=Entry(Place("/2"), 1, "b"))
    sessions = [Session(Key("c", "01", ""), (plain,), spares=spares) for spares in ((), (spare,), (other,))]
    assert len({planned([session])[0].name for session in sessions}) == 3


def test_how_a_label_map_was_chosen_and_what_of_it_is_brain_are_part_of_the_shards_name() -> None:
    label_map = LabelMap("brain", "T1w", Entry(Place("/d/mask.nii.gz"), 7, "e"))
    changes = ({}, {"chosen": "of 2"}, {"refused": "no"}, {"warnings": ("w",)}, {"inside": (1,)}, {"drawn_on": "FLAIR"})
    sessions = [replace(session("01"), label_maps=(replace(label_map, **change),)) for change in changes]
    assert len({planned([each])[0].name for each in sessions}) == len(changes)

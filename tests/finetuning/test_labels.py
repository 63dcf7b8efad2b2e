import pytest

from bfp.cohorts.labels import read_labels
from bfp.cohorts.sessions import Key
from bfp.errors import InputError
from bfp.finetuning.labels import assign_classes, assign_numbers, assign_times, of_table
from bfp.storage import place

A1, A2, B1 = Key("a", "01", "1"), Key("a", "02", ""), Key("b", "01", "1")


def assign(labels, target="diagnosis"):
    return assign_classes(labels, target=target, classes=["CN", "AD"], source="diagnoses.csv")


def test_sessions_of_a_class_are_found_in_order_of_their_keys():
    found = assign({B1: {"diagnosis": "CN"}, A2: {"diagnosis": "AD"}, A1: {"diagnosis": "AD"}})
    assert found.sessions == [A1, A2, B1]
    assert found.targets.tolist() == [1, 1, 0]


def test_a_subject_is_unique_within_its_cohort_only():
    assert assign({A1: {"diagnosis": "AD"}, B1: {"diagnosis": "AD"}}).persons == ["a/01", "b/01"]


def test_a_table_of_the_user_speaks_of_sessions_with_or_without_bids_prefixes(tmp_path):
    (tmp_path / "diagnoses.csv").write_text("subject,session,diagnosis\nsub-01,ses-1,AD\n02,,CN\n")
    found = assign(of_table(read_labels(place(str(tmp_path / "diagnoses.csv"))), [A1, A2, Key("a", "03", "")]))
    assert (found.sessions, found.targets.tolist()) == ([A1, A2], [1, 0])
    assert found.left_out == {"no labels": 1}


def table_at(folder, text):
    file = folder / "diagnoses.csv"
    file.write_text(text)
    return read_labels(place(str(file)))


def test_a_table_without_cohorts_is_refused_where_two_cohorts_share_a_subject(tmp_path):
    labels = table_at(tmp_path, "subject,diagnosis\n01,AD\n02,CN\n")
    assert of_table(labels, [A1, A2])[A1] == {"diagnosis": "AD"}
    message = r"diagnoses.csv: subject 01 stands in the cohorts a and b \(1 such subject\); add a column `cohort`"
    with pytest.raises(InputError, match=message):
        of_table(labels, [A1, A2, B1])


def test_a_row_that_only_one_cohort_has_a_session_for_is_not_ambiguous(tmp_path):
    other = B1._replace(session="2")
    labels = table_at(tmp_path, "subject,session,diagnosis\n01,1,AD\n01,2,CN\n")
    assert of_table(labels, [A1, other]) == {A1: {"diagnosis": "AD"}, other: {"diagnosis": "CN"}}


def test_a_column_of_cohorts_tells_subjects_of_one_name_apart(tmp_path):
    labels = table_at(tmp_path, "cohort,subject,diagnosis\na,sub-01,AD\nb,sub-01,CN\n")
    assert of_table(labels, [A1, A2, B1]) == {A1: {"diagnosis": "AD"}, A2: {}, B1: {"diagnosis": "CN"}}
    with pytest.raises(InputError, match="its column cohort says a, b, and not c; give the column another name"):
        of_table(labels, [Key("c", "01", "")])


def test_a_table_of_other_subjects_is_refused_with_one_of_each(tmp_path):
    labels = table_at(tmp_path, "subject,diagnosis\nS1,AD\n")
    with pytest.raises(InputError, match="none of the 2 sessions: its first subject is S1, the first in the store 01"):
        of_table(labels, [A1, B1])


def test_sessions_without_a_class_are_left_out_and_counted():
    keys = [Key("a", str(n), "") for n in range(5)]
    values = ["AD", "MCI", "MCI", "NA", None]
    found = assign(
        {key: {"age": "71"} if value is None else {"diagnosis": value} for key, value in zip(keys, values, strict=True)}
    )
    assert found.sessions == keys[:1]
    assert found.left_out == {"diagnosis is MCI": 2, "no value of diagnosis": 2}


def test_a_missing_column_is_named_with_the_nearest():
    message = "diagnoses.csv: no column diagnosis; did you mean diagnoses[?] found age, diagnoses"
    with pytest.raises(InputError, match=message):
        assign({A1: {"diagnoses": "AD"}, A2: {"age": "71"}})
    with pytest.raises(InputError, match="no column diagnosis; found no labels at all"):
        assign({A1: {}})


def test_labels_of_other_classes_only_are_refused():
    with pytest.raises(
        InputError, match=r"no session of the store is of one of the classes CN, AD \(1 session: diagnosis is MCI\)"
    ):
        assign({A1: {"diagnosis": "MCI"}})


def test_what_is_missing_in_a_column_reads_as_empty():
    found = assign(
        {A1: {"diagnosis": "AD", "age": "NaN"}, A2: {"diagnosis": "CN", "age": "71"}, B1: {"diagnosis": "CN"}}
    )
    assert found.column("age", source="x") == ["", "71", ""]
    with pytest.raises(InputError, match="x: no column ages; did you mean age"):
        found.column("ages", source="x")


@pytest.mark.parametrize("absent", ["", "n/a", "NA", "NaN", "nan", "null", "."])
def test_what_tables_write_where_they_do_not_know_is_no_value_and_none_is_one(tmp_path, absent):
    labels = table_at(tmp_path, f"subject,age,tumour\n01,{absent},none\n")
    assert labels.of(A1._replace(cohort="")) == {"tumour": "none"}
    assert assign({A1: {"diagnosis": "AD", "age": absent}}).column("age", source="x") == [""]


def test_of_many_reasons_a_message_names_the_most_frequent():
    labels = {Key("a", f"{n:02}", ""): {"diagnosis": f"{0.5 * max(n, 3)}"} for n in range(20)}
    message = r"\(4 sessions: diagnosis is 1\.5; (1 session: [^;]*; ){4}and 12 other reasons\)"
    with pytest.raises(InputError, match=message):
        assign(labels)


def test_numbers_are_read_and_what_is_none_is_left_out_with_its_reason():
    rows = {A1: {"age": "61.5"}, A2: {"age": "89+"}, B1: {"age": ""}}
    found = assign_numbers(rows, target="age", source="ages.csv")
    assert (found.sessions, found.targets.tolist()) == ([A1], [61.5])
    assert found.left_out == {"age is 89+, which is no number": 1, "no value of age": 1}


def test_times_and_events_are_read_together():
    rows = {A1: {"months": "12", "converted": "1"}, A2: {"months": "24", "converted": "0"}}
    found = assign_times(rows, time="months", event="converted", source="visits.csv")
    assert found.targets.tolist() == [[12.0, 1.0], [24.0, 0.0]]
    coded = {A1: {"months": "12", "converted": "2"}, A2: {"months": "24", "converted": "1"}}
    with pytest.raises(InputError, match="converted holds 2; expected 1 where the event was seen and 0"):
        assign_times(coded, time="months", event="converted", source="visits.csv")
    odd = {A1: {"months": "0", "converted": "1"}, A2: {"months": "3", "converted": "yes"}}
    with pytest.raises(InputError, match="no session of the store has a time in months and 0 or 1 in converted"):
        assign_times(odd, time="months", event="converted", source="visits.csv")

from dataclasses import replace

import pytest

from bfp.cohorts.sessions import Key, LeftOut, Scan, Session
from bfp.errors import InputError, Reason
from bfp.inference.pseudonyms import WITHHELD, Pseudonyms, sentence
from bfp.storage import Entry, place

KEY = "a secret of this hospital"


def names(key=KEY):
    return Pseudonyms(key, variable="BFP_IDENTIFIER_KEY")


def a_session(subject="jane", session="first"):
    file = Entry(place(f"/scans/sub-{subject}_T1w.nii.gz"), 10, "x")
    return Session(Key("clinic", subject, session), (Scan("T1w", file),))


def test_a_subject_has_one_name_at_all_visits_and_another_under_another_key_or_in_another_cohort():
    first, second = (names().key(Key("clinic", "jane", session)) for session in ("first", "second"))
    assert first.subject == second.subject
    assert first.session != second.session
    others = [names("another secret of it").key(Key("clinic", "jane", "")), names().key(Key("other", "jane", ""))]
    assert len({first.subject, *(other.subject for other in others)}) == 3
    assert [other.session for other in others] == ["", ""]
    assert names().of("a", "bc") != names().of("ab", "c")


def test_a_sentence_that_names_the_session_or_its_file_is_withheld():
    for told in ("jane moved", "/scans/sub-jane_T1w.nii.gz: it is being written to", "see sub-jane_T1w", "at first"):
        assert sentence(told, a_session()) == WITHHELD
    assert sentence("janet is another; 3.5 mm", a_session()) == "janet is another; 3.5 mm"


def test_a_scan_that_is_left_out_keeps_its_reason():
    row = LeftOut(Key("clinic", "jane", ""), "T1w", "/scans/sub-jane_T1w.nii.gz", Reason.TRUNCATED, "10 of 20 bytes")
    hidden = names().left_out(row)
    assert (hidden.reason, hidden.detail, hidden.modality) == (Reason.TRUNCATED, "10 of 20 bytes", "T1w")
    assert "jane" not in repr(hidden)
    assert names().left_out(replace(row, detail="sub-jane_T1w is a link")).detail == WITHHELD


def test_a_key_that_can_be_guessed_is_refused():
    with pytest.raises(InputError, match="BFP_IDENTIFIER_KEY holds 5 characters, at least 16 are needed"):
        names("12345")

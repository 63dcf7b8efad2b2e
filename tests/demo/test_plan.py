from collections import Counter

import numpy as np
import pytest

from bfp.cli.demo import SEED
from bfp.demo.plan import DEMO, Groups, Subject, groups_of, plan_subjects
from bfp.demo.scanners import MODALITIES, SITES


def auroc(subjects: list[Subject], attribute: str) -> float:
    control, disease = (
        np.array([getattr(subject, attribute) for subject in subjects if subject.diagnosis == group])
        for group in ("control", "disease")
    )
    return float(np.mean(disease[:, None] > control))


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert plan_subjects(DEMO, seed=4, prefix="") == plan_subjects(DEMO, seed=4, prefix="")
    assert plan_subjects(DEMO, seed=4, prefix="") != plan_subjects(DEMO, seed=5, prefix="")


@pytest.mark.parametrize("subjects", [30, 84, 85, 200])
def test_a_cohort_has_as_many_subjects_as_were_asked_for_and_patients_as_controls(subjects: int) -> None:
    groups = groups_of(subjects)
    assert sum(groups) == subjects
    assert 0 <= groups.disease - groups.control <= 1
    assert groups.tumour == subjects // 7


@pytest.mark.parametrize("seed", [SEED, *range(20)])
def test_severity_tells_disease_from_control_and_age_hardly_does(seed: int) -> None:
    subjects = plan_subjects(DEMO, seed=seed, prefix="")
    assert 0.9 <= auroc(subjects, "severity") <= 0.96
    assert 0.5 < auroc(subjects, "age_years") < 0.67


def test_an_old_control_can_be_worse_than_a_young_patient() -> None:
    subjects = plan_subjects(DEMO, seed=1, prefix="")
    control = max((s for s in subjects if s.diagnosis == "control"), key=lambda subject: subject.severity)
    disease = min((s for s in subjects if s.diagnosis == "disease"), key=lambda subject: subject.severity)
    assert control.severity > disease.severity + 1


@pytest.mark.parametrize("seed", range(5))
def test_severity_grows_with_age_within_a_group(seed: int) -> None:
    control = [s for s in plan_subjects(Groups(400, 0, 0), seed=seed, prefix="") if s.diagnosis == "control"]
    ages, severities = [s.age_years for s in control], [s.severity for s in control]
    assert np.corrcoef(ages, severities)[0, 1] > 0.3


def test_every_site_scans_the_same_number_of_each_group() -> None:
    subjects = plan_subjects(DEMO, seed=2, prefix="")
    count = Counter((subject.site, subject.diagnosis) for subject in subjects)
    assert count == {(site, group): size // len(SITES) for site in SITES for group, size in DEMO._asdict().items()}


def test_some_sessions_lack_one_modality_and_none_lacks_more() -> None:
    subjects = plan_subjects(DEMO, seed=3, prefix="")
    lacking = [set(MODALITIES) - set(subject.modalities) for subject in subjects]
    assert max(len(modalities) for modalities in lacking) == 1
    assert 0.1 < sum(bool(modalities) for modalities in lacking) / len(lacking) < 0.2
    assert set.union(*lacking) == set(MODALITIES)


@pytest.mark.parametrize("seed", range(5))
def test_two_files_are_broken_and_two_good_scans_stay_in_each_of_their_sessions(seed: int) -> None:
    broken = [subject for subject in plan_subjects(DEMO, seed=seed, prefix="") if subject.broken]
    assert [len(subject.modalities) for subject in broken] == [3, 3]
    assert [len(subject.broken) for subject in broken] == [1, 1]


def test_labels_are_unique_and_carry_the_prefix() -> None:
    labels = [subject.label for subject in plan_subjects(DEMO, seed=0, prefix="N")]
    assert len(set(labels)) == sum(DEMO)
    assert all(label.startswith("N") and label.isalnum() for label in labels)

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from bfp.cohorts import Scan, Session, plan_shards
from bfp.cohorts.sessions import Key
from bfp.drivers import capacity_here, ingest
from bfp.drivers.attempts import Lost
from bfp.drivers.ingest_results import _methods
from bfp.drivers.inputs import recipe_of, sessions_of
from bfp.errors import InputError, Interrupted, JobFailed
from bfp.runs import Listener, Run, RunFolder
from bfp.specs.ingest import Ingest
from bfp.storage import Entry, Place, place
from bfp.store import layout, summary, turns
from bfp.store.check import check
from bfp.store.prune import remove, survey
from bfp.store.reader import SliceStore, pixels_of
from bfp.store.summary import Summary
from tests.cohorts.makers import heads, touch, write, write_bids, write_scan, write_series
from tests.storage.makers import CarelessStore

SUBJECTS = 6
GREY_IS_1, GREY_IS_2 = (
    {"segmentations": [{"name": "tissue", "suffix": "dseg", "drawn_on": "T1w", "classes": {"grey": [value]}}]}
    for value in (1, 2)
)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six subjects with T1w and FLAIR, of which two scans are broken."""
    return write_bids(tmp_path_factory.mktemp("cohort") / "bids", subjects=SUBJECTS)


def spec_of(folder: Path | str, dataset: Path | str, **fields: Any) -> Ingest:
    """A quick ingest: coarse stacks, no registration."""
    preprocessing = {
        "stacks": {"form": "modalities", "channels": ["T1w", "T2w", "FLAIR"]},
        "spacing_mm": 5.0,
        "slice_spacing_mm": 6.0,
        "size": 44,
        "register": "none",
    }
    given = {
        "kind": "ingest",
        "name": "run",
        "output": f"{folder}/runs",
        "store": f"{folder}/store",
        "cohorts": [{"name": "demo", "bids": str(dataset)}],
        "preprocessing": preprocessing | fields.pop("preprocessing", {}),
        "sessions_per_shard": 1,
        "pictures": False,
    }
    return Ingest.model_validate(given | fields)


def run_of(spec: Ingest, *, listener: Listener = lambda event: None) -> Run:
    folder = place(spec.output) / spec.name
    return Run(folder, spec_yaml="kind: ingest\n", kind="ingest", version="0", listener=listener)


def executed(spec: Ingest) -> RunFolder:
    with run_of(spec) as run:
        ingest.execute(spec, run)
    return RunFolder(run.folder)


def scans_prepared(run: RunFolder) -> int:
    """How many scans the last submission set out to prepare."""
    return [event["total"] for event in run.events() if event["event"] == "phase" and event["phase"] == "preparing"][-1]


def files_of(store: Place | Path) -> dict[str, bytes]:
    root = Path(str(store))
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> RunFolder:
    return executed(spec_of(tmp_path_factory.mktemp("undisturbed"), dataset, pictures=True))


# the plan -------------------------------------------------------------------------------------------------------------


def test_a_plan_counts_what_is_to_do_and_writes_nothing(dataset: Path, tmp_path: Path) -> None:
    plan = ingest.plan(spec_of(tmp_path, dataset))
    assert plan.figures["sessions"] == SUBJECTS
    assert plan.figures["scans"] == plan.figures["scans_to_do"] == 2 * SUBJECTS
    assert plan.figures["shards"] == plan.figures["shards_to_do"] > 1
    assert ("cohort demo", "6 subjects, 6 sessions: 6 FLAIR, 6 T1w") in plan.rows
    assert list(tmp_path.iterdir()) == []


def test_a_plan_imports_neither_ray_nor_numpy(dataset: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "from bfp.drivers import ingest\n"
        "from bfp.specs.ingest import Ingest\n"
        f"ingest.plan(Ingest.model_validate_json({spec_of(tmp_path, dataset).model_dump_json()!r}))\n"
        "print([name for name in ('ray', 'torch', 'numpy', 'pyarrow') if name in sys.modules])\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_store_that_could_lose_a_snapshot_is_refused(dataset: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("careless", CarelessStore)
    with pytest.raises(InputError, match=r"^store: careless://brains/store: .*If-None-Match.*; choose"):
        ingest.plan(spec_of(tmp_path, dataset, store="careless://brains/store"))
    assert Place("careless://brains/store").names() == []
    assert ingest.plan(spec_of(tmp_path, dataset, store="memory://brains/store")).figures["shards_to_do"]


def test_links_to_nothing_are_warned_of(dataset: Path, tmp_path: Path) -> None:
    root = tmp_path / "bids"
    write_scan(root / "sub-01/anat/sub-01_T1w.nii.gz")
    (root / "sub-01/anat/sub-01_FLAIR.nii.gz").symlink_to("../.git/annex/gone")
    plan = ingest.plan(spec_of(tmp_path, root))
    assert plan.warnings == ["1 file is a link to nothing; in a DataLad dataset, `datalad get` first"]


def test_a_plan_uses_no_more_workers_than_there_are_cpus(dataset: Path, tmp_path: Path) -> None:
    assert ingest.plan(spec_of(tmp_path, dataset), capacity=capacity_here(3)).figures["workers"] == 3
    assert (
        ingest.plan(spec_of(tmp_path, dataset, compute={"workers": 8}), capacity=capacity_here(3)).figures["workers"]
        == 3
    )
    rows = dict(ingest.plan(spec_of(tmp_path, dataset, compute={"workers": 1}), capacity=capacity_here(3)).rows)
    assert rows["memory"] == "about 0.7 GB: 0.7 GB for each of 1 worker"


def test_a_plan_says_in_how_many_sessions_each_segmentation_is_and_warns_where_it_is_in_none(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "bids",
        *(f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz" for number in range(1, 5)),
        "derivatives/x/sub-01_dseg.nii.gz",
        "derivatives/x/sub-02_space-MNI_dseg.nii.gz",
    )
    segmentations = [
        {"name": name, "suffix": suffix, "drawn_on": "T1w", "classes": {"one": [1]}}
        for name, suffix in (("tissue", "dseg"), ("tumour", "label-lesion_mask"))
    ]
    plan = ingest.plan(
        spec_of(tmp_path, root, cohorts=[{"name": "demo", "bids": str(root), "segmentations": segmentations}])
    )
    rows = dict(plan.rows)
    assert rows["segmentation tissue"] == (
        "in 1 of 4 sessions of cohort demo; in 1 more by name drawn on another scan or space"
    )
    assert rows["segmentation tumour"] == "in 0 of 4 sessions of cohort demo"
    (warning,) = plan.warnings
    assert warning == (
        "segmentation tumour: in 0 of 4 sessions of cohort demo; compare its `suffix` or "
        "`column` with the cohort's files"
    )


def test_labels_that_speak_of_no_session_are_warned_of(dataset: Path, tmp_path: Path) -> None:
    labels = write(tmp_path / "labels.csv", "subject,age\nS1,70\n")
    cohort = {"name": "demo", "bids": str(dataset), "labels": str(labels)}
    (warning,) = ingest.plan(spec_of(tmp_path, dataset, cohorts=[cohort])).warnings
    assert warning.startswith(f"cohort demo: {labels} speaks of none of its sessions")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cohorts": [{"name": "a", "bids": "/nowhere/at/all"}]}, "/nowhere/at/all: cannot list it: nothing is there"),
        ({"cohorts": [{"name": "a", "table": "/nowhere.csv"}]}, "/nowhere.csv: cannot read it: nothing is there"),
        (
            {"cohorts": [{"name": "a", "bids": "/x"} | GREY_IS_1, {"name": "b", "bids": "/y"} | GREY_IS_2]},
            r"segmentation tissue means \{'grey': \[1\]\} in cohort a and \{'grey': \[2\]\} in b",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(
    dataset: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ingest.plan(spec_of(tmp_path, dataset, **fields))
    assert list(tmp_path.iterdir()) == []


def test_an_extra_that_is_not_installed_is_named(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bfp.drivers.preparing.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"preprocessing.brain: deepbet is not installed; .*'bfp\[deepbet\]'"):
        ingest.plan(spec_of(tmp_path, dataset, preprocessing={"brain": "deepbet"}))
    assert list(tmp_path.iterdir()) == []


# an ingest ------------------------------------------------------------------------------------------------------------


def test_each_scan_is_in_the_store_or_rejected_with_its_reason(undisturbed: RunFolder) -> None:
    store = SliceStore.open(undisturbed.folder.parent.parent / "store")
    scans = {(row["subject"], row["modality"]) for row in store.scans().to_pylist()}
    rejected = {(row["subject"], row["modality"]): row["reason"] for row in store.rejected().to_pylist()}
    assert rejected == {("01", "T1w"): "file ends early", ("02", "FLAIR"): "not a NIfTI file"}
    everything = {(f"{number:02d}", modality) for number in range(1, SUBJECTS + 1) for modality in ("T1w", "FLAIR")}
    assert scans | set(rejected) == everything
    assert not scans & set(rejected)
    assert {row["subject"]: dict(row["labels"])["age"] for row in store.sessions().to_pylist()}["03"] == "53"


def test_the_results_tell_what_the_store_holds(undisturbed: RunFolder) -> None:
    store = SliceStore.open(undisturbed.folder.parent.parent / "store")
    figures = undisturbed.results()["figures"]
    assert figures["stacks"] == store.totals.stacks == store.stack_index().num_rows > 0
    assert (figures["scans"], figures["rejected"]) == (2 * SUBJECTS - 2, 2)
    assert figures["rejected_by_reason"] == "file ends early: 1; not a NIfTI file: 1"
    blocks = undisturbed.results()["blocks"]
    assert [block["title"] for block in blocks] == [
        "Store",
        "Scans by cohort and modality",
        "Rejected scans",
        "Foreground",
        "Stacks",
        "Registration",
        "Methods",
    ]
    for block in blocks:
        if block["block"] == "picture":
            assert (undisturbed.folder / block["file"]).read().startswith(b"\x89PNG")
    notes = [event["message"] for event in undisturbed.events() if event["event"] == "note"]
    assert notes[-1] == "10 done, 2 rejected"


def test_label_maps_and_brain_masks_reach_the_store_with_where_they_came_from(
    tmp_path: Path, ray_session: None
) -> None:
    root = write_bids(tmp_path / "bids", subjects=4, modalities=("T1w",))
    mask = np.zeros((34, 42, 30), np.uint8)
    mask[4:30, 5:37, 3:27], mask[9:25, 11:31, 7:23] = 2, 1
    for subject in ("02", "03", "04"):
        write_scan(root / f"derivatives/x/sub-{subject}_desc-brain_mask.nii.gz", voxels=mask)
    write_scan(root / "derivatives/x/sub-03_space-MNI_dseg.nii.gz", voxels=mask)
    write_scan(root / "derivatives/x/sub-04_dseg.nii.gz", voxels=mask)
    segmentations = [
        {"name": "brain", "suffix": "desc-brain_mask", "drawn_on": "T1w", "classes": {"brain": [1]}},
        {"name": "tissue", "suffix": "dseg", "drawn_on": "T1w", "classes": {"grey": [1]}},
    ]
    run = executed(
        spec_of(
            tmp_path,
            root,
            cohorts=[{"name": "demo", "bids": str(root), "segmentations": segmentations}],
            preprocessing={"brain": "given"},
        )
    )
    store = SliceStore.open(place(f"{tmp_path}/store"))
    rows = {(row["subject"], row["segmentation"]): row for row in store.label_maps().to_pylist()}
    assert {key: row["reason"] for key, row in rows.items()} == {
        ("02", "brain"): None,
        ("03", "brain"): None,
        ("03", "tissue"): "cannot be laid on the scan that it was drawn on",
        ("04", "brain"): None,
        ("04", "tissue"): None,
    }
    assert rows["04", "brain"]["uri"] == f"{root}/derivatives/x/sub-04_desc-brain_mask.nii.gz"
    assert {round(row["brain_ml"]) for row in store.scans().to_pylist()} == {round(16 * 20 * 16 * 5 * 4.5 * 6 / 1000)}
    assert set(store.masks("tissue")["subject"].to_pylist()) == {"04"}
    blocks = {block["title"]: block for block in run.results()["blocks"]}
    assert blocks["Label maps and brain masks"]["rows"][1] == [
        "demo", "tissue", "T1w", 2, 1, 0, "cannot be laid on the scan that it was drawn on: 1"
    ]  # fmt: skip
    assert "cut around the centre of the brain" in blocks["Methods"]["paragraphs"][0]
    assert check(place(f"{tmp_path}/store")).faults == []


@pytest.mark.parametrize(
    ("preprocessing", "told", "untold"),
    [
        ({"volumes": "mean"}, "Of 4-D files the mean of the volumes was taken.", "brain"),
        ({"volumes": "first"}, "Of 4-D files the first volume was taken.", "brain"),
        ({}, "cut around the centre of the head;", "4-D"),
        (
            {"stacks": {"form": "neighbours", "gap_mm": 0.0}},
            "A sample is one axial slice of one scan, the same in all three channels.",
            "0 mm apart. Grey",
        ),
        ({"stacks": {"form": "neighbours", "gap_mm": 2.0}}, "three axial slices of one scan, 2 mm apart", "the same"),
        ({"bias_field": "n4"}, "of each scan was estimated within the head by N4ITK (Tustison et al. 2010; ", "4-D"),
        ({"bias_field": "n4", "brain": "image"}, "estimated within the brain by N4ITK", "within the head"),
        ({}, "Grey values from the 0.5th", "N4"),
        (
            {"brain": "image", "slice_range_mm": [-40, 50]},
            "cut around the centre of the brain; those from -40 to 50 mm of its centre",
            "head",
        ),
    ],
)
def test_the_methods_say_what_was_done_and_nothing_else(
    tmp_path: Path, preprocessing: dict[str, Any], told: str, untold: str
) -> None:
    text = _methods(spec_of(tmp_path, "/x", preprocessing=preprocessing), Summary([], [], [], [], []))
    assert told in text
    assert untold not in text


def test_the_methods_say_how_a_given_mask_came_onto_each_scan(tmp_path: Path) -> None:
    mask = {"name": "brain", "suffix": "mask", "drawn_on": "FLAIR", "classes": {"brain": [1]}}
    cohorts = [{"name": "a", "bids": "/x", "segmentations": [mask]}]
    spec = spec_of(tmp_path, "/x", cohorts=cohorts, preprocessing={"brain": "given", "register": "rigid"})
    text = _methods(spec, Summary([], [], [], [], []))
    assert "outside the given brain mask, registered rigidly with the scan it was drawn on, were set to zero" in text


def test_submitting_again_prepares_nothing_and_takes_no_snapshot(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder
) -> None:
    spec = spec_of(tmp_path, dataset)
    executed(spec)
    before = files_of(tmp_path / "store")
    assert ingest.plan(spec).figures["shards_to_do"] == 0
    assert scans_prepared(executed(spec)) == 0
    assert files_of(tmp_path / "store") == before


def test_the_same_cohort_gives_the_same_bytes_whatever_the_number_of_workers(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder
) -> None:
    executed(spec_of(tmp_path, dataset, compute={"workers": 1}))
    assert files_of(tmp_path / "store") == files_of(undisturbed.folder.parent.parent / "store")


def test_a_new_subject_makes_new_shards_and_new_labels_none(tmp_path: Path, ray_session: None) -> None:
    root = write_bids(tmp_path / "bids", subjects=SUBJECTS)
    spec = spec_of(tmp_path, root)
    executed(spec)
    before = files_of(tmp_path / "store")

    write(root / "participants.tsv", "participant_id\tage\tsex\nsub-03\t80\tF\n")
    assert ingest.plan(spec).figures["shards_to_do"] == 0
    executed(spec)
    store = SliceStore.open(place(spec.store))
    assert store.snapshot == 2
    assert {row["subject"]: dict(row["labels"]) for row in store.sessions().to_pylist()}["03"] == {
        "age": "80",
        "sex": "F",
    }
    assert SliceStore.open(place(spec.store), snapshot=1).sessions().num_rows == SUBJECTS
    assert [name for name in files_of(tmp_path / "store") if name.startswith("stacks")] == [
        name for name in before if name.startswith("stacks")
    ]

    write_scan(root / "sub-99/anat/sub-99_T1w.nii.gz", seed=99)
    assert ingest.plan(spec).figures["shards_to_do"] < ingest.plan(spec).figures["shards"]
    assert scans_prepared(executed(spec)) < 2 * SUBJECTS
    assert set(SliceStore.open(place(spec.store)).stack_index()["subject"].to_pylist()) >= {"03", "99"}
    assert before.items() <= files_of(tmp_path / "store").items()


def test_the_volumes_of_4d_scans_become_stacks_of_their_own(tmp_path: Path, ray_session: None) -> None:
    blank = heads(3)
    blank[..., 2] = 0
    for subject, volumes in (("01", heads(3)), ("02", blank)):
        write_series(tmp_path / f"scans/sub-{subject}_dwi.nii.gz", volumes)
    write_scan(tmp_path / "scans/sub-02_T1w.nii.gz")
    pattern = r"sub-(?P<subject>\d+)_(?P<modality>\w+)[.]nii"
    cohorts = [{"name": "demo", "glob": f"{tmp_path}/scans/*.nii.gz", "pattern": pattern}]
    preprocessing = {"stacks": {"form": "neighbours", "gap_mm": 9.0, "modalities": ["T1w", "dwi"]}, "volumes": "each"}
    spec = spec_of(tmp_path, "", cohorts=cohorts, preprocessing=preprocessing, pictures=True)
    plan = ingest.plan(spec)
    assert any("every scan is counted as one volume here" in warning for warning in plan.warnings)
    run = executed(spec)
    store = SliceStore.open(place(spec.store))
    assert check(store.place).faults == []
    scans = [(row["subject"], row["modality"], row["volume"]) for row in store.scans().to_pylist()]
    expected = {("01", "dwi", number) for number in range(3)} | {("02", "dwi", number) for number in range(2)}
    assert (set(scans), len(scans)) == (expected | {("02", "T1w", None)}, 6)
    figures = run.results()["figures"]
    assert (figures["scans"], figures["rejected"]) == (3, 1)
    assert "Each volume of a 4-D file gave samples of its own" in json.dumps(run.results()["blocks"])
    assert scans_prepared(executed(spec)) == 0


def test_a_plan_says_what_leaves_the_store_under_a_cohorts_name(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder
) -> None:
    folder = Path(undisturbed.folder.parent.parent.uri)
    assert ingest.plan(spec_of(folder, dataset)).figures["leaving"] == 0
    other = tmp_path / "other"
    write_scan(other / "sub-05/anat/sub-05_T1w.nii.gz", seed=5)
    write_scan(other / "sub-77/anat/sub-77_T1w.nii.gz", seed=77)
    plan = ingest.plan(spec_of(folder, other))
    assert ("leaves", "5 sessions of cohort demo") in plan.rows
    (warning,) = plan.warnings
    assert warning.startswith("cohort demo: 5 sessions are in snapshot 1 and not found now (01, …)")


def test_what_leaves_the_store_is_told_in_the_run_without_a_name(tmp_path: Path, ray_session: None) -> None:
    for subject in ("05", "77"):
        write_scan(tmp_path / f"first/sub-{subject}/anat/sub-{subject}_T1w.nii.gz", seed=int(subject))
    executed(spec_of(tmp_path, tmp_path / "first"))
    write_scan(tmp_path / "second/sub-05/anat/sub-05_T1w.nii.gz", seed=5)
    run = executed(spec_of(tmp_path, tmp_path / "second", name="second"))
    (warning,) = (event["message"] for event in run.events() if event["event"] == "warning")
    assert warning.startswith("cohort demo: 1 session is in snapshot 1 and not found now, and will be in no further")


def test_a_scan_that_took_too_long_is_tried_again_at_the_next_submit(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder
) -> None:
    slow = spec_of(tmp_path, dataset, compute={"scan_timeout_s": 1e-6})
    with pytest.raises(
        JobFailed, match="of 12 scans none could be used, and no snapshot was taken; the report says why"
    ):
        executed(slow)
    with pytest.raises(InputError, match=r"12 scans were rejected and none was used .*took longer than the limit: "):
        SliceStore.open(place(slow.store))
    first = RunFolder(place(slow.output) / slow.name)
    assert "took longer than the limit" in first.results()["figures"]["rejected_by_reason"]
    warnings = [event["message"] for event in first.events() if event["event"] == "warning"]
    assert "could not be read in full this time, or took too long; submit again" in warnings[0]
    spec = spec_of(tmp_path, dataset)
    assert ingest.plan(spec).figures["shards_to_do"] > 0
    executed(spec)
    assert ingest.plan(spec).figures["shards_to_do"] == 0
    there, here = SliceStore.open(place(spec.store)), SliceStore.open(undisturbed.folder.parent.parent / "store")
    assert there.totals == here.totals
    assert (
        files_of(undisturbed.folder.parent.parent / "store" / "commits").items()
        <= files_of(tmp_path / "store" / "commits").items()
    )


def test_another_preprocessing_is_refused_with_the_difference(dataset: Path, undisturbed: RunFolder) -> None:
    folder = Path(undisturbed.folder.parent.parent.uri)
    before = files_of(folder / "store")
    with pytest.raises(InputError, match=r"preprocessing\.size: the store has 44, asked for is 56"):
        ingest.plan(spec_of(folder, dataset, preprocessing={"size": 56}))
    assert files_of(folder / "store") == before


def test_a_store_is_called_as_it_was_before_there_were_further_fields(dataset: Path, undisturbed: RunFolder) -> None:
    store = Path(undisturbed.folder.parent.parent.uri) / "store"
    told = json.loads((store / "store.json").read_text())["preprocessing"]
    assert set(told) == {
        "stacks", "spacing_mm", "slice_spacing_mm", "size", "register", "brain", "window", "min_foreground"
    }  # fmt: skip


def test_more_rejections_than_allowed_fail_the_run_and_take_no_snapshot(
    dataset: Path, tmp_path: Path, ray_session: None
) -> None:
    spec = spec_of(tmp_path, dataset, max_rejected=0.1)
    with pytest.raises(JobFailed, match=r"2 of 12 scans \(16\.7%\) are rejected, more than max_rejected: 0\.1"):
        executed(spec)
    assert layout.snapshot_numbers(place(spec.store)) == []
    folder = RunFolder(place(spec.output) / spec.name)
    assert folder.outcome() == "failed"
    assert folder.results()["figures"]["rejected"] == 2
    executed(spec_of(tmp_path, dataset, max_rejected=0.2))
    assert layout.snapshot_numbers(place(spec.store)) == [1]


# what goes wrong ------------------------------------------------------------------------------------------------------


def test_a_run_that_is_stopped_goes_on_where_it_was(dataset: Path, tmp_path: Path, undisturbed: RunFolder) -> None:
    spec = spec_of(tmp_path, dataset)

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["phase"] == "preparing":
            run.ask_to_stop()

    run = run_of(spec, listener=stop)
    with pytest.raises(Interrupted, match="submit again"), run:
        ingest.execute(spec, run)
    assert RunFolder(run.folder).outcome() == "interrupted"
    assert layout.snapshot_numbers(place(spec.store)) == []
    executed(spec)
    assert files_of(tmp_path / "store") == files_of(undisturbed.folder.parent.parent / "store")


def test_a_shard_that_fails_fails_the_run_once_the_others_are_committed(
    dataset: Path, tmp_path: Path, ray_session: None
) -> None:
    spec = spec_of(tmp_path, dataset, compute={"workers": 1})
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "scans").write_text("a file where a folder should be")
    with pytest.raises(JobFailed, match=r"of \d shards could not be prepared.*\n    .*store/scans"):
        executed(spec)
    (tmp_path / "store" / "scans").unlink()
    executed(spec)
    assert layout.snapshot_numbers(place(spec.store)) == [1]


def test_a_worker_that_dies_costs_its_shard_only(ray_session: None) -> None:
    def task(row: dict[str, Any]) -> dict[str, Any]:
        import os
        import pickle

        shard = pickle.loads(row["shard"])
        if shard.sessions[0].key.subject == "poison":
            os._exit(1)
        return {"name": shard.name}

    sessions = [
        Session(Key("c", subject, ""), (Scan("T1w", Entry(Place(f"/{subject}"), 1, "")),))
        for subject in ("a", "poison", "z")
    ]
    shards = plan_shards(sessions, mean_sessions=1, preprocessing="", version=1)
    done = list(ingest.on_ray(shards, task=task, workers=1, retries=1))
    assert done.pop() == Lost(died=1)
    assert {row["name"] for row in done if not isinstance(row, Lost)} == {shards[0].name, shards[2].name}


DRIVER = """
import sys
from bfp.drivers import ingest
from bfp.drivers.inputs import recipe_of, sessions_of
from bfp.runs import Run
from bfp.specs.ingest import Ingest
from bfp.storage import place
from bfp.targets.ray_here import start_ray

spec = Ingest.model_validate_json(sys.argv[1])
start_ray(cpus=2)
with Run(place(spec.output) / spec.name, spec_yaml="kind: ingest", kind="ingest", version="0") as run:
    ingest.execute(spec, run)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_ingest_repeats_no_committed_shard_and_ends_with_the_same_bytes(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder, seed: int
) -> None:
    spec = spec_of(tmp_path, dataset)
    random = np.random.default_rng(seed)
    process = subprocess.Popen([sys.executable, "-c", DRIVER, spec.model_dump_json()], stderr=subprocess.DEVNULL)
    commits = tmp_path / "store" / "commits"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline and not (commits.is_dir() and any(commits.iterdir())):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(signal.SIGKILL)
    process.wait()

    time.sleep(0.5)  # the workers follow their driver; one that is committing may finish that
    before = {file: file.stat().st_ino for file in commits.iterdir()}  # its time may be renewed
    shards = [file for file in before if b'"kind": "shard"' in file.read_bytes()]
    assert shards
    assert scans_prepared(executed(spec)) == 2 * (SUBJECTS - len(shards))
    assert files_of(tmp_path / "store") == files_of(undisturbed.folder.parent.parent / "store")
    assert {file: file.stat().st_ino for file in before} == before


def test_a_part_that_was_lost_or_thrown_away_is_made_anew(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder
) -> None:
    spec = spec_of(tmp_path, dataset)
    executed(spec)
    whole = files_of(tmp_path / "store")
    lost = [sorted((tmp_path / "store" / table).iterdir())[0] for table in ("stacks", "scans", "sessions", "rejected")]
    for file in lost:
        file.unlink()
    assert len(check(place(spec.store)).faults) == len(lost)
    assert ingest.plan(spec).figures["shards_to_do"] > 0
    executed(spec)
    assert files_of(tmp_path / "store") == whole
    assert check(place(spec.store)).faults == []


@pytest.mark.parametrize("moment", ["before they are read", "while they are read", "before the snapshot"])
def test_what_a_prune_takes_meanwhile_fails_the_run_with_words_and_the_next_makes_it_anew(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    spec = spec_of(tmp_path, dataset)
    store = place(spec.store)
    at, name = {
        "before they are read": (ingest, "_all_whole"),
        "while they are read": (summary, "summarise"),
        "before the snapshot": (ingest, "_take_snapshot"),
    }[moment]
    plain = getattr(at, name)

    def pruned_before(*arguments: Any) -> Any:
        found = survey(store, older_than_s=0)
        assert remove(found) == found.waste != []
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(at, name, pruned_before)
        with pytest.raises(JobFailed, match=r"a prune of the store took . commits, or parts of .* submit again"):
            executed(spec)
    assert layout.snapshot_numbers(store) == []
    executed(spec)
    assert files_of(store) == files_of(undisturbed.folder.parent.parent / "store")
    assert check(store).faults == []


def test_a_part_that_is_gone_though_its_commit_is_there_fails_the_run(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, dataset)
    take_snapshot = ingest._take_snapshot

    def lost_before(*arguments: Any) -> layout.Numbered:
        (place(spec.store) / "stacks" / (place(spec.store) / "stacks").names()[0]).delete()
        return take_snapshot(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_take_snapshot", lost_before)
        with pytest.raises(JobFailed, match="a prune of the store took 1 commit, or parts of it"):
            executed(spec)
    assert layout.snapshot_numbers(place(spec.store)) == []
    executed(spec)
    assert check(place(spec.store)).faults == []


def test_what_a_prune_takes_at_the_beginning_is_made_in_the_same_run(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, dataset, max_rejected=0.0)
    with pytest.raises(JobFailed):
        executed(spec)
    renew = layout.renew

    def pruned_between(store: Place, names: list[str]) -> None:
        assert layout.whole(store, names).keys() == set(names)
        remove(survey(store, older_than_s=0))
        renew(store, names)

    monkeypatch.setattr(layout, "renew", pruned_between)
    executed(spec_of(tmp_path, dataset))
    assert files_of(tmp_path / "store") == files_of(undisturbed.folder.parent.parent / "store")


def test_an_ingest_waits_for_the_prune_that_is_at_work_and_not_for_one_that_was_killed(
    dataset: Path, tmp_path: Path, undisturbed: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, dataset)
    store = place(spec.store)
    with turns.marked(store, "prune"):
        asked = run_of(spec)
        asked.ask_to_stop()
        with pytest.raises(Interrupted, match="while a prune of the store was going on"), asked:
            ingest.execute(spec, asked)
        killed = store / layout.marker_file("prune")
        killed.write(b"")
    notes = [event["message"] for event in RunFolder(asked.folder).events() if event["event"] == "note"]
    assert notes == ["waiting for a prune of the store to end"]
    monkeypatch.setattr(turns, "LEASE_S", 0.0)
    executed(spec)
    assert files_of(store).keys() - {killed.name} == files_of(undisturbed.folder.parent.parent / "store").keys()


def test_a_shard_whose_worker_died_right_after_its_commit_is_not_prepared_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, dataset)
    store, recipe = place(spec.store), recipe_of(spec.preprocessing)
    shard = ingest.shards_of(spec, sessions_of(spec.cohorts, spec.preprocessing))[0]
    layout.make(store, spec.preprocessing.stored())
    made = ingest.prepare_shard(shard, store=store, recipe=recipe, scan_timeout_s=60)
    with monkeypatch.context() as patch:
        patch.setattr("bfp.cohorts.prepare.prepare", lambda *arguments, **more: pytest.fail("prepared again"))
        assert ingest.prepare_shard(shard, store=store, recipe=recipe, scan_timeout_s=60) == made
    part = store / made.parts[0].file
    before = part.read()
    part.delete()
    assert ingest.prepare_shard(shard, store=store, recipe=recipe, scan_timeout_s=60) == made
    assert part.read() == before


@pytest.mark.parametrize("names", [("demo", "other"), ("demo", "demo")])
def test_two_ingests_at_once_make_the_store_that_they_make_one_after_the_other(
    dataset: Path, tmp_path: Path, names: tuple[str, str], ray_session: None
) -> None:
    def specs(folder: str) -> list[Ingest]:
        return [
            spec_of(tmp_path / folder, dataset, name=f"run-{number}", cohorts=[{"name": name, "bids": str(dataset)}])
            for number, name in enumerate(names)
        ]

    for spec in specs("in turn"):
        executed(spec)
    lines = [[sys.executable, "-c", DRIVER, spec.model_dump_json(by_alias=True)] for spec in specs("at once")]
    running = [subprocess.Popen(line, stderr=subprocess.PIPE, text=True) for line in lines]
    for process in running:
        _, said = process.communicate(timeout=900)
        assert process.returncode == 0, said[-2000:]
    alone, together = (place(str(tmp_path / folder / "store")) for folder in ("in turn", "at once"))
    assert check(together).faults == []
    latest = [layout.latest_snapshot(store) for store in (alone, together)]
    assert [each.snapshot for each in latest if each] == [latest[0].snapshot] * 2
    # of two cohorts, which had the first snapshot to itself is chance
    assert {name: data for name, data in files_of(together).items() if not name.startswith("snapshots")} == {
        name: data for name, data in files_of(alone).items() if not name.startswith("snapshots")
    }
    assert len(list((tmp_path / "at once/store/snapshots").iterdir())) == len(set(names))


def test_an_ingest_from_and_to_object_storage_makes_the_same_stacks(
    dataset: Path, undisturbed: RunFolder, s3_bucket: str
) -> None:
    import s3fs

    s3fs.S3FileSystem().put(str(dataset), f"{s3_bucket}/bids", recursive=True)
    spec = spec_of(f"{s3_bucket}/ingest", f"{s3_bucket}/bids")
    assert ingest.plan(spec).figures["scans"] == 2 * SUBJECTS
    # Workers take the credentials from the environment that their Ray was started in.
    done = subprocess.run([sys.executable, "-c", DRIVER, spec.model_dump_json()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    there, here = SliceStore.open(place(spec.store)), SliceStore.open(undisturbed.folder.parent.parent / "store")
    # Parts are named by their content, so that equal names are equal stacks.
    assert {file.place.name for file in there.stack_files()} == {file.place.name for file in here.stack_files()}
    assert there.totals.stacks == there.stack_index().num_rows
    assert pixels_of(there.read_row_group(there.stack_files()[0], 0)).any()
    assert RunFolder(place(spec.output) / spec.name).outcome() == "done"
    assert ingest.plan(spec).figures["shards_to_do"] == 0

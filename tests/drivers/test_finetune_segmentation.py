"""kind: finetune of a segmentation, from real files through a store to masks on the scans' own voxels."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest

from bfp.drivers import finetune, infer, ingest
from bfp.errors import InputError, Interrupted
from bfp.models.encoder import load
from bfp.models.segmenter import is_segmenter, load_segmenter
from bfp.models.session_model import model_folder
from bfp.reports.blocks import results_from_json
from bfp.runs import Run
from bfp.specs import Finetune, Infer, Ingest
from bfp.storage import place
from tests.drivers.segmented import cohort_spec, write_cohort

pytestmark = pytest.mark.usefixtures("ray_session")

SHAPE = {"width": 32, "depth": 2, "heads": 2}
LOST = "05"
DECODER = {"width": 32, "steps": 60, "batch_size": 8, "learning_rate": 0.01}


def ingested(folder: Path, cohort: dict, **preprocessing):
    told = {"spacing_mm": 4.0, "slice_spacing_mm": 4.0, "size": 56, "register": "header", **preprocessing}
    spec = Ingest.model_validate(
        {
            "kind": "ingest",
            "name": "in",
            "output": str(folder / "runs"),
            "store": str(folder / "store"),
            "cohorts": [cohort],
            "preprocessing": told,
        }
    )
    with Run(place(spec.output) / spec.name, spec_yaml="", kind="ingest", version="0") as run:
        ingest.execute(spec, run)
    return place(spec.store)


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    """The folder of the dataset, its store, and the centres. One mask is gone by the time that it is learned from."""
    folder = tmp_path_factory.mktemp("balls")
    centres = write_cohort(folder / "bids")
    store = ingested(folder, cohort_spec(folder / "bids"))
    (lost,) = (folder / "bids").glob(f"derivatives/**/sub-{LOST}_*.nii.gz")
    lost.unlink()
    return folder / "bids", store, centres


def a_spec(store, output, **fields):
    told = {
        "kind": "finetune",
        "name": "balls",
        "output": str(output),
        "store": store.uri,
        "encoder": "random:vit_small_patch14_dinov2",
        "encoder_shape": SHAPE,
        "task": {"type": "segmentation", "target": "ball", "decoder": DECODER},
        "folds": 2,
        "compute": {"workers": 1},  # each loads torch, timm and MONAI, which takes longer than what it has to do here
    }
    return Finetune.model_validate(told | fields)


def execute(spec, stop_after=None):
    submitted, events = [], []

    def listen(event):
        events.append(event)
        if stop_after and event["event"] == "progress" and event["phase"].startswith(stop_after) and event["done"]:
            submitted[0].ask_to_stop()

    folder = place(spec.output) / spec.name
    with Run(folder, spec_yaml="", kind="finetune", version="0", listener=listen) as run:
        submitted.append(run)
        finetune.execute(spec, run)
    return folder, events


@pytest.fixture(scope="module")
def run(balls, tmp_path_factory):
    return execute(a_spec(balls[1], tmp_path_factory.mktemp("runs")))[0]


def figures(run):
    return json.loads((run / "results.json").read())["figures"]


def test_a_ball_is_found_in_heads_of_every_orientation_and_better_than_by_position_alone(run):
    found = figures(run)
    assert (found["native"], found["sessions"]) == (5, 6)
    assert found["dice_ball"] > 0.6
    assert found["dice_ball"] > found["dice_atlas_ball"] + 0.3
    assert found["above_atlas_ball_low"] > 0
    assert found["hd95_mm_ball"] < 40


def test_masks_out_of_fold_lie_where_they_were_drawn_and_give_the_written_figures(run, balls):
    bids, _, _ = balls
    table = pq.read_table((run / "predictions" / "segmentations.parquet").path).to_pandas()
    rows = table[table.approach == "encoder"].set_index("subject")
    assert set(rows.space[rows.index != LOST]) == {"native"}
    assert set(rows.fold) == {1, 2}
    for subject in rows.index.drop(LOST):
        name = f"sub-{subject}/anat/sub-{subject}_space-orig_desc-ball_dseg.nii.gz"
        mask = nib.load(run.path / "derivatives" / "balls" / name)
        drawn = nib.load(bids / "derivatives/drawn" / f"sub-{subject}/anat/sub-{subject}_label-ball_mask.nii.gz")
        assert mask.affine.tobytes() == drawn.affine.tobytes()
        one, other = np.asarray(mask.dataobj) == 1, np.asarray(drawn.dataobj) == 1
        assert rows.dice[subject] == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))
    assert figures(run)["dice_ball"] == pytest.approx(rows.dice.mean())


def test_the_model_folder_is_one_of_a_segmentation(run):
    folder = model_folder(run)
    assert is_segmenter(folder)
    encoder = load(origin="folder", name=None, uri=(folder / "encoder").uri, size_px=56)
    segmenter = load_segmenter(folder, encoder=encoder)
    assert (segmenter.classes, segmenter.drawn_on) == (("ball",), ("T1w",))
    assert segmenter.facts["figures"]["dice_ball"] == figures(run)["dice_ball"]
    (folder.path / "decoder.safetensors").write_bytes((folder / "decoder.safetensors").read() + b"x")
    with pytest.raises(InputError, match=r"not the decoder that model\.json was written with"):
        load_segmenter(folder, encoder=encoder)
    (folder.path / "decoder.safetensors").write_bytes((folder / "decoder.safetensors").read()[:-1])


def test_the_report_shows_classes_distances_cases_and_methods(run):
    results = results_from_json(json.loads((run / "results.json").read()))
    titles = [block.title for block in results.blocks]
    assert titles == [
        "Dice of each class",
        "How much higher the Dice of the untrained encoder is",
        "Dice and HD95",
        "Sessions, worst first",
        "Worst and best cases",
        "What was learned from what",
        "Participants",
        "What TRIPOD+AI asks for",
        "Methods",
        "Limits",
    ]
    told = {row[0]: row[2] for row in results.blocks[-3].rows}
    assert told["23a"].startswith("Dice 0.")
    assert told["23b"] == "the tables Dice and HD95; Sessions, worst first"
    assert (run / "pictures" / "cases.png").exists()


def test_a_stopped_run_goes_on_and_ends_as_if_undisturbed(run, balls, tmp_path):
    spec = a_spec(balls[1], tmp_path)
    with pytest.raises(Interrupted, match="of 7 folds; submit it again"):
        execute(spec, stop_after="cross-validation")
    kept = [file for part in ("features", "checkpoints/folds") for file in (tmp_path / "balls" / part).iterdir()]
    stamps = {file: file.stat().st_mtime_ns for file in kept}
    execute(spec)
    assert {file: file.stat().st_mtime_ns for file in kept} == stamps
    for file in ("predictions/segmentations.parquet", "folds.csv", "model/decoder.safetensors"):
        assert (tmp_path / "balls" / file).read_bytes() == (run / file).read()


def test_where_the_drawn_file_is_gone_the_stacks_are_judged_and_that_is_said(run):
    table = pq.read_table((run / "predictions" / "segmentations.parquet").path).to_pylist()
    (lost,) = [row for row in table if row["subject"] == LOST and row["approach"] == "encoder"]
    assert lost["space"] == "working"
    assert lost["dice"] > 0.3
    events = [json.loads(line) for line in (run / "events.jsonl").read().decode().splitlines()]
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert said == [
        (
            "1 session judged in the working grid of the stacks, not in native space: the file of its labels is not "
            "there any more"
        )
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tune": "full"}, "tune: full is not available for a segmentation"),
        ({"task": {"type": "segmentation", "target": "bal"}}, "has no segmentation bal; it has ball"),
        ({"folds": 9}, r"class ball has 6 subjects .* fewer than 9 folds"),
        ({"modalities": ["T2w"]}, "no stack is left by `where` and `modalities`"),
    ],
)
def test_what_is_wrong_is_said_by_the_plan_and_nothing_is_written(balls, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        finetune.plan(a_spec(balls[1], tmp_path / "runs", **fields))
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_what_was_drawn(balls, tmp_path):
    planned = finetune.plan(a_spec(balls[1], tmp_path))
    assert dict(planned.rows)["drawn on"] == "6 sessions of 6 subjects"
    assert planned.figures["sessions"] == 6


def test_raw_scans_become_masks_on_their_own_voxels_once_each(run, tmp_path):
    centres = write_cohort(tmp_path / "bids", subjects=4, seed=7)
    broken = tmp_path / "bids" / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    broken.write_bytes(broken.read_bytes()[:5000])
    spec = Infer.model_validate(
        {
            "kind": "infer",
            "name": "tonight",
            "output": str(tmp_path / "runs"),
            "model": run.uri,
            "cohorts": [{"name": "clinic", "bids": str(tmp_path / "bids")}],
        }
    )
    hashed = spec.model_copy(update={"privacy": spec.privacy.model_copy(update={"identifiers": "hash"})})
    with pytest.raises(InputError, match="the model segments, and its masks are named for subjects"):
        infer.plan(hashed)
    assert infer.plan(spec).figures["sessions_to_do"] == 4
    folder = place(spec.output) / spec.name
    with Run(folder, spec_yaml="", kind="infer", version="0") as infers:
        infer.execute(spec, infers)
    rows = {row["subject"]: row for row in pq.read_table((folder / "predictions/predictions.parquet").path).to_pylist()}
    assert list(rows) == ["00", "01", "02"]
    for subject, row in rows.items():
        scan = nib.load(tmp_path / "bids" / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz")
        mask = nib.load(folder.path / "derivatives" / row["mask"])
        for name in ("dim", "pixdim", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
            assert mask.header[name].tobytes() == scan.header[name].tobytes()
        inside = np.asarray(mask.dataobj) == 1
        centre_ras = nib.affines.apply_affine(mask.affine, np.argwhere(inside).mean(axis=0))
        assert np.linalg.norm(centre_ras - centres[subject]) < 15
        assert row["ml_ball"] == pytest.approx(inside.sum() * np.prod(mask.header.get_zooms()) / 1000)
    (rejected,) = pq.read_table((folder / "rejected/rejected.parquet").path).to_pylist()
    assert (rejected["subject"], rejected["reason"]) == ("03", "file ends early")
    dataset = json.loads((folder / "derivatives/clinic/dataset_description.json").read())
    assert dataset["DatasetType"] == "derivative"
    assert (folder / "pictures" / "masks.png").exists()
    results = results_from_json(json.loads((folder / "results.json").read()))
    assert results.figures["sessions"] == 3
    titles = [block.title for block in results.blocks]
    assert titles[:4] == ["Masks", "Sessions to look at", "Sessions of which nothing came", "Limits"]
    assert infer.plan(spec).figures["sessions_to_do"] == 0

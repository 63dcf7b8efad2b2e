import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
import timm
import torch

from bfp.cohorts import Source, discover
from bfp.cohorts.prepare import prepare
from bfp.drivers.inputs import recipe_of
from bfp.errors import InputError, Reason
from bfp.features.describe import EncoderVectors
from bfp.features.extraction import describe_chunk, plan_chunks
from bfp.features.sessions import pool_sessions
from bfp.features.tokens import images
from bfp.inference.predictor import Predictor, predictor_of
from bfp.inference.ready import inputs_of, model_hash, ready
from bfp.models.encoder import load
from bfp.models.pooling import Pooling
from bfp.models.session_model import load_model
from bfp.specs.preprocessing import Preprocessing
from bfp.storage import place
from bfp.store import layout
from bfp.store.reader import SliceStore
from bfp.store.shards import commit_shard
from tests.cohorts.makers import heads, write_scan, write_series
from tests.inference.makers import ALL, make_encoder, make_model, preprocessing, write_subject

EACH = {"stacks": {"form": "neighbours", "gap_mm": 7.0, "modalities": list(ALL)}, "volumes": "each"}
NEIGHBOURS = {"stacks": {"form": "neighbours", "gap_mm": 7.0, "modalities": list(ALL)}}


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bids")
    write_subject(folder, "01")
    write_subject(folder, "02", modalities=("T1w",))
    return folder


def sessions(bids):
    return discover(Source("clinic", "bids", place(str(bids))), wanted=ALL)


def a_ready(bids, number=0, *, shown=ALL, **fields):
    recipe = recipe_of(Preprocessing.model_validate(preprocessing(**fields)))
    session = sessions(bids)[number]
    pieces = prepare(session, recipe=recipe, scan_timeout_s=60)
    return ready(session, pieces, shown=shown, by_modality=recipe.form == "neighbours", size_px=28, inputs="x")


def predictor(folder, **options):
    return Predictor(folder, device="cpu", batch_size=5, **options)


def predicted(model, session):
    (vectors,) = model.vectors([session])
    return model.predict(session, vectors)


def test_a_row_is_what_encoder_pooling_and_head_say_of_the_stacks(bids, tmp_path):
    model = make_model(tmp_path)
    session = a_ready(bids)
    row = predicted(predictor(model), session).row
    encoder = load(origin="folder", name=None, uri=(model / "encoder").uri, size_px=28)
    vectors = EncoderVectors(encoder)(torch.from_numpy(session.pixels))
    learned = load_model(model)
    pooled = learned.pooling.pool(vectors, heights=session.heights, parts=[""] * len(vectors))
    (probabilities,) = learned.head.probabilities(pooled[None])
    assert row["prob_AD"] == pytest.approx(probabilities[1], abs=1e-6)
    assert row["prob_CN"] + row["prob_AD"] == pytest.approx(1)
    assert row["spread"] == pytest.approx(learned.predict(pooled).told["spread"], abs=1e-6)
    assert row["predicted"] == learned.outputs.names[int(probabilities.argmax())]
    assert row["stacks"] == len(session.pixels) > 5
    np.testing.assert_allclose(row["embedding"], vectors.mean(axis=0), atol=1e-5)


def test_a_row_says_what_it_was_made_from_and_what_was_missing(bids, tmp_path):
    row = predicted(predictor(make_model(tmp_path)), a_ready(bids, 1)).row
    assert (row["cohort"], row["subject"], row["session"]) == ("clinic", "02", "")
    assert row["modalities"] == ["T1w"]
    assert row["missing"] == ["T2w", "FLAIR"]
    assert row["scans"] == [f"{bids}/sub-02/anat/sub-02_T1w.nii.gz"]


def test_a_modality_that_the_model_is_not_shown_changes_nothing(bids, tmp_path):
    model = predictor(make_model(tmp_path, shown=("T1w",)))
    whole, alone = a_ready(bids, shown=("T1w",)), a_ready(bids, shown=("T1w",))
    alone.pixels[:, 1:] = 99
    assert predicted(model, whole).row["prob_AD"] == predicted(model, alone).row["prob_AD"]
    assert [row.reason for row in whole.left_out] == [Reason.UNWANTED] * 2


def test_a_session_without_anything_to_show_gives_no_row(bids, tmp_path):
    outcome = predicted(predictor(make_model(tmp_path, shown=("FLAIR",))), a_ready(bids, 1, shown=("FLAIR",)))
    assert outcome.row is None
    assert [row.detail for row in outcome.left_out] == ["the model is shown FLAIR"]


def test_stacks_of_neighbours_are_pooled_by_modality(bids, tmp_path):
    model = make_model(tmp_path, **NEIGHBOURS)
    session = a_ready(bids, **NEIGHBOURS)
    assert set(session.parts) == set(ALL)
    order = np.random.default_rng(0).permutation(len(session.parts))
    shuffled = dataclasses.replace(
        session,
        pixels=session.pixels[order],
        heights=session.heights[order],
        visible=session.visible[order],
        parts=[session.parts[n] for n in order],
    )
    found = predicted(predictor(model), shuffled).row["prob_AD"]
    assert found == pytest.approx(predicted(predictor(model), session).row["prob_AD"], abs=1e-6)
    relabelled = dataclasses.replace(session, parts=["T1w"] * len(order))
    assert predicted(predictor(model), relabelled).row["prob_AD"] != pytest.approx(found, abs=1e-4)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A session of one 3-D scan and one of three volumes, the last of them blank."""
    folder = tmp_path_factory.mktemp("series")
    write_scan(folder / "sub-01/anat/sub-01_T1w.nii.gz", seed=3)
    volumes = heads(3)
    volumes[..., 2] = 0
    write_series(folder / "sub-01/anat/sub-01_T2w.nii.gz", volumes)
    return folder


def test_a_session_with_a_4d_scan_is_predicted_from_all_its_volumes(series, tmp_path):
    model = make_model(tmp_path, **EACH)
    session = a_ready(series, **EACH)
    outcome = predicted(predictor(model), session)
    assert [scan.modality for scan in session.scans] == ["T1w", "T2w"]
    assert outcome.row["scans"] == [f"{series}/sub-01/anat/sub-01_{name}.nii.gz" for name in ("T1w", "T2w")]
    assert outcome.row["stacks"] == len(session.pixels)
    assert [(row.modality, row.reason) for row in outcome.left_out] == [("T2w", Reason.EMPTY)]
    encoder = load(origin="folder", name=None, uri=(model / "encoder").uri, size_px=28)
    vectors = EncoderVectors(encoder)(torch.from_numpy(session.pixels))
    own = np.array(session.parts) == "T2w"
    first, second = np.split(vectors[own], 2)  # of one volume and of the other
    pooling = Pooling(bands=1, parts=("T2w",))
    pooled = pooling.pool(vectors, heights=session.heights, parts=session.parts)
    np.testing.assert_allclose(pooled, (first.mean(axis=0) + second.mean(axis=0)) / 2, atol=1e-5)
    assert not np.allclose(first, second)


def test_a_4d_scan_that_the_model_is_not_shown_is_left_out_once(series):
    session = a_ready(series, shown=("T1w",), **EACH)
    assert set(session.parts) == {"T1w"}
    assert [(row.modality, row.reason) for row in session.left_out] == [
        ("T2w", Reason.EMPTY),
        ("T2w", Reason.UNWANTED),
    ]


def test_training_pools_the_volumes_of_a_session_as_prediction_does(series, tmp_path):
    recipe = recipe_of(Preprocessing.model_validate(preprocessing(**EACH)))
    store = place(str(tmp_path / "store"))
    (session,) = sessions(series)
    layout.make(store, Preprocessing.model_validate(preprocessing(**EACH)).stored())
    pieces = prepare(session, recipe=recipe, scan_timeout_s=60)
    commit = commit_shard(store, pieces, name="a", cohort="clinic", size_px=28, version=1)
    stored = SliceStore.of_commits(store, [commit])
    model = make_model(tmp_path / "model", **EACH)
    describe = EncoderVectors(load(origin="folder", name=None, uri=(model / "encoder").uri, size_px=28))
    chunks = plan_chunks(stored, stored.stack_index(), identity="x", shown=ALL)
    features = pa.concat_tables(describe_chunk(stored, chunk, describe, shown=ALL, batch_size=5) for chunk in chunks)
    pooling = load_model(model).pooling
    trained = pool_sessions(features, [session.key], pooling)[0]
    ready_ = a_ready(series, **EACH)
    vectors = describe(torch.from_numpy(ready_.pixels))
    np.testing.assert_allclose(trained, pooling.pool(vectors, heights=ready_.heights, parts=ready_.parts), atol=1e-4)


def test_another_encoder_than_the_head_was_trained_on_is_refused(tmp_path):
    model, other = make_model(tmp_path / "a"), make_model(tmp_path / "b", seed=1)
    (model / "encoder" / "model.safetensors").write((other / "encoder" / "model.safetensors").read())
    with pytest.raises(InputError, match="not the encoder that the head was trained on"):
        predictor(model)


def test_an_encoder_without_a_head_gives_the_means_of_its_tokens(bids, tmp_path):
    folder, session = make_encoder(tmp_path), a_ready(bids, 1)
    model = predictor_of(folder, device="cpu", batch_size=5)
    row = predicted(model, session).row
    plain = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    encoder = load(origin="folder", name=None, uri=folder.uri, size_px=28)
    with torch.inference_mode():
        tokens = plain.forward_features(images(encoder, torch.from_numpy(session.pixels)))
    patches = tokens[:, plain.num_prefix_tokens :]
    np.testing.assert_allclose(row["class_token"], tokens[:, 0].mean(dim=0), atol=1e-5)
    np.testing.assert_allclose(row["patch_mean"], patches.mean(dim=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(row["embedding"], patches.std(dim=1, correction=0).mean(dim=0), atol=1e-5)
    assert row["missing"] == ["T2w", "FLAIR"]
    assert row["warnings"] == [f"no {name}, which the model was trained with" for name in ("T2w", "FLAIR")]
    first = model_hash(folder)
    config = json.loads((folder / "config.json").read())
    (folder / "config.json").write(json.dumps({**config, "bfp": {**config["bfp"], "weights_sha256": "0"}}).encode())
    assert model_hash(folder) != first
    with pytest.raises(InputError, match=r"not the weights that its config\.json was written with"):
        predictor_of(folder, device="cpu", batch_size=5)


def test_the_inputs_of_a_session_change_with_its_files_and_the_model(bids, tmp_path):
    model = make_model(tmp_path)
    first, second = (inputs_of(session, model=model_hash(model)) for session in sessions(bids))
    assert first != second
    again, _ = (inputs_of(session, model=model_hash(model)) for session in sessions(bids))
    assert again == first
    file = bids / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    file.write_bytes(file.read_bytes() + b"\0")
    assert inputs_of(sessions(bids)[0], model=model_hash(model)) != first
    told = json.loads((model / "model.json").read())
    (model / "model.json").write(json.dumps({**told, "shown": ["T1w"]}).encode())
    assert inputs_of(sessions(bids)[1], model=model_hash(model)) != second


def test_batches_are_filled_across_sessions_and_change_nothing(bids, tmp_path, monkeypatch):
    model = predictor(make_model(tmp_path))
    sessions = [a_ready(bids, 0), a_ready(bids, 1), a_ready(bids, 1, shown=("FLAIR",)), a_ready(bids, 0)]
    alone = [model.vectors([session])[0] for session in sessions]
    described, sizes = model._describe, []
    monkeypatch.setattr(model, "_describe", lambda pixels: (sizes.append(len(pixels)), described(pixels))[1])
    together = model.vectors(sessions)
    assert [len(own) for own in together] == [len(session.pixels) for session in sessions]
    for own, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(own, expected.reshape(own.shape), atol=1e-5)
    assert set(sizes[:-1]) == {5}
    assert sum(sizes) == sum(len(session.pixels) for session in sessions)


def test_an_encoder_that_gives_no_numbers_predicts_nothing(bids, tmp_path, monkeypatch):
    model = predictor(make_model(tmp_path))
    monkeypatch.setattr(model, "_describe", lambda pixels: np.full((len(pixels), 32), np.nan, np.float32))
    with pytest.raises(InputError, match="the encoder gave numbers that are not finite"):
        predicted(model, a_ready(bids))

import dataclasses
import json

import numpy as np
import pytest

from bfp.errors import InputError
from bfp.models.linear import LinearHead, standardisation
from bfp.models.outputs import Classes, Hazards, Margin, Numbers
from bfp.models.pooling import Pooling
from bfp.models.recalibration import Temperature
from bfp.models.session_model import SessionModel, load_model, model_folder, save_model
from bfp.models.typical import fit_typical
from bfp.storage import place
from tests.inference.makers import rewrite


def a_head(random, length=6, outputs=3):
    centre, scale = standardisation(random.normal(size=(20, length)))
    return LinearHead(centre, scale, random.normal(size=(outputs, length)), random.normal(size=outputs))


OUTPUTS = {
    "classification": Classes(("CN", "MCI", "AD"), Temperature(1.5), None),
    "regression": Numbers(-1.0, 2.5, Margin(0.9, 1.25)),
    "survival": Hazards(np.array([-2.0, -0.5, 0.0, 0.0, 1.0])),
}


def saved(model, folder, *, card):
    """Beside the config of an encoder, as it stands there before."""
    (folder / "encoder" / "config.json").write(b"{}")
    save_model(model, folder, card=card)


def a_model(folds=4, kind="classification"):
    random = np.random.default_rng(0)
    count = 3 if kind == "classification" else 1
    return SessionModel(
        target="diagnosis",
        outputs=OUTPUTS[kind],
        pooling=Pooling(3, ("",)),
        shown=("T1w", "FLAIR"),
        preprocessing={"size": 28, "window": [0.5, 99.5]},
        head=a_head(random, outputs=count),
        fold_heads=tuple(a_head(random, outputs=count) for _ in range(folds)),
        typical=fit_typical(random.normal(size=(30, 6)), np.arange(30) % 5, complete=np.ones(30, dtype=bool)),
        facts={"run": "ad-vs-cn"},
    )


def a_model_of(classes):
    return dataclasses.replace(a_model(), outputs=Classes(classes, Temperature(1.5), None))


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_model_that_was_written_and_read_predicts_the_same(tmp_path, kind):
    written = a_model(kind=kind)
    saved(written, place(str(tmp_path / "run" / "model")), card="# A model\n")
    read = load_model(model_folder(place(str(tmp_path / "run"))))
    vectors = np.random.default_rng(1).normal(size=(5, 6))
    vectors[0, 2] = np.nan
    assert [read.predict(vector) for vector in vectors] == [written.predict(vector) for vector in vectors]
    for field in ("target", "pooling", "shown", "preprocessing", "facts"):
        assert getattr(read, field) == getattr(written, field)


def test_the_spread_is_how_far_the_fold_heads_are_apart():
    vector = np.random.default_rng(1).normal(size=6)
    model = a_model()
    chosen = OUTPUTS["classification"].names.index(model.predict(vector).told["predicted"])
    said = [head.probabilities(vector[None])[0, chosen] for head in model.fold_heads]
    assert model.predict(vector).told["spread"] == pytest.approx(np.std(said))
    numbers = a_model(kind="regression")
    said = [head.logits(vector[None])[0, 0] for head in numbers.fold_heads]
    assert numbers.predict(vector).told["spread"] == pytest.approx(np.std(said))
    hazards = a_model(kind="survival")
    said = [hazards.outputs.percentile(head.logits(vector[None])[0, 0]) for head in hazards.fold_heads]
    assert hazards.predict(vector).told["spread"] == pytest.approx(np.std(said))
    assert a_model(folds=0, kind="survival").predict(vector).told["spread"] is None


def saying(number, kind):
    """A model that says it of everybody."""
    head = LinearHead(np.zeros(6), np.ones(6), np.zeros((1, 6)), np.array([float(number)]))
    return dataclasses.replace(a_model(kind=kind), head=head, typical=None)


def test_a_number_has_an_interval_and_one_outside_the_training_is_told_and_warned_of():
    told = saying(2.5, "regression").predict(np.zeros(6))
    assert (told.told["predicted"], told.told["low"], told.told["high"]) == (2.5, 1.25, 3.75)
    assert told.warnings == []
    for number in (-1.5, 200.0):
        told = saying(number, "regression").predict(np.zeros(6))
        assert told.told["predicted"] == number  # never clipped
        (warning,) = told.warnings
        assert warning.startswith(f"predicted {number:.4g}, outside what the model learned from (-1 to 2.5)")
    without = dataclasses.replace(saying(1, "regression"), outputs=Numbers(-1.0, 2.5, None)).predict(np.zeros(6))
    assert (without.told["low"], without.told["high"]) == (None, None)


@pytest.mark.parametrize(("hazard", "percentile"), [(-9, 0), (-0.5, 30), (0, 60), (0.5, 80), (9, 100)])
def test_a_hazard_is_told_by_its_place_among_the_held_out_ones(hazard, percentile):
    told = saying(hazard, "survival").predict(np.zeros(6)).told
    assert (told["log_hazard"], told["percentile"]) == (hazard, pytest.approx(percentile))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no finished model there \(no model.json\); give a finetune run"):
        model_folder(place(str(tmp_path)))


def test_a_model_of_a_newer_bfp_or_a_damaged_one_is_refused(tmp_path):
    folder = place(str(tmp_path))
    saved(a_model(), folder, card="")
    told = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**told, "contract": 99}))
    with pytest.raises(InputError, match=r"written by a newer bfp \(contract 99; this one reads up to 6\)"):
        load_model(folder)
    for older in (1, 5):
        (tmp_path / "model.json").write_text(json.dumps({**told, "contract": older}))
        message = rf"an older bfp \(contract {older}; .* other vectors .*; fine-tune again"
        with pytest.raises(InputError, match=message):
            load_model(folder)
    (tmp_path / "model.json").write_text(json.dumps(told))
    rewrite(folder, folds=9)
    with pytest.raises(InputError, match="not a whole model"):
        load_model(folder)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        load_model(folder)


@pytest.mark.parametrize(
    "change", [{"classes": ["AD", "MCI", "CN"]}, {"preprocessing": {"spacing_mm": 1.0}}, {"facts": {}}]
)
def test_a_description_that_was_changed_by_hand_is_refused(tmp_path, change):
    folder = place(str(tmp_path))
    saved(a_model(), folder, card="")
    told = json.loads((folder / "model.json").read())
    (folder / "model.json").write(json.dumps({**told, **change}).encode())
    with pytest.raises(InputError, match=r"model\.json: was changed since it was written with its weights"):
        load_model(folder)
    (folder / "model.json").write(json.dumps(told).encode())
    assert load_model(folder).target == a_model().target


def test_a_description_and_a_head_that_do_not_belong_together_are_refused(tmp_path):
    folder, other = place(str(tmp_path / "one")), place(str(tmp_path / "other"))
    saved(a_model(), folder, card="")
    saved(a_model_of(("AD", "MCI", "CN")), other, card="")
    told = json.loads((folder / "model.json").read())
    (other / "model.json").write(json.dumps(told).encode())
    with pytest.raises(InputError, match=r"not the head that model\.json was written with"):
        load_model(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.full((3, 6), np.nan)}, "a head whose numbers are not all finite"),
        ({"bias": np.zeros(2)}, r"a head of shapes .*, expected \(\(6,\), \(6,\), \(3, 6\), \(3,\)\) for 3 outputs"),
        ({"weights": np.zeros((3, 5))}, "a head of shapes"),
        ({"scale": np.zeros(6)}, "a scale that is not positive"),
    ],
)
def test_a_head_that_cannot_judge_is_refused(tmp_path, change, message):
    folder, whole = place(str(tmp_path)), a_model()
    broken = dataclasses.replace(whole.head, **change)
    for parts in ({"head": broken}, {"fold_heads": (*whole.fold_heads, broken)}):
        saved(dataclasses.replace(whole, **parts), folder, card="")
        with pytest.raises(InputError, match=message):
            load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": ["CN"]}, "model.json: classes: .*at least 2 items"),
        ({"folds": "many"}, "model.json: folds: "),
        ({"pooling": {"bands": "x"}}, "model.json: pooling"),
    ],
)
def test_a_value_of_model_json_that_is_none_is_named(tmp_path, change, message):
    folder = place(str(tmp_path))
    saved(a_model(), folder, card="")
    told = json.loads((folder / "model.json").read())
    (folder / "model.json").write(json.dumps({**told, **change}).encode())
    with pytest.raises(InputError, match=message) as caught:
        load_model(folder)
    assert "http" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("regression", {"trained_to": None}, "model.json: trained_to: "),
        ("regression", {"margin": {"coverage": 0.9, "half_width": -1}}, r"model.json: margin\.half_width: "),
        (
            "regression",
            {"type": "ranking"},
            "a model for ranking; this bfp predicts with those for classification",
        ),
        ("classification", {"type": "regression"}, "model.json: trained_from: "),
        ("regression", {"target": "weight"}, "was changed since it was written"),
        ("classification", {"type": "survival"}, "was changed since it was written"),
    ],
)
def test_a_description_of_another_type_or_without_its_parts_is_refused(tmp_path, kind, change, message):
    folder = place(str(tmp_path))
    saved(a_model(kind=kind), folder, card="")
    told = json.loads((folder / "model.json").read())
    (folder / "model.json").write(json.dumps({**told, **change}).encode())
    with pytest.raises(InputError, match=message):
        load_model(folder)


@pytest.mark.parametrize("held_out", [[], [np.nan, 1], [2, 1], [[1.0]]])
def test_hazards_that_nothing_can_be_put_among_are_refused(tmp_path, held_out):
    broken = dataclasses.replace(a_model(kind="survival"), outputs=Hazards(np.array(held_out, dtype=np.float64)))
    saved(broken, place(str(tmp_path)), card="")
    with pytest.raises(InputError, match="log hazards of training sessions that are none"):
        load_model(place(str(tmp_path)))


def test_the_encoders_config_cannot_be_changed_without_the_model(tmp_path):
    """It says how pixels are normalised, and model.json stands as it was."""
    saved(a_model(), place(str(tmp_path)), card="")
    (tmp_path / "encoder" / "config.json").write_text('{"mean": [0.9, 0.9, 0.9]}')
    with pytest.raises(InputError, match=r"config\.json: not the encoder's config\.json that model\.json was written"):
        load_model(place(str(tmp_path)))

import dataclasses
import json

import numpy as np
import pytest

from bfp.errors import InputError
from bfp.models.linear import LinearHead, standardisation
from bfp.models.pooling import Pooling
from bfp.models.recalibration import Temperature
from bfp.models.session_model import SessionModel, load_model, model_folder, save_model
from bfp.models.typical import fit_typical
from bfp.storage import place


def a_head(random, length=6, classes=3):
    centre, scale = standardisation(random.normal(size=(20, length)))
    return LinearHead(centre, scale, random.normal(size=(classes, length)), random.normal(size=classes))


def a_model(folds=4):
    random = np.random.default_rng(0)
    return SessionModel(
        target="diagnosis",
        classes=("CN", "MCI", "AD"),
        pooling=Pooling(3, ("",)),
        shown=("T1w", "FLAIR"),
        preprocessing={"size": 28, "window": [0.5, 99.5]},
        head=a_head(random),
        fold_heads=tuple(a_head(random) for _ in range(folds)),
        typical=fit_typical(random.normal(size=(30, 6)), np.arange(30) % 5, complete=np.ones(30, dtype=bool)),
        recalibration=Temperature(1.5),
        threshold=None,
        facts={"run": "ad-vs-cn"},
    )


def test_a_model_that_was_written_and_read_predicts_the_same(tmp_path):
    written = a_model()
    save_model(written, place(str(tmp_path / "run" / "model")), card="# A model\n")
    read = load_model(model_folder(place(str(tmp_path / "run"))))
    vectors = np.random.default_rng(1).normal(size=(5, 6))
    vectors[0, 2] = np.nan
    for field in ("probabilities", "recalibrated", "spread", "distances", "atypical"):
        np.testing.assert_array_equal(getattr(read.predict(vectors), field), getattr(written.predict(vectors), field))
    for field in ("target", "classes", "pooling", "shown", "preprocessing", "facts"):
        assert getattr(read, field) == getattr(written, field)


def test_the_spread_is_how_far_the_fold_heads_are_apart():
    model = a_model()
    vectors = np.random.default_rng(1).normal(size=(5, 6))
    chosen = model.predict(vectors).probabilities.argmax(axis=1)
    said = [head.probabilities(vectors)[np.arange(5), chosen] for head in model.fold_heads]
    np.testing.assert_allclose(model.predict(vectors).spread, np.std(said, axis=0))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no finished model there \(no model.json\); give a finetune run"):
        model_folder(place(str(tmp_path)))


def test_a_model_of_a_newer_bfp_or_a_damaged_one_is_refused(tmp_path):
    folder = place(str(tmp_path))
    save_model(a_model(), folder, card="")
    told = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**told, "contract": 99}))
    with pytest.raises(InputError, match=r"written by a newer bfp \(contract 99; this one reads up to 3\)"):
        load_model(folder)
    (tmp_path / "model.json").write_text(json.dumps({**told, "contract": 1}))
    with pytest.raises(InputError, match=r"an older bfp \(contract 1; .* other vectors .*; fine-tune again"):
        load_model(folder)
    (tmp_path / "model.json").write_text(json.dumps({**told, "folds": 9}))
    with pytest.raises(InputError, match="not a whole model"):
        load_model(folder)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        load_model(folder)


def test_a_description_and_a_head_that_do_not_belong_together_are_refused(tmp_path):
    folder, other = place(str(tmp_path / "one")), place(str(tmp_path / "other"))
    save_model(a_model(), folder, card="")
    save_model(dataclasses.replace(a_model(), classes=("AD", "MCI", "CN")), other, card="")
    told = json.loads((folder / "model.json").read())
    (folder / "model.json").write(json.dumps({**told, "classes": ["AD", "MCI", "CN"]}).encode())
    with pytest.raises(InputError, match="its classes are AD, MCI, CN, and those of the head CN, MCI, AD"):
        load_model(folder)
    (other / "model.json").write(json.dumps(told).encode())
    with pytest.raises(InputError, match=r"not the head that model\.json was written with"):
        load_model(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.full((3, 6), np.nan)}, "a head whose numbers are not all finite"),
        ({"bias": np.zeros(2)}, r"a head of shapes .*, expected \(\(6,\), \(6,\), \(3, 6\), \(3,\)\) for 3 classes"),
        ({"weights": np.zeros((3, 5))}, "a head of shapes"),
        ({"scale": np.zeros(6)}, "a scale that is not positive"),
    ],
)
def test_a_head_that_cannot_judge_is_refused(tmp_path, change, message):
    folder, whole = place(str(tmp_path)), a_model()
    broken = dataclasses.replace(whole.head, **change)
    for parts in ({"head": broken}, {"fold_heads": (*whole.fold_heads, broken)}):
        save_model(dataclasses.replace(whole, **parts), folder, card="")
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
    save_model(a_model(), folder, card="")
    told = json.loads((folder / "model.json").read())
    (folder / "model.json").write(json.dumps({**told, **change}).encode())
    with pytest.raises(InputError, match=message) as caught:
        load_model(folder)
    assert "http" not in str(caught.value)

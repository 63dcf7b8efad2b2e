import copy
import dataclasses

import numpy as np
import pytest
import safetensors.numpy
import torch

from bfp.features.describe import EncoderVectors
from bfp.features.sessions import pool_sessions
from bfp.finetuning.crossvalidation import Study, run_fold
from bfp.finetuning.network import SessionNetwork
from bfp.finetuning.ridge import Ridge
from bfp.finetuning.tuning import (
    digest_of_trial,
    dump_tuned,
    frozen_model,
    load_tuned,
    place_of,
    pooled_vector,
    rates,
    tuned_encoder,
)
from bfp.metrics.auroc import auroc
from bfp.models.attention import AttentionPooling, places
from bfp.models.pooling import Pooling
from bfp.storage import place
from tests.finetuning.worlds import FULL, MEAN, World, a_trial, make_world, rare_stacks, train

LORA = dataclasses.replace(FULL, tune="lora", learning_rate=0.6, layer_decay=None, drop_path=None, rank=4, alpha=8)
ATTENTION = dataclasses.replace(FULL, tune="frozen", epochs=15, learning_rate=0.8, layer_decay=None, drop_path=None)
ATTENDS = AttentionPooling((), MEAN)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def full(world, tmp_path_factory):
    return train(a_trial(world), place(str(tmp_path_factory.mktemp("full"))))


def own_auroc(study, result):
    return auroc(study.targets[result.tested], result.said)


def test_tuning_learns_what_the_encoder_at_rest_does_not_tell(world, full):
    frozen = run_fold(world.study, pool_sessions(world.features, world.sessions, MEAN), 0)
    assert own_auroc(world.study, frozen) < 0.7
    assert own_auroc(world.study, full.result) > 0.9
    assert full.epoch > 0
    assert full.epochs[-1].loss < full.epochs[1].loss


def test_adapters_learn_it_too_and_all_else_of_the_encoder_rests(world, tmp_path):
    pytest.importorskip("peft")
    found = train(a_trial(world, tuning=LORA), place(str(tmp_path)))
    assert own_auroc(world.study, found.result) > 0.9
    assert found.weights
    assert all(".lora_" in name for name in found.weights)
    encoder = tuned_encoder(world.encoder, LORA, found.weights)
    before, after = world.encoder.model.state_dict(), encoder.model.state_dict()
    assert before.keys() == after.keys()
    changed = {
        name.rpartition(".")[0].partition(".")[2] for name in before if not torch.equal(before[name], after[name])
    }
    assert changed == {f"{block}.{part}" for block in "01" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}


@pytest.mark.parametrize("tuning", [FULL, LORA], ids=["full", "lora"])
def test_what_was_trained_says_the_same_from_plain_weights_head_and_pooling(world, tmp_path, tuning):
    if tuning.tune == "lora":
        pytest.importorskip("peft")
    pooling = Pooling(bands=5, parts=("",))
    short = dataclasses.replace(tuning, epochs=2)
    found = train(a_trial(world, tuning=short, pooling=pooling, epochs=2), place(str(tmp_path)))
    describe = EncoderVectors(tuned_encoder(world.encoder, short, found.weights))
    for n, said in zip(found.result.tested[:3], found.result.said, strict=False):
        own = world.pixels.places[n]
        vectors = describe(world.pixels.read(own.rows))
        pooled = found.pooling.pool(vectors, heights=own.heights, parts=[""] * len(vectors))[None]
        np.testing.assert_allclose(world.study.learner.say(found.result.head, pooled)[0], said, atol=1e-5)


def test_a_stopped_training_ends_as_if_undisturbed(world, full, tmp_path):
    trial, kept = a_trial(world), place(str(tmp_path))
    stopped = train(trial, kept, stop_after=3)
    assert stopped.number == 3
    assert [file.name for file in tmp_path.iterdir()] == ["epoch-3.safetensors"]
    torch.manual_seed(99)  # whatever came between
    again = train(trial, kept)
    assert dump_tuned(again) == dump_tuned(full)


def test_tested_subjects_change_nothing_of_their_own_head(world, full, tmp_path):
    changed = copy.deepcopy(world.study.targets)
    changed[world.study.folds == 0] = 1 - changed[world.study.folds == 0]
    vectors = world.vectors.vectors.copy()
    for n in np.flatnonzero(world.study.folds == 0):
        vectors[world.vectors.places[n].rows] += 7
    trial = a_trial(
        world,
        study=dataclasses.replace(world.study, targets=changed),
        vectors=dataclasses.replace(world.vectors, vectors=vectors),
    )
    found = train(trial, place(str(tmp_path)))
    assert dump_tuned(found) == dump_tuned(full)


def test_sessions_in_one_pass_are_a_matter_of_memory(world, tmp_path):
    tuning = dataclasses.replace(FULL, epochs=1, drop_path=0.0)
    few = train(a_trial(world, tuning=tuning, epochs=1, batch_size=8), place(str(tmp_path / "few")))
    many = train(a_trial(world, tuning=tuning, epochs=1, batch_size=64), place(str(tmp_path / "many")))
    np.testing.assert_allclose(few.result.said, many.result.said, atol=1e-4)


def test_a_number_is_learned_in_its_own_unit(world, tmp_path):
    years = 60.0 + 20 * world.study.targets + np.arange(30) % 3
    study = Study(Ridge(), years, world.study.persons, world.study.folds, [0.001, 0.1], 0)
    found = train(a_trial(world, study=study), place(str(tmp_path)))
    errors = np.abs(found.result.said[:, 0] - years[found.result.tested])
    assert errors.mean() < 6 < np.abs(years - years.mean()).mean()


def test_rare_classes_weigh_more_where_that_is_asked_for(world, tmp_path):
    study, vectors = rare_stacks()
    learned = (study.folds != 0) & ((study.targets == 0) | (np.cumsum(study.targets) < 15))
    own = {"study": study, "vectors": vectors, "stacks": vectors, "learned": learned, "tested": study.folds == 0}
    said = []
    for balanced in (False, True):
        tuning = dataclasses.replace(ATTENTION, epochs=3, class_balanced=balanced)
        trial = a_trial(world, tuning=tuning, epochs=3, **own)
        said.append(train(trial, place(str(tmp_path / str(balanced)))).result.said[:, 1].mean())
    assert said[1] > said[0] + 0.02


def test_attention_finds_the_few_stacks_that_tell_and_beats_their_mean(world, tmp_path):
    study, vectors = rare_stacks()
    own = {"study": study, "vectors": vectors, "stacks": vectors}
    own |= {"learned": study.folds != 0, "tested": study.folds == 0}
    found = train(a_trial(world, tuning=ATTENTION, pooling=ATTENDS, **own), place(str(tmp_path)))
    pooled = np.stack([pooled_vector(MEAN, each, vectors.vectors[each.rows]) for each in vectors.places])
    assert own_auroc(study, found.result) > own_auroc(study, run_fold(study, pooled, 0)) + 0.05
    first = found.pooling.maps[0]
    scores = [
        first.scores(vectors.vectors[each.rows], places(each.heights, each.parts, part_count=1))
        for each in vectors.places
    ]
    telling = [vectors.vectors[each.rows, 0] > 3 for each in vectors.places]
    assert (
        np.mean(
            [
                score[tells].mean() - score[~tells].mean()
                for score, tells in zip(scores, telling, strict=True)
                if tells.any()
            ]
        )
        > 1
    )


@pytest.mark.parametrize("bands", [1, 3])
def test_attention_begins_as_plain_pooling(world, tmp_path, bands):
    within = Pooling(bands, ("",))
    begun = [
        train(
            a_trial(world, tuning=dataclasses.replace(ATTENTION, epochs=0), pooling=each, epochs=0),
            place(str(tmp_path)),
        )
        for each in (within, AttentionPooling((), within))
    ]
    np.testing.assert_allclose(begun[0].result.said, begun[1].result.said, atol=1e-6)


def test_a_network_says_in_training_what_its_head_and_pooling_say_without_it(world, tmp_path):
    # of all slices, without stochastic depth: the torch code of a step against the numpy code of inference
    pooling = AttentionPooling((), Pooling(3, ("",)))
    trial = a_trial(world, tuning=dataclasses.replace(ATTENTION, epochs=2), pooling=pooling, epochs=2)
    begin = frozen_model(trial, np.flatnonzero(trial.learned))
    network = SessionNetwork(None, pooling, begin)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter, generator=torch.Generator().manual_seed(0))
    own = [world.vectors.places[n] for n in (0, 7, 8)]
    rows = np.concatenate([each.rows for each in own])
    logits = network(world.vectors.read(rows), place_of(own, torch.device("cpu")), 3)
    learned, head = network.learned()
    pooled = np.stack([pooled_vector(learned, each, world.vectors.vectors[each.rows]) for each in own])
    np.testing.assert_allclose(logits.detach().numpy(), head.logits(pooled), atol=1e-5)


def test_what_came_of_a_training_is_read_as_it_was_written(full):
    again = load_tuned(dump_tuned(full))
    assert dump_tuned(again) == dump_tuned(full)
    assert again.epochs[1:] == full.epochs[1:]


def test_a_training_is_known_by_all_that_goes_into_it(world):
    trial = a_trial(world)
    others = [
        a_trial(world, fold=1),
        a_trial(world, tuning=dataclasses.replace(FULL, weight_decay=0.06)),
        a_trial(world, pooling=Pooling(2, ("",))),
        a_trial(world, epochs=3),
        a_trial(world, study=dataclasses.replace(world.study, seed=1)),
        a_trial(world, learned=world.study.folds == 1),
    ]
    digests = [digest_of_trial(each, source="x") for each in (trial, *others)] + [digest_of_trial(trial, source="y")]
    assert len(set(digests)) == len(digests)
    assert digest_of_trial(a_trial(world, batch_size=5), source="x") == digests[0]


def test_blocks_learn_at_the_published_rates(world):
    # RETFound's util/lr_decay.py: layer 0 the embeddings, block i layer i + 1, the rest layer depth + 1 = 25 of ViT-L
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.23.mlp.fc2.bias"]
    found = rates([f"encoder.{name}" for name in [*names, "norm.weight"]] + ["head.weight"], depth=24, layer_decay=0.65)
    expected = [0.65**25] * 3 + [0.65**24, 0.65, 1.0, 1.0]
    assert list(found.values()) == pytest.approx(expected)


def test_the_rate_follows_the_published_schedule():
    tuning = dataclasses.replace(FULL, epochs=50, warmup_epochs=10, learning_rate=5e-3, sessions_per_step=16)
    peak = 5e-3 * 16 / 256
    assert tuning.rate_at(0) == 0
    assert tuning.rate_at(5) == pytest.approx(peak / 2)
    assert tuning.rate_at(10) == pytest.approx(peak)
    assert tuning.rate_at(30) == pytest.approx((peak + 1e-6) / 2)
    assert tuning.rate_at(50) == pytest.approx(1e-6)


def test_no_weight_of_a_kept_epoch_needs_a_pickle(world, tmp_path):
    train(a_trial(world), place(str(tmp_path)), stop_after=1)
    names = safetensors.numpy.load_file(tmp_path / "epoch-1.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"best", "now", "exp_avg", "exp_avg_sq"}

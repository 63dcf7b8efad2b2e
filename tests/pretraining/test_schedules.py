from __future__ import annotations

import json
from itertools import pairwise

import pytest

from bfp.pretraining.schedules import Length, Now, Schedules, linear, scaled_rate
from tests.models.golden import GOLDEN, needs_golden


def make_schedules(**changed):
    usual = {
        "steps": 100,
        "learning_rate": 1e-3,
        "min_learning_rate": 1e-6,
        "warmup_steps": 10,
        "freeze_last_layer_steps": 5,
        "weight_decay": (0.04, 0.4),
        "momentum": (0.992, 1.0),
        "teacher_temperature": (0.04, 0.07),
        "teacher_temperature_warmup_steps": 30,
    }
    return Schedules(**{**usual, **changed})


def test_the_rate_starts_at_zero_peaks_after_the_warm_up_and_ends_low():
    schedules = make_schedules()
    rates = [schedules.at(step).learning_rate for step in range(101)]
    assert rates[0] == 0
    assert rates[9] == rates[10] == max(rates) == 1e-3
    assert rates[11:] == sorted(rates[11:], reverse=True)
    assert rates[100] == 1e-6


def test_the_last_layer_rests_and_then_joins_the_same_curve():
    now = [make_schedules().at(step) for step in range(7)]
    assert [values.last_layer_rate for values in now[:5]] == [0.0] * 5
    assert now[5].last_layer_rate == now[5].learning_rate > 0


def test_while_the_backbone_rests_the_heads_learn_at_the_full_rate_and_then_it_warms_up():
    schedules = make_schedules(freeze_backbone_steps=12, backbone_factor=0.1)
    now = [schedules.at(step) for step in range(40)]
    assert [values.backbone_rate for values in now[:13]] == [0.0] * 13
    assert now[6].learning_rate == schedules.learning_rate  # at half of its rest
    shares = [0.0, *(values.backbone_rate / values.learning_rate for values in now[1:])]
    assert shares[12:22] == pytest.approx([0.1 * step / 9 for step in range(10)])
    assert shares[22:] == pytest.approx([0.1] * 18)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_warm_up_of_no_length_is_its_end(steps):
    assert linear(1, first=0.04, last=0.07, steps=steps) == 0.07


def extended(*lengths, steps, **changed):
    return make_schedules(steps=steps, earlier=tuple(Length(*each) for each in lengths), **changed)


@pytest.mark.parametrize("resting", [0, 54])  # a backbone that rests has thawed, or warms up just then
@pytest.mark.parametrize(
    ("lengths", "steps"),
    [(((100, 100),), 300), (((100, 60),), 300), (((100, 100), (300, 300)), 500), (((100, 100),), 102)],
)
def test_a_run_that_is_given_a_new_length_keeps_its_past_and_does_not_jump(lengths, steps, resting):
    changed = {"freeze_backbone_steps": resting, "backbone_factor": 0.1}
    schedules = extended(*lengths, steps=steps, **changed)
    before = extended(*lengths[:-1], steps=lengths[-1][0], **changed)
    until = lengths[-1][1]
    assert [schedules.at(step) for step in range(until + 1)] == [before.at(step) for step in range(until + 1)]
    longer = make_schedules(steps=steps, **changed)
    assert until < schedules.rewarmed_at <= until + max(1, (steps - until) // 10)
    for step in range(schedules.rewarmed_at, steps + 1):
        assert schedules.at(step) == pytest.approx(longer.at(step))
    way = schedules.rewarmed_at - until
    stood, goes = before.at(until), longer.at(until)
    for name in Now._fields:
        values = [getattr(schedules.at(step), name) for step in range(until, schedules.rewarmed_at + 1)]
        curve = [getattr(longer.at(step), name) for step in range(until, schedules.rewarmed_at + 2)]
        steepest = max(abs(following - this) for this, following in pairwise(curve))
        most = (abs(getattr(goes, name) - getattr(stood, name)) + way * steepest) / way + steepest
        for this, following in pairwise(values):
            assert abs(following - this) <= most * (1 + 1e-9), name


def test_an_extended_run_trains_again():
    """At the end of its first length its rate was next to nothing and its teacher stood still."""
    ended, again = make_schedules(steps=100).at(100), extended((100, 100), steps=200).at(110)
    assert (ended.learning_rate, ended.momentum) == (1e-6, 1.0)
    assert again.learning_rate > 0.3e-3
    assert again.momentum < 0.998


def test_a_resumed_run_of_the_same_length_is_not_extended():
    schedules = make_schedules(steps=100)
    assert schedules.going_on(60, steps=100, earlier=()) == schedules
    assert schedules.going_on(60, steps=80, earlier=[Length(40, until=40)]).earlier == ((40, 40), (80, 60))


def from_published(config: dict) -> Schedules:
    each = config["iterations_per_epoch"]
    total = config["batch_per_process"] * config["processes"]
    return Schedules(
        steps=config["epochs"] * each,
        learning_rate=scaled_rate(config["base_lr"], batch_size=total),
        min_learning_rate=config["min_lr"],
        warmup_steps=config["warmup_epochs"] * each,
        freeze_last_layer_steps=config["freeze_last_layer_epochs"] * each,
        weight_decay=tuple(config["weight_decay"]),
        momentum=tuple(config["teacher_momentum"]),
        teacher_temperature=tuple(config["teacher_temperature"]),
        teacher_temperature_warmup_steps=config["warmup_teacher_temp_epochs"] * each,
    )


@needs_golden
def test_every_published_schedule_is_met_at_every_iteration():
    reference = json.loads((GOLDEN / "schedules.json").read_text())
    names = {
        "lr": "learning_rate",
        "weight_decay": "weight_decay",
        "teacher_momentum": "momentum",
        "teacher_temperature": "teacher_temperature",
        "last_layer_lr": "last_layer_rate",
    }
    for curve in (reference["small"], *reference["defaults_sampled"].values()):
        schedules = from_published(curve["config"])
        for theirs, ours in names.items():
            got = [getattr(schedules.at(step), ours) for step in curve["iterations"]]
            assert got == pytest.approx(curve[theirs], rel=1e-12, abs=1e-18), theirs


@needs_golden
def test_the_scaling_of_rates_is_the_published_one():
    for row in json.loads((GOLDEN / "schedules.json").read_text())["lr_scaling"]:
        assert scaled_rate(row["base_lr"], batch_size=row["total_batch"]) == pytest.approx(row["lr"], rel=1e-12)

from __future__ import annotations

import json

import pytest

from bfp.pretraining.schedules import Schedules, linear, scaled_rate
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


def test_the_backbone_rests_and_then_learns_at_its_share_of_the_rate():
    now = [make_schedules(freeze_backbone_steps=3, backbone_factor=0.1).at(step) for step in range(12)]
    assert [values.backbone_rate for values in now[:3]] == [0.0] * 3
    assert all(values.backbone_rate == pytest.approx(0.1 * values.learning_rate) for values in now[3:])


@pytest.mark.parametrize("steps", [0, 1])
def test_a_warm_up_of_no_length_is_its_end(steps):
    assert linear(1, first=0.04, last=0.07, steps=steps) == 0.07


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

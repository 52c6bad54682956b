"""Settings of the loop: their checks, their values from text, and the schedules they give."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from efficientsam3.train.errors import SettingsError
from efficientsam3.train.settings import LoopSettings, to_plain, with_overrides, with_steps


def rates(**values: Any) -> list[float]:
    settings = LoopSettings(**{"steps": 100, "lr": 1.0, **values})
    return [settings.lr_at(step) for step in range(settings.steps)]


def test_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    assert rates(warmup=4, schedule="constant")[:6] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_falls_to_the_lowest_at_the_last_step() -> None:
    values = rates(warmup=1, min_lr=0.1)
    assert values[1] == 1 and values[-1] == pytest.approx(0.1)
    assert values[50] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 49 / 98)))
    assert all(a > b for a, b in itertools.pairwise(values[1:]))


def test_inverse_square_root_with_cool_down() -> None:
    values = rates(schedule="inverse-sqrt", warmup=10, timescale=20, cooldown=10)
    assert values[10] == 1
    assert values[70] == pytest.approx(0.5)  # 1 + 60 / 20 = 4
    assert values[99] == pytest.approx((20 / 109) ** 0.5 / 10)
    assert values[89] == pytest.approx((20 / 99) ** 0.5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": 0.1, "min_lr": 0.2}, "from 0 to lr, which is 0.1"),
        ({"schedule": "step"}, "one of cosine, inverse-sqrt, constant"),
        ({"precision": "fp8"}, "one of 32-true, bf16-mixed"),
        ({"ema": 1.0}, "between 0 and 1, or none"),
        ({"clip": 0}, "more than 0, or none"),
        ({"warmup": 8, "cooldown": 3}, "at most steps - cooldown, which is 10 - 3"),
        ({"scales": {"trunk": -1}}, "factors of 0 or more"),
        ({"betas": (0.9, 1.0)}, "two values from 0 to below 1"),
        ({"save_minutes": -1}, "0 or more"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_impossible_values_are_refused(values: Any, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        LoopSettings(**{"steps": 10, **values})
    assert words in str(caught.value)


def test_text_is_read_as_the_fields_type() -> None:
    words = {
        "lr": "5e-4",
        "steps": "1_000",
        "ema": "0.99",
        "clip": "none",
        "betas": "0.9, 0.98",
        "parts": "trunk,neck",
        "scales.trunk": "0.1",
        "scales.text": "0",
        "tensorboard": "true",
        "schedule": "constant",
    }
    got = with_overrides(LoopSettings(steps=5, scales={"trunk": 1.0, "neck": 0.5}), words)
    assert got == LoopSettings(
        steps=1000,
        lr=5e-4,
        ema=0.99,
        clip=None,
        betas=(0.9, 0.98),
        parts=("trunk", "neck"),
        scales={"trunk": 0.1, "neck": 0.5, "text": 0.0},
        tensorboard=True,
        schedule="constant",
    )


def test_options_of_a_recipe_are_read_too() -> None:
    @dataclass(frozen=True)
    class Options:
        sizes: tuple[int, ...] = (1,)
        name: str | None = None

    assert with_overrides(Options(), {"sizes": "3,4", "name": "x"}) == Options((3, 4), "x")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", "1", "unknown setting 'learning_rate'; known: steps, accumulate"),
        ("steps", "many", "steps=many is not a value"),
        ("betas", "0.9", "it takes 2 values"),
        ("tensorboard", "1", "true or false"),
        ("lr.trunk", "1", "lr has no entries"),
        ("lr", "-1", "more than 0"),
        ("scales", "1", "cannot be given as text"),
    ],
)
def test_wrong_text_is_refused(key: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        with_overrides(LoopSettings(steps=5), {key: value})
    assert words in str(caught.value)


def test_fewer_steps_have_shorter_ramps() -> None:
    short = with_steps(LoopSettings(steps=100, warmup=20, cooldown=10), 10)
    assert (short.steps, short.warmup, short.cooldown) == (10, 2, 1)
    longer = with_steps(short, 100)
    assert (longer.steps, longer.warmup) == (100, 2)


def test_identity_is_plain_and_leaves_out_logging_and_devices() -> None:
    settings = LoopSettings(steps=5, parts=("a",), scales={"a": 1.0})
    values = settings.identity()
    assert json.loads(json.dumps(values)) == values
    assert not {"log_every", "keep", "devices"} & set(values)
    assert set(values) < set(to_plain(settings))

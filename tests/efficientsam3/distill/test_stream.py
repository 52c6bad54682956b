"""Batches made ahead: the same ones, in order, whoever makes them."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from efficientsam3.distill.settings import SettingsError
from efficientsam3.distill.stream import stream
from efficientsam3.errors import ImageError

MODULE = """
import time, torch
from efficientsam3.errors import ImageError

def make(number, rng):
    if number % 3 == 0:
        time.sleep(0.003)  # later ones are ready before it
    if number == 40:
        raise ImageError("picture 40 is broken")
    return number, torch.from_numpy(rng.random(5))
"""
make: Any = None


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where another process finds it."""
    global make
    folder = tmp_path_factory.mktemp("stream")
    (folder / "tiny_batches.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        make = importlib.import_module("tiny_batches").make
        yield


def taken(count: int, **options: Any) -> list[tuple[int, list[float]]]:
    batches = stream(make, seed=3, **options)
    try:
        return [(n, values.tolist()) for n, values in itertools.islice(batches, count)]
    finally:
        close(batches)


def close(batches: Iterator[Any]) -> None:
    getattr(batches, "close", lambda: None)()


THREADS = {"workers": 3, "kind": "thread"}
PROCESSES = pytest.param({"workers": 2}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [THREADS, PROCESSES])
def test_the_same_whoever_makes_them(options: Any) -> None:
    assert taken(20, start=2, **options) == taken(20, start=2)


def test_a_later_start_is_the_rest() -> None:
    assert taken(20)[12:] == taken(8, start=12)
    assert taken(4) != [(n, v) for n, v in taken(4, start=1)]


def test_ranks_share_out_the_batches_of_one() -> None:
    one = taken(12, start=4)
    two = [taken(6, start=2, rank=r, world=2) for r in range(2)]
    assert [b for pair in zip(*two, strict=True) for b in pair] == one


@pytest.mark.parametrize("options", [{}, THREADS, PROCESSES])
def test_errors_are_raised_where_the_batch_is_taken(options: Any) -> None:
    batches = stream(make, seed=3, start=38, **options)
    assert [next(batches)[0], next(batches)[0]] == [38, 39]
    with pytest.raises(ImageError, match=r"^picture 40 is broken$"):
        next(batches)
    close(batches)


@pytest.mark.parametrize(
    "options", [{"kind": "fork"}, {"workers": -1}, {"rank": 2, "world": 2}, {"ahead": 0}]
)
def test_impossible_options_are_refused(options: Any) -> None:
    with pytest.raises(SettingsError):
        stream(make, seed=0, **options)

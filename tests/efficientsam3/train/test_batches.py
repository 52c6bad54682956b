"""Batches: which samples they have, in which order, and on which device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from efficientsam3.data.augment import Augment, AugmentSettings
from efficientsam3.data.sample import TrainingSample
from efficientsam3.errors import DataError
from efficientsam3.train.batches import Batches, Generated, index_at, to_device
from efficientsam3.train.loader import stream

from .conftest import Shapes


def test_each_epoch_has_each_sample_once() -> None:
    first = [index_at(p, 7, 3) for p in range(7)]
    second = [index_at(p, 7, 3) for p in range(7, 14)]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert 0 <= index_at(5, 10**12, 0) < 10**12


def collate(items: Iterable[str], rng: np.random.Generator) -> list[tuple[str, int]]:
    return [(item, int(rng.integers(1000))) for item in items]


def test_batches_do_not_depend_on_where_they_start() -> None:
    batches = Batches(list("abcdefg"), collate, 2, 5)
    every = stream(batches, seed=5)
    begun = [next(every) for _ in range(6)]
    resumed = stream(batches, seed=5, start=4)
    assert [next(resumed), next(resumed)] == begun[4:]
    ranks = [stream(batches, seed=5, rank=r, world=2) for r in range(2)]
    assert [next(ranks[0]), next(ranks[1]), next(ranks[0])] == begun[:3]


def test_once_is_in_order() -> None:
    batches = Batches(list("abcdefg"), collate, 2, 5)
    found = list(batches.once(5))
    assert [[v for v, _ in b] for b in found] == [["a", "b"], ["c", "d"], ["e"]]
    assert found == list(batches.once(5))


def test_unusable_samples_are_replaced() -> None:
    batches = Batches(list(range(100)), collate, 10, usable=lambda v: v % 2 == 0)  # type: ignore[arg-type]
    found = [v for n in range(10) for v, _ in batches(n, np.random.default_rng(n))]
    assert all(v % 2 == 0 for v in found)
    none = Batches([1, 3], collate, 2, usable=lambda v: v % 2 == 0)  # type: ignore[arg-type]
    assert len(none(0, np.random.default_rng(0))) == 2  # the collator then raises an error


def test_samples_are_augmented_by_position_and_not_for_validation() -> None:
    def collate(items: Iterable[TrainingSample], rng: np.random.Generator) -> list[bytes]:
        return [item.image.tobytes() for item in items]

    augment, source = Augment(AugmentSettings(flip=0.5, crop=0.5)), Shapes(3)
    batches = Batches(source, collate, 2, seed=5, augment=augment)
    for number in range(4):
        wanted = [
            augment(source[index_at(p, 3, 5)], 5, p).image.tobytes()
            for p in range(2 * number, 2 * number + 2)
        ]
        # The generator of the batch, which depends on the process, is of no account.
        assert batches(number, np.random.default_rng(number)) == wanted
        assert batches(number, np.random.default_rng(99)) == wanted
    epochs = {batches(n, np.random.default_rng(0))[0] for n in range(0, 30, 3)}
    assert len(epochs) == 10  # The same sample is changed in another way in each epoch.
    unchanged = [image for batch in batches.once(3) for image in batch]
    assert unchanged == [source[i].image.tobytes() for i in range(3)]


def test_an_empty_data_set_is_an_error() -> None:
    with pytest.raises(DataError, match="the data set is empty"):
        Batches([], collate, 2)


def test_generated_samples_are_named_by_their_number() -> None:
    source = Generated(Shapes(1 << 40).__getitem__)
    assert len(source) == 1 << 40
    assert source.key(7) == source[7].key == "7"


class Inner(NamedTuple):
    value: torch.Tensor


class Outer(NamedTuple):
    inner: Inner
    name: str
    missing: torch.Tensor | None


def test_all_tensors_of_a_batch_are_moved() -> None:
    batch = Outer(Inner(torch.zeros(2)), "x", None)
    moved = to_device(batch, torch.device("meta"))
    assert moved.inner.value.is_meta
    assert isinstance(moved.inner, Inner) and moved.name == "x" and moved.missing is None

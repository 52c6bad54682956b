"""A training sample is checked when it is made, and squashed as the model reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.distill.data.batches import Batches, Joined, Subset, index_at
from efficientsam3.distill.data.sample import PhraseQuery, TrainingSample
from efficientsam3.distill.errors import DataError
from efficientsam3.distill.stream import stream
from efficientsam3.pixels import normalise


def sample(**changes: Any) -> TrainingSample:
    mask = np.zeros((20, 40), bool)
    mask[5:10, 20:40] = True
    values: dict[str, Any] = {
        "key": "a",
        "image": np.random.default_rng(0).integers(0, 255, (20, 40, 3), np.uint8),
        "boxes": np.array([[20, 5, 40, 10]], np.float32),
        "masks": (mask,),
        "queries": (PhraseQuery("dog", (0,)), PhraseQuery("cat")),
    }
    return TrainingSample(**{**values, **changes})


def test_boxes_in_unit() -> None:
    assert sample().boxes_in_unit().tolist() == [[0.75, 0.375, 0.5, 0.25]]


def test_masks_are_squashed_as_images_are() -> None:
    got = sample().masks_at(8)
    want = torch.zeros(1, 8, 8)
    want[0, 2:4, 4:] = 1  # rows 5 to 10 of 20, columns 20 to 40 of 40
    assert (got.round() == want).all()
    assert got.min() >= 0
    assert got.max() <= 1
    assert sample().masks_at(8, ()).shape == (0, 8, 8)


def test_pixels_are_what_the_predictor_reads() -> None:
    one = sample()
    want = normalise(torch.from_numpy(one.image).permute(2, 0, 1), 28, 0.5, 0.5)
    assert torch.equal(one.pixels(28), want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((20, 40, 3))}, "uint8"),
        ({"image": np.zeros((20, 40), np.uint8)}, "uint8"),
        ({"masks": ()}, "0 masks for 1 boxes"),
        ({"masks": (np.zeros((20, 41), bool),)}, "mask 0 is of 41 x 20 pixels"),
        ({"masks": ({"size": [9, 9], "counts": [81]},)}, "another copy of the image"),
        ({"queries": (PhraseQuery("dog", (1,)),)}, "'dog' names object 1"),
        ({"boxes": np.zeros((1, 5), np.float32)}, "xyxy"),
        ({"points": np.zeros((2, 2), np.float32)}, "points"),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(**changes)


def test_no_masks() -> None:
    with pytest.raises(DataError, match="boxes and no masks"):
        sample(masks=None).mask(0)


# Which sample comes when ---------------------------------------------------------------------


def test_each_epoch_has_each_sample_once() -> None:
    first = [index_at(p, 7, 3) for p in range(7)]
    second = [index_at(p, 7, 3) for p in range(7, 14)]
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert 0 <= index_at(5, 10**12, 0) < 10**12


def pair(value: str, random: np.random.Generator) -> tuple[str, int]:
    return value, int(random.integers(1000))


def test_batches_do_not_depend_on_where_they_start() -> None:
    made = Batches(list("abcdefg"), pair, list, 2, 5)
    whole = stream(made, seed=5)
    begun = [next(whole) for _ in range(6)]
    resumed = stream(made, seed=5, start=4)
    assert [next(resumed), next(resumed)] == begun[4:]
    ranks = [stream(made, seed=5, rank=r, world=2) for r in range(2)]
    assert [next(ranks[0]), next(ranks[1]), next(ranks[0])] == begun[:3]


def test_once_is_in_order() -> None:
    made = Batches(list("abcdefg"), pair, list, 2, 5)
    batches = list(made.once(5))
    assert [[v for v, _ in b] for b in batches] == [["a", "b"], ["c", "d"], ["e"]]
    assert batches == list(made.once(5))


def test_an_empty_source() -> None:
    with pytest.raises(DataError, match="empty"):
        Batches([], pair, list, 2)


class Named:
    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return self.names[index]

    def __getitem__(self, index: int) -> TrainingSample:
        return sample(key=self.names[index])


def test_joined_and_parts() -> None:
    both = Joined(Named("a", "b"), Named(), Named("a"))
    assert [both.key(i) for i in range(len(both))] == ["0/a", "0/b", "2/a"]
    assert both[2].key == "2/a"
    part = Subset(both, [2, 0])
    assert [part.key(i) for i in range(len(part))] == ["2/a", "0/a"]
    assert part[1].key == "0/a"

"""Training samples: checks, and what the model gets of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efficientsam3.data.sample import TrainingSample, source_files, source_identity
from efficientsam3.data.subsets import Joined, Subset
from efficientsam3.data.types import PhraseQuery
from efficientsam3.errors import DataError
from efficientsam3.io.images import normalize


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


def test_boxes_are_relative_centers_and_sizes() -> None:
    assert sample().boxes_in_unit().tolist() == [[0.75, 0.375, 0.5, 0.25]]


def test_masks_are_resized_as_images_are() -> None:
    got = sample().masks_at(8)
    want = torch.zeros(1, 8, 8)
    want[0, 2:4, 4:] = 1  # Rows 5 to 10 of 20, columns 20 to 40 of 40.
    assert (got.round() == want).all()
    assert got.min() >= 0
    assert got.max() <= 1
    assert sample().masks_at(8, ()).shape == (0, 8, 8)


def test_pixels_are_normalized_as_in_the_predictor() -> None:
    one = sample()
    want = normalize(torch.from_numpy(one.image).permute(2, 0, 1), 28, 0.5, 0.5)
    assert torch.equal(one.pixels(28), want)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": np.zeros((20, 40, 3))}, "uint8"),
        ({"image": np.zeros((20, 40), np.uint8)}, "uint8"),
        ({"masks": ()}, "0 masks for 1 boxes"),
        ({"masks": (np.zeros((20, 41), bool),)}, "mask 0 has 41 x 20 pixels"),
        ({"masks": ({"size": [9, 9], "counts": [81]},)}, "another copy of the data"),
        ({"queries": (PhraseQuery("dog", (1,)),)}, "'dog' names object 1"),
        ({"boxes": np.zeros((1, 5), np.float32)}, "xyxy"),
        ({"points": np.zeros((2, 2), np.float32)}, "points"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sample(**changes)


def test_a_sample_without_masks_has_no_mask() -> None:
    with pytest.raises(DataError, match="boxes and no masks"):
        sample(masks=None).mask(0)


# Which sample comes when ---------------------------------------------------------------------


class Named:
    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def key(self, index: int) -> str:
        return self.names[index]

    def __getitem__(self, index: int) -> TrainingSample:
        return sample(key=self.names[index])


def test_joined_data_sets_and_subsets() -> None:
    both = Joined(Named("a", "b"), Named(), Named("a"))
    assert [both.key(i) for i in range(len(both))] == ["0/a", "0/b", "2/a"]
    assert both[2].key == "2/a"
    part = Subset(both, [2, 0])
    assert [part.key(i) for i in range(len(part))] == ["2/a", "0/a"]
    assert part[1].key == "0/a"


class Endless:
    """Samples that are made as they are asked for."""

    def __len__(self) -> int:
        return 1 << 40

    def key(self, index: int) -> str:
        return str(index)

    def __getitem__(self, index: int) -> TrainingSample:
        return sample(key=str(index))


class OfFiles(Endless):
    """Two samples, each of a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 2

    def files(self, index: int) -> list[Path]:
        return [self.folder / f"{index}.png"]


def test_files_of_data_sets(tmp_path: Path) -> None:
    """The identity of a data set is that of its files, and endless ones are not counted."""
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(b"image")
    endless, files = Endless(), OfFiles(tmp_path)
    for none in (endless, Joined(endless, endless), Subset(endless, range(1 << 40))):
        assert source_identity(none) is None
    both = [tmp_path / "0.png", tmp_path / "1.png"]
    assert list(source_files(files)) == list(source_files(Joined(endless, files))) == both
    assert list(source_files(Subset(Joined(files), [1]))) == both[1:]
    assert source_identity(Joined(endless, files)) == source_identity(files) is not None

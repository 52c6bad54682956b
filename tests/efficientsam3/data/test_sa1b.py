"""SA-1B in both layouts, all of it and subsets."""

from __future__ import annotations

import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam3.data.image_folder import ImageFolder
from efficientsam3.data.sa1b import SA1B
from efficientsam3.errors import DataError
from efficientsam3.train.batches import Batches
from efficientsam3.train.loader import stream


def keys(data: SA1B | ImageFolder) -> list[str]:
    return [data.key(i) for i in range(len(data))]


def test_layout_as_released(sa1b: Path) -> None:
    data = SA1B(sa1b)
    assert keys(data) == ["sa_1", "sa_2", "sa_10", "sa_11", "sa_12", "sa_13"]
    sample = data[2]
    assert sample.key == "sa_10"
    assert sample.image.shape == (30, 40, 3)
    assert sample.boxes.tolist() == [[3, 2, 8, 7], [9, 7, 17, 15]]
    assert sample.points is not None
    assert sample.points.tolist() == [[4, 4], [10, 9]]
    mask = sample.mask(1)
    assert mask.sum() == 64
    assert mask[7:15, 9:17].all()
    assert sample.queries == ()


def test_layout_of_upstream(tmp_path: Path) -> None:
    from .conftest import write_sa1b

    write_sa1b(tmp_path, arranged=True)
    data = SA1B(tmp_path, split="train")
    assert len(data) == 6
    assert (data[0].image == SA1B(tmp_path)[0].image).all()
    with pytest.raises(DataError, match="no folder"):
        SA1B(tmp_path, split="val")


@pytest.mark.parametrize("names", [["sa_000001.tar"], ["sa_11", "sa_12.jpg", "sa_13.json"]])
def test_a_subset_of_tars_or_names(sa1b: Path, tmp_path: Path, names: list[str]) -> None:
    assert keys(SA1B(sa1b, subset=names)) == ["sa_11", "sa_12", "sa_13"]
    listed = tmp_path / "subset.txt"
    listed.write_text("# one percent\n" + "\n".join(names) + "\n\n")
    assert keys(SA1B(sa1b, subset=listed)) == ["sa_11", "sa_12", "sa_13"]


def test_the_largest_objects_are_kept(sa1b: Path) -> None:
    sample = SA1B(sa1b, largest=1)[0]
    assert sample.boxes.tolist() == [[9, 7, 17, 15]]


def test_missing_files_are_named(sa1b: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"names of the subset are not there: sa_000002\.tar"):
        SA1B(sa1b, subset=["sa_000002.tar", "sa_1"])
    with pytest.raises(DataError, match="empty"):
        SA1B(sa1b, subset=[" # nothing"])
    with pytest.raises(DataError, match="no list"):
        SA1B(sa1b, subset=tmp_path / "none.txt")
    with pytest.raises(DataError, match="no folder"):
        SA1B(tmp_path / "elsewhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no sa_\*\.jpg and no tar"):
        SA1B(tmp_path / "empty")
    (sa1b / "sa_000000" / "sa_2.jpg").unlink()
    with pytest.raises(DataError, match="name images that are missing: sa_2"):
        SA1B(sa1b)
    (sa1b / "sa_000000" / "sa_2.json").unlink()
    (sa1b / "sa_000001" / "sa_12.json").unlink()
    with pytest.raises(DataError, match="no annotation: sa_12"):
        SA1B(sa1b)


def test_damaged_annotations_are_named(sa1b: Path) -> None:
    path = sa1b / "sa_000000" / "sa_1.json"
    content = json.loads(path.read_text())
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match=r"sa_1\.json is not JSON, or is cut short"):
        SA1B(sa1b)[0]
    content["annotations"][1]["segmentation"]["size"] = [40, 30]
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError,
        match=r"sa_1\.json: .*\(id 1\) has a segmentation .* it has 40 x 30",
    ):
        SA1B(sa1b)[0]
    content["image"]["width"] = 41
    path.write_text(json.dumps(content))
    with pytest.raises(
        DataError,
        match=r"has 30 x 40 pixels .*, but its annotation says 30 x 41",
    ):
        SA1B(sa1b)[0]


def test_damaged_images_are_named(sa1b: Path) -> None:
    path = sa1b / "sa_000000" / "sa_1.jpg"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"sa_1\.jpg"):
        SA1B(sa1b)[0]


def test_a_folder_of_images(sa1b: Path) -> None:
    data = ImageFolder(sa1b)
    assert keys(data)[:2] == ["sa_000000/sa_1.jpg", "sa_000000/sa_10.jpg"]
    sample = data[0]
    assert (len(sample), sample.image.dtype) == (0, np.uint8)
    assert keys(ImageFolder(sa1b, ["sa_000000/sa_1.jpg"])) == ["sa_000000/sa_1.jpg"]
    with pytest.raises(DataError, match="lacks 1 images: elsewhere"):
        ImageFolder(sa1b, ["elsewhere.jpg"])


# Tars --------------------------------------------------------------------------------------


@pytest.fixture
def tars(sa1b: Path, tmp_path: Path) -> Path:
    """The same data as two tars, as they are downloaded."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for part in sorted(sa1b.iterdir()):
        with tarfile.open(folder / f"{part.name}.tar", "w") as archive:
            for path in sorted(part.iterdir()):
                archive.add(path, f"./{path.name}")
    return folder


def test_tars_are_read_where_they_are(sa1b: Path, tars: Path) -> None:
    unpacked, data = SA1B(sa1b), SA1B(tars)
    assert keys(data) == keys(unpacked)
    for one, other in zip(unpacked, data, strict=True):  # type: ignore[arg-type,call-overload]
        assert np.array_equal(one.image, other.image) and np.array_equal(one.boxes, other.boxes)
    assert data.files(0) == [tars / "sa_000000.tar"]
    assert keys(SA1B(tars, subset=["sa_000001.tar"])) == ["sa_11", "sa_12", "sa_13"]
    assert keys(SA1B(tars, subset=["sa_2", "sa_000001"])) == ["sa_2", "sa_11", "sa_12", "sa_13"]
    with pytest.raises(DataError, match=r"not there: sa_000002\.tar"):
        SA1B(tars, subset=["sa_000002.tar"])


def test_damaged_tars_are_named(tars: Path) -> None:
    data, path = SA1B(tars), tars / "sa_000001.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"sa_000001\.tar is cut short in .*sa_1[1-3]"):
        data[5]
    path.write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"sa_000001\.tar cannot be read as a tar"):
        SA1B(tars)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_read_each_sample_of_tars_once_an_epoch(tars: Path, world: int) -> None:
    def collate(samples: Any, rng: np.random.Generator) -> list[str]:
        return [sample.key for sample in samples]

    batches = Batches(SA1B(tars), collate, size=1)
    steps = 6 // (batches.size * world)
    for epoch in range(3):
        by_rank = []
        for rank in range(world):
            ours = stream(batches, seed=0, start=epoch * steps, rank=rank, world=world, workers=0)
            by_rank.append([key for batch in itertools.islice(ours, steps) for key in batch])
        read = [key for keys_ in by_rank for key in keys_]
        assert sorted(read) == sorted(keys(batches.source))

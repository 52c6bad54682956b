"""Videos with masks of objects: the layouts of DAVIS and SA-V, and what is wrong with folders."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from efficientsam3.data.object_videos import read_object_videos
from efficientsam3.errors import AnnotationError

SIZE = (20, 30)
Folders = tuple[Path, Path]


def square(t: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[4:12, 2 + t : 10 + t] = True
    return mask


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def davis(tmp_path: Path) -> Folders:
    """Two videos: "bear" of five frames with object 3, "camel" of two with nothing."""
    for name, frames, number in (("bear", 5, 3), ("camel", 2, 0)):
        for t in range(frames):
            write(tmp_path / "JPEGImages" / name / f"{t:05d}.jpg", np.zeros((*SIZE, 3), np.uint8))
            numbers = np.uint8(number) * square(t)
            numbers[0, 0] = 255  # A pixel that is not scored.
            write(tmp_path / "Annotations" / name / f"{t:05d}.png", numbers)
    return tmp_path / "Annotations", tmp_path / "JPEGImages"


def test_maps_of_objects(davis: Folders) -> None:
    bear, camel = read_object_videos(*davis)
    assert (bear.name, camel.name) == ("bear", "camel")
    assert bear.frames == tuple(f"{t:05d}" for t in range(5))
    assert [path.name for path in bear.frame_files] == [f"{t:05d}.jpg" for t in range(5)]
    masks = bear.masks("00002")
    assert list(masks) == ["3"] and np.array_equal(masks["3"], square(2))
    assert camel.masks("00000") == {}
    assert read_object_videos(davis[0])[0].frame_files == ()


def test_a_folder_for_each_object(tmp_path: Path) -> None:
    for name, frames in (("000", (0, 4)), ("001", (4,))):
        for t in frames:
            mask = square(t) if name == "000" else np.zeros(SIZE, bool)
            write(tmp_path / "sav_1" / name / f"{t:05d}.png", np.uint8(255) * mask)
    (video,) = read_object_videos(tmp_path)
    assert video.frames == ("00000", "00004")
    assert list(video.masks("00000")) == ["000"]
    masks = video.masks("00004")
    assert np.array_equal(masks["000"], square(4))
    assert not masks["001"].any()  # Annotated as not visible.


def test_a_subset_by_names_or_by_a_file(davis: Folders, tmp_path: Path) -> None:
    listed = tmp_path / "val.txt"
    listed.write_text("camel\n\n")
    for subset in (listed, ["camel"]):
        assert [v.name for v in read_object_videos(*davis, subset)] == ["camel"]
    with pytest.raises(AnnotationError, match="has no video dog"):
        read_object_videos(davis[0], videos=["dog"])
    with pytest.raises(AnnotationError, match="no list of videos"):
        read_object_videos(davis[0], videos=tmp_path / "none.txt")


def test_wrong_folders_are_named(davis: Folders, tmp_path: Path) -> None:
    annotations, frames = davis
    with pytest.raises(AnnotationError, match="no folder of annotations at"):
        read_object_videos(tmp_path / "none")
    with pytest.raises(AnnotationError, match="has no folder of a video"):
        read_object_videos(annotations / "bear")
    with pytest.raises(AnnotationError, match="there are no frames of bear"):
        read_object_videos(annotations, tmp_path)
    (frames / "bear" / "00004.jpg").unlink()
    with pytest.raises(AnnotationError, match="has no image of frame 00004"):
        read_object_videos(annotations, frames)
    shutil.rmtree(annotations / "bear")
    (annotations / "bear").mkdir()
    with pytest.raises(AnnotationError, match="has no image: a video has a PNG for each frame"):
        read_object_videos(annotations)
    shutil.rmtree(annotations / "bear")
    write(annotations / "camel" / "00000.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(AnnotationError, match="is RGB, in colors"):
        read_object_videos(annotations)[0].masks("00000")

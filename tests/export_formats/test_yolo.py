"""YOLO datasets of ``YoloWriter``, read by Ultralytics and Supervision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from .instances import (
    EIGHT,
    FILE_NAMES,
    QUICK,
    SLOW,
    Mask,
    Scene,
    count_parts,
    farthest_wrong,
    scenes,
)

pytest.importorskip("supervision")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCES = st.sampled_from([0.0, 0.5, 1.0, 2.5])
POLYGON_BOX = 0.6
"""Pixels by which the box of a polygon's points is smaller than that of the mask."""


def write(scene: Scene, folder: Path, stem: str, task: str, tolerance: float = 0) -> Path:
    """Write one image; returns it."""
    from supervision_adapters import YoloWriter, to_detections

    detections = to_detections(scene.instances(), keep_empty=True)
    with YoloWriter(folder, scene.names, task=task, tolerance=tolerance) as out:  # type: ignore[arg-type]
        out.add(np.zeros((*scene.size, 3), np.uint8), detections, name=stem)
    assert out.left_out == len(scene.masks) - len(scene.seen)
    return folder / "images" / "train" / f"{stem}.png"


def check_drawn(mask: Mask, drawn: Mask, tolerance: float) -> None:
    """No pixel is lost at 0; parts are joined by lines of one pixel, and nothing else is added."""
    if count_parts(mask) == 1:
        assert farthest_wrong(mask, drawn) <= (tolerance and tolerance + 1)
        return
    if tolerance == 0:
        assert not (mask & ~drawn).any()
        added = drawn & ~mask
        assert not ndimage.binary_opening(added, np.ones((3, 3))).any(), "wider than a line"
    assert ndimage.label(drawn, EIGHT)[1] == 1


# Ultralytics -----------------------------------------------------------------------------------


def check_ultralytics(scene: Scene, stem: str, tolerance: float) -> None:
    data_utils = pytest.importorskip("ultralytics.data.utils")
    utils = pytest.importorskip("ultralytics.utils")
    scene = scene.without_twins()
    height, width = scene.size
    for task in ("segment", "detect"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "set \U0001f98a"
            image = write(scene, folder, stem, task, tolerance)
            data = utils.YAML.load(folder / "data.yaml")
            assert data["names"] == dict(enumerate(scene.names))
            assert data["path"] == str(folder.resolve())
            (labels,) = data_utils.img2label_paths([str(image)])
            assert Path(labels).exists()
            found = data_utils.verify_image_label(
                (str(image), labels, "", False, len(scene.names), 0, 0, False)
            )
        rows, segments, corrupt = found[1], found[3], found[8]
        assert corrupt == 0, found[9]
        if tolerance and len(rows) < len(scene.seen):
            continue  # two objects of one class became the same polygon
        assert [scene.names[int(row[0])] for row in rows] == [scene.labels[i] for i in scene.seen]
        for place, i in enumerate(scene.seen):
            _, x, y, w, h = rows[place].astype(float) * [1, width, height, width, height]
            box = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            near = np.abs(box - scene.boxes[place]).max()
            if task == "detect":
                assert near < 0.01
                continue
            assert near < POLYGON_BOX + tolerance and w > 0 and h > 0
            polygon = (segments[place] * [width, height]).reshape(1, -1)
            drawn = data_utils.polygon2mask(scene.size, polygon).astype(bool)
            check_drawn(scene.masks[i], drawn, tolerance)


@QUICK
@given(scenes(least=10), FILE_NAMES, TOLERANCES)
def test_ultralytics(scene: Scene, stem: str, tolerance: float) -> None:
    check_ultralytics(scene, stem, tolerance)


@pytest.mark.long
@SLOW
@given(scenes(least=10), FILE_NAMES, TOLERANCES)
def test_ultralytics_more(scene: Scene, stem: str, tolerance: float) -> None:
    check_ultralytics(scene, stem, tolerance)


# Supervision -----------------------------------------------------------------------------------


def check_supervision(scene: Scene, stem: str, tolerance: float) -> None:
    import supervision as sv

    for task in ("segment", "detect"):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "set \U0001f98a"
            image = write(scene, folder, stem, task, tolerance)
            data = sv.DetectionDataset.from_yolo(
                str(folder / "images/train"),
                str(folder / "labels/train"),
                str(folder / "data.yaml"),
            )
        assert data.classes == scene.names
        assert [Path(path).name for path in data.image_paths] == [image.name]
        (found,) = data.annotations.values()
        assert len(found) == len(scene.seen)
        if not len(found):
            continue
        assert [data.classes[i] for i in found.class_id] == [scene.labels[i] for i in scene.seen]
        limit = 0.01 if task == "detect" else POLYGON_BOX + tolerance
        assert np.abs(found.xyxy - scene.boxes).max() < limit
        if task == "segment":
            for i, drawn in zip(scene.seen, found.mask, strict=True):
                check_drawn(scene.masks[i], np.asarray(drawn, bool), tolerance)


@QUICK
@given(scenes(), FILE_NAMES, TOLERANCES)
def test_supervision(scene: Scene, stem: str, tolerance: float) -> None:
    check_supervision(scene, stem, tolerance)


@pytest.mark.long
@SLOW
@given(scenes(), FILE_NAMES, TOLERANCES)
def test_supervision_more(scene: Scene, stem: str, tolerance: float) -> None:
    check_supervision(scene, stem, tolerance)

"""Our detections through Supervision's own exports: the same boxes, and nothing raises."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from .instances import QUICK, SLOW, Scene, scenes

sv = pytest.importorskip("supervision")


def check_exports(scene: Scene) -> None:
    from supervision_adapters import to_detections

    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of masks that its polygons cannot hold
        folder = Path(name)
        (folder / "images").mkdir()
        image = folder / "images" / "a.png"
        Image.new("RGB", scene.size[::-1]).save(image)
        for mask_format in ("compact", "dense", None):
            detections = to_detections(scene.instances(), mask_format=mask_format)
            data = sv.DetectionDataset(
                classes=scene.names, images=[str(image)], annotations={str(image): detections}
            )
            work = folder / str(mask_format)
            data.as_coco(annotations_path=str(work / "coco.json"))
            data.as_yolo(
                annotations_directory_path=str(work / "yolo"),
                data_yaml_path=str(work / "data.yaml"),
            )
            data.as_pascal_voc(annotations_directory_path=str(work / "voc"))
            back = sv.DetectionDataset.from_coco(
                str(folder / "images"), str(work / "coco.json"), force_masks=mask_format is not None
            )
            check_boxes(scene, back)
            if mask_format is None:  # with masks these two write polygons, a row or an object each
                back = sv.DetectionDataset.from_yolo(
                    str(folder / "images"), str(work / "yolo"), str(work / "data.yaml")
                )
                check_boxes(scene, back)
                back = sv.DetectionDataset.from_pascal_voc(
                    str(folder / "images"), str(work / "voc")
                )
                check_boxes(scene, back)


def check_boxes(scene: Scene, data: sv.DetectionDataset) -> None:
    (found,) = data.annotations.values()
    assert len(found) == len(scene.seen)
    if len(found):
        assert np.abs(found.xyxy - scene.boxes).max() < 0.01
        assert [data.classes[i] for i in found.class_id] == [scene.labels[i] for i in scene.seen]


@QUICK
@given(scenes(printable=True))
def test_exports(scene: Scene) -> None:
    check_exports(scene)


@pytest.mark.long
@SLOW
@given(scenes(printable=True))
def test_exports_more(scene: Scene) -> None:
    check_exports(scene)

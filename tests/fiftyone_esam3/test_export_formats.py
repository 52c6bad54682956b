"""Labels and files through FiftyOne's importers and exporters: the same boxes, pixels and names."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fiftyone as fo
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from PIL import Image

from fiftyone_esam3.labels import to_labels

from ..export_formats.instances import (
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

IMAGE = "caf\u00e9 \U0001f98a.png"


@contextmanager
def folder(scene: Scene) -> Iterator[Path]:
    """A folder with the image of a scene in ``data``; datasets that are made meanwhile go."""
    before = set(fo.list_datasets())
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "data").mkdir()
        Image.new("RGB", scene.size[::-1]).save(Path(name) / "data" / IMAGE)
        yield Path(name)
    for made in set(fo.list_datasets()) - before:
        fo.delete_dataset(made)


def read(detection: fo.Detection, size: tuple[int, int]) -> tuple[list[float], Mask]:
    """The box (x0, y0, x1, y1) in pixels, and the mask at the size of the image."""
    height, width = size
    x, y, w, h = detection.bounding_box
    box = [x * width, y * height, (x + w) * width, (y + h) * height]
    out = np.zeros(size, bool)
    if detection.mask is not None:
        left, top = round(box[0]), round(box[1])
        rows, columns = detection.mask.shape
        out[top : top + rows, left : left + columns] = detection.mask
    return box, out


def check(
    scene: Scene,
    detections: Any,
    tolerance: float = 0,
    box: float = 0.01,
    boxes_alone: bool = False,
) -> None:
    found = [] if detections is None else detections.detections
    assert [d.label for d in found] == [scene.labels[i] for i in scene.seen]
    for place, i in enumerate(scene.seen):
        there, drawn = read(found[place], scene.size)
        assert np.abs(np.array(there) - scene.boxes[place]).max() < box
        if not boxes_alone and (count_parts(scene.masks[i]) == 1 or not tolerance):
            assert farthest_wrong(scene.masks[i], drawn) <= tolerance


def check_labels(scene: Scene) -> None:
    """Labels are stored as they are, and exported with the same boxes.

    FiftyOne writes polygons of its own, simplified by 2 pixels, so masks are not compared.
    """
    from pycocotools.coco import COCO

    with folder(scene) as place:
        dataset = fo.Dataset()
        sample = fo.Sample(str(place / "data" / IMAGE), found=to_labels(scene.instances()))
        dataset.add_sample(sample)
        dataset.reload()
        check(scene, dataset.first().found)
        dataset.export(
            labels_path=str(place / "out.json"),
            dataset_type=fo.types.COCODetectionDataset,
            label_field="found",
            classes=scene.names,
        )
        coco = COCO(str(place / "out.json"))
        rows = coco.loadAnns(coco.getAnnIds())
    assert [coco.cats[row["category_id"]]["name"] for row in rows] == [
        scene.labels[i] for i in scene.seen
    ]
    for (x0, y0, x1, y1), row in zip(scene.boxes, rows, strict=True):
        assert row["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.01)


def check_coco(scene: Scene) -> None:
    from supervision_adapters import CocoWriter, to_detections

    for masks in ("rle", "polygon"):
        with folder(scene) as place:
            out = CocoWriter(scene.names, masks=masks)  # type: ignore[arg-type]
            out.add(IMAGE, to_detections(scene.instances()))
            dataset = fo.Dataset.from_dir(
                dataset_type=fo.types.COCODetectionDataset,
                data_path=str(place / "data"),
                labels_path=str(out.write(place / "coco.json")),
                label_types="segmentations",
                include_id=False,
            )
            (sample,) = dataset
            assert Path(sample.filepath).name == IMAGE
            assert dataset.default_classes == scene.names
            field = "segmentations" if "segmentations" in sample.field_names else "ground_truth"
            check(scene, sample[field])


def check_yolo(scene: Scene) -> None:
    from supervision_adapters import YoloWriter, to_detections

    # FiftyOne cannot draw a polygon less than half a pixel wide: it raises.
    thin = any(min(x1 - x0, y1 - y0) < 2 for x0, y0, x1, y1 in scene.boxes)
    kinds = {"segment": "polylines" if thin else "instances", "detect": "detections"}
    for task, kind in kinds.items():
        with folder(scene) as place:
            with YoloWriter(place / "yolo", scene.names, task=task) as out:  # type: ignore[arg-type]
                out.add(place / "data" / IMAGE, to_detections(scene.instances()))
            dataset = fo.Dataset.from_dir(
                dataset_type=fo.types.YOLOv5Dataset,
                dataset_dir=str(place / "yolo"),
                yaml_path="data.yaml",
                split="train",
                label_type=kind,
                label_field="found",
            )
            (sample,) = dataset
            assert Path(sample.filepath).name == IMAGE
            assert dataset.default_classes == scene.names
            if kind == "polylines":
                labels = [] if sample.found is None else [p.label for p in sample.found.polylines]
                assert labels == [scene.labels[i] for i in scene.seen]
            elif task == "segment":  # it draws the polygon into its box, a pixel smaller
                check(scene, sample.found, tolerance=2, box=1.01)
            else:
                check(scene, sample.found, boxes_alone=True)


# A database takes a second for each example, so none is made simpler.
FEW = settings(QUICK, max_examples=2, phases=[Phase.generate])
MORE = settings(SLOW, max_examples=20, phases=[Phase.generate])
CHECKS = pytest.mark.parametrize("check_format", [check_labels, check_coco, check_yolo])


@pytest.mark.slow
@CHECKS
@FEW
@given(scene=scenes(least=2))
def test_format(check_format: Any, scene: Scene) -> None:
    check_format(scene)


@pytest.mark.long
@CHECKS
@MORE
@given(scene=scenes(least=2))
def test_format_more(check_format: Any, scene: Scene) -> None:
    check_format(scene)

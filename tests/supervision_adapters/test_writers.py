"""COCO and YOLO files, read back by those who will read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from efficientsam3.types import Instances
from supervision_adapters import AdapterError, CocoWriter, YoloWriter, to_detections, yolo_rows

from .conftest import make, shapes

CLASSES = ["cat", "dog", "bird"]


def written(tmp_path: Path, *images: Instances) -> Path:
    out = CocoWriter(CLASSES)
    for i, found in enumerate(images):
        Image.new("RGB", found.size[::-1]).save(tmp_path / f"{i}.png")
        assert out.add(f"{i}.png", to_detections(found)) == len(found)
    return out.write(tmp_path / "coco.json")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_coco_evaluates_every_mask(four: Instances, tmp_path: Path, capsys: Any) -> None:
    """Masks with holes and parts are objects, not crowds: a perfect answer scores 1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    path = written(tmp_path, four, make(shapes()[::-1].copy()))
    truth = COCO(str(path))
    assert len(truth.anns) == 8 and {a["iscrowd"] for a in truth.anns.values()} == {0}
    for row, annotation in enumerate(truth.loadAnns(truth.getAnnIds([1]))):
        assert np.array_equal(truth.annToMask(annotation).astype(bool), shapes()[row])
        assert annotation["area"] == shapes()[row].sum()
    assert truth.anns[1]["bbox"] == [50, 36, 14, 12]
    keys = ("image_id", "category_id", "segmentation", "score")
    answer = truth.loadRes([{k: a[k] for k in keys} for a in truth.anns.values()])
    evaluator = COCOeval(truth, answer, "segm")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[0] == pytest.approx(1)


def test_supervision_reads_our_coco(four: Instances, nothing: Instances, tmp_path: Path) -> None:
    path = written(tmp_path, four, nothing)
    data = sv.DetectionDataset.from_coco(str(tmp_path), str(path), force_masks=True)
    assert data.classes == CLASSES and len(data) == 2
    back = data.annotations[str(tmp_path / "0.png")]
    assert np.array_equal(np.asarray(back.mask), shapes())
    assert back.class_id.tolist() == [1, 0, 1, 0]


def test_coco_keeps_scores_and_identities() -> None:
    found = make(shapes(), track_ids=np.array([3, -1, 0, 7]))
    out = CocoWriter(CLASSES)
    out.add(Path("a.png"), to_detections(found))
    rows = out.content()["annotations"]
    assert [row.get("track_id") for row in rows] == [3, None, 0, 7]
    assert rows[0]["score"] == 0.9
    assert out.content()["categories"][2] == {"id": 3, "name": "bird"}
    json.dumps(out.content())


def test_coco_of_boxes_alone_and_of_empty_masks(four: Instances) -> None:
    out = CocoWriter(CLASSES)
    assert out.add("a.png", to_detections(four, mask_format=None), size=(48, 64)) == 4
    assert "segmentation" not in out.content()["annotations"][0]
    masks = shapes()
    masks[1] = False
    assert out.add("b.png", to_detections(make(masks))) == 3
    with pytest.raises(AdapterError, match=r"a\.png was added before"):
        out.add("a.png", to_detections(four))
    with pytest.raises(AdapterError, match="class_names has no 'dog'"):
        CocoWriter(["cat"]).add("a.png", to_detections(four))
    with pytest.raises(AdapterError, match="different names"):
        CocoWriter(["cat", "cat"])


# YOLO ----------------------------------------------------------------------------------------


def read_rows(rows: list[str], how: Any) -> list[np.ndarray]:
    """Masks of rows, drawn as readers draw them."""
    cv2 = pytest.importorskip("cv2")
    masks = []
    for row in rows:
        points = np.array(row.split()[1:], float).reshape(-1, 2) * [64, 48]
        mask = np.zeros((48, 64), np.uint8)
        cv2.fillPoly(mask, [how(points).astype(np.int32)], 1)
        masks.append(mask.astype(bool))
    return masks


@pytest.mark.parametrize("how", [np.round, np.trunc], ids=["rounded", "cut off"])
def test_yolo_has_a_row_for_each_object(four: Instances, how: Any) -> None:
    rows = yolo_rows(to_detections(four), CLASSES)
    assert [row.split()[0] for row in rows] == ["1", "0", "1", "0"]
    assert all(len(row.split()) >= 7 for row in rows), "a row needs three points"
    masks = read_rows(rows, how)
    for row in (0, 1, 3):  # block, ring, pixel
        assert np.array_equal(masks[row], shapes()[row])
    assert not (shapes()[2] & ~masks[2]).any()
    assert (masks[2] & ~shapes()[2]).sum() < 12, "bridges are wider than a line"
    assert all(0 <= float(v) <= 1 for row in rows for v in row.split()[1:])


def test_yolo_files_are_what_readers_expect(four: Instances, tmp_path: Path, photo: Any) -> None:
    yaml = pytest.importorskip("yaml")
    image = tmp_path / "a.JPG"
    Image.fromarray(photo).save(image)
    folder = tmp_path / "new" / "set"
    with YoloWriter(folder, [*CLASSES, "a: b"]) as out:
        out.add(image, to_detections(four))
        out.add(str(image), to_detections(make(shapes()[:0])))
        out.add(photo, to_detections(four, mask_format="dense"), split="val")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        "data.yaml",
        *("images/train/a.jpg", "images/train/a_1.jpg", "images/val/000002.png"),
        *("labels/train/a.txt", "labels/train/a_1.txt", "labels/val/000002.txt"),
    ]
    assert (folder / "labels/train/a_1.txt").read_text() == ""
    data = yaml.safe_load((folder / "data.yaml").read_text())
    assert data["names"] == dict(enumerate([*CLASSES, "a: b"]))
    assert (data["train"], data["val"]) == ("images/train", "images/val")
    back = sv.DetectionDataset.from_yolo(
        str(folder / "images/train"), str(folder / "labels/train"), str(folder / "data.yaml")
    )
    masks = back.annotations[str(folder / "images/train/a.jpg")].mask
    assert len(masks) == 4 and np.array_equal(masks[1], shapes()[1]), "the hole is lost"


def test_yolo_refuses_what_would_lose_something(four: Instances, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"segment_boxes\(image, detections\)"):
        yolo_rows(to_detections(four, mask_format=None), CLASSES)
    with pytest.raises(AdapterError, match="class_names has no 'dog'"):
        yolo_rows(to_detections(four), ["cat", "bird"])
    (tmp_path / "old.txt").write_text("")
    with pytest.raises(AdapterError, match="not empty"):
        YoloWriter(tmp_path, CLASSES)
    out = YoloWriter(tmp_path / "new", CLASSES)
    with pytest.raises(AdapterError, match="no image was added"):
        out.close()
    with pytest.raises(AdapterError, match="split is 'train'"):
        out.add(np.zeros((48, 64, 3), np.uint8), to_detections(four), split="valid")

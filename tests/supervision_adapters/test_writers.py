"""COCO and YOLO files, read back by those who will read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision as sv
from PIL import Image

from efficientsam3.errors import ArgumentError
from efficientsam3.io import rle
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
    assert out.add("b.png", to_detections(make(masks), keep_empty=True)) == 3
    assert out.left_out == 1
    with pytest.raises(AdapterError, match=r"a\.png was added before"):
        out.add("a.png", to_detections(four))
    with pytest.raises(AdapterError, match="class_names has no 'dog'"):
        CocoWriter(["cat"]).add("a.png", to_detections(four))
    with pytest.raises(AdapterError, match="all different"):
        CocoWriter(["cat", "cat"])


def test_coco_polygons_hold_every_pixel_and_the_same_boxes(four: Instances) -> None:
    """For tools that read nothing else: a polygon a part, with bridges to holes."""
    by_rle, by_polygon = CocoWriter(CLASSES), CocoWriter(CLASSES, masks="polygon")
    for out in (by_rle, by_polygon):
        out.add("a.png", to_detections(four))
    rows = by_polygon.content()["annotations"]
    assert [len(row["segmentation"]) for row in rows] == [1, 1, 3, 1]
    for row, same, mask in zip(rows, by_rle.content()["annotations"], shapes(), strict=True):
        assert np.array_equal(
            rle.decode(rle.from_segmentation(row["segmentation"], (48, 64))), mask
        )
        assert (row["bbox"], row["area"]) == (same["bbox"], same["area"])
    for wrong in (-1, float("nan"), "2"):
        with pytest.raises(ArgumentError, match="tolerance is a number of pixels"):
            CocoWriter(CLASSES, masks="polygon", tolerance=wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="masks is 'rle' or 'polygon'"):
        CocoWriter(CLASSES, masks="mask")  # type: ignore[arg-type]


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


def test_yolo_boxes_are_those_of_coco(four: Instances, tmp_path: Path, photo: Any) -> None:
    """Without masks too: a dataset for detection."""
    rows = yolo_rows(to_detections(four), CLASSES, task="detect")
    coco = CocoWriter(CLASSES)
    coco.add("a.png", to_detections(four))
    for row, annotation in zip(rows, coco.content()["annotations"], strict=True):
        x, y, w, h = np.array(row.split()[1:], float) * [64, 48, 64, 48]
        assert [x - w / 2, y - h / 2, w, h] == pytest.approx(annotation["bbox"], abs=1e-3)
    with YoloWriter(tmp_path / "boxes", CLASSES, task="detect") as out:
        labels = out.add(photo, to_detections(four, mask_format=None))
        out.add(photo, sv.Detections.empty())
    assert labels.read_text().splitlines() == rows
    with pytest.raises(AdapterError, match="task is 'segment' or 'detect'"):
        yolo_rows(to_detections(four), CLASSES, task="boxes")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 20_000)])
def test_yolo_boxes_of_polygons_have_area_and_are_near(size: tuple[int, int]) -> None:
    """Training drops a box without area, and with it one pixel or a thin line."""
    height, width = size
    mask = np.zeros((1, height + 5, width + 7), bool)
    mask[0, 2 : 2 + height, 3 : 3 + width] = True
    (row,) = yolo_rows(to_detections(make(mask, ["cat"])), CLASSES)
    points = np.array(row.split()[1:], float).reshape(-1, 2) * mask.shape[:0:-1]
    low, high = points.min(0), points.max(0)
    assert (high - low > 0.3).all()
    assert np.abs(np.r_[low, high] - [3, 2, 3 + width, 2 + height]).max() < 0.6


NAMES = [
    "\U0001f98a fox",
    "na\u00efve",
    "\u732b",
    "a: b",
    "- x",
    "null",
    "0",
    '"quoted"',
    "#c",
    " ",
]
NAMES += ["tab\t", "line\nbreak", "\x7f\x85\x01", "\u2028", "\ufeff", "\\", "100 %", "{a}", "'"]


def test_any_name_comes_back_from_data_yaml(four: Instances, tmp_path: Path, photo: Any) -> None:
    """By every reader, also those that open the file in the system's encoding."""
    yaml = pytest.importorskip("yaml")
    folder = tmp_path / "set \U0001f98a: #1"
    with YoloWriter(folder, [*CLASSES, *NAMES]) as out:
        out.add(photo, to_detections(four), name="\U0001f98a")
        assert out.add(photo, to_detections(four), name="A").name == "A.txt"
        assert out.add(photo, to_detections(four), name="a").name == "a_1.txt"
    text = (folder / "data.yaml").read_text(encoding="ascii")
    for loader in {yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)}:
        data = yaml.load(text, Loader=loader)
        assert list(data["names"].values()) == [*CLASSES, *NAMES]
        assert Path(data["path"]) == folder.resolve()
    back = sv.DetectionDataset.from_yolo(
        str(folder / "images/train"), str(folder / "labels/train"), str(folder / "data.yaml")
    )
    assert back.classes == [*CLASSES, *NAMES]


def test_yolo_refuses_what_would_lose_something(four: Instances, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"segment_boxes\(image, detections\)"):
        yolo_rows(to_detections(four, mask_format=None), CLASSES)
    with pytest.raises(AdapterError, match="class_names has no 'dog'"):
        yolo_rows(to_detections(four), ["cat", "bird"])
    (tmp_path / "old.txt").write_text("")
    with pytest.raises(AdapterError, match="not empty"):
        YoloWriter(tmp_path, CLASSES)
    out = YoloWriter(tmp_path / "new", CLASSES)
    with pytest.raises(AdapterError, match="masks have 64 x 48 pixels and the image has 64 x 40"):
        out.add(np.zeros((40, 64, 3), np.uint8), to_detections(four))
    for name in ("a/b", "..", ""):
        with pytest.raises(AdapterError, match="name of a file"):
            out.add(np.zeros((48, 64, 3), np.uint8), to_detections(four), name=name)
    with pytest.raises(AdapterError, match="no text file holds"):
        YoloWriter(tmp_path / "new", ["a", "\udcff"])
    with pytest.raises(AdapterError, match="no image was added"):
        out.close()
    with pytest.raises(AdapterError, match="split is 'train'"):
        out.add(np.zeros((48, 64, 3), np.uint8), to_detections(four), split="valid")

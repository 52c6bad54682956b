"""COCO's and LVIS' categories become phrases; absent means known to be absent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.distill.data.coco import Coco, Lvis
from efficientsam3.distill.data.phrases import read_phrases
from efficientsam3.distill.errors import DataError

from .conftest import SIZE, packed, rectangle, write_image

HEIGHT, WIDTH = SIZE


def thing(number: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    record = {"id": number, "image_id": image, "category_id": category, "bbox": box}
    return {**record, "segmentation": [polygon], "area": w * h, "iscrowd": 0, **more}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def content() -> dict[str, Any]:
    crowd = {"segmentation": packed(rectangle(0, 0, 9, 9)), "iscrowd": 1}
    sizes = {"height": HEIGHT, "width": WIDTH}
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", **sizes},
            {"id": 8, "file_name": "b.jpg", **sizes},
        ],
        "annotations": [
            thing(1, 7, 1, [4, 6, 10, 8]),
            thing(2, 7, 2, [20, 2, 5, 5]),
            thing(3, 7, 2, [0, 0, 9, 9], **crowd),
            thing(4, 7, 1, [3, 3, 0, 5]),  # no area: a flaw that COCO has
        ],
        "categories": [{"id": i, "name": n} for i, n in ((1, "dog"), (2, "cat"), (3, "tv"))],
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.jpg", "b.jpg", "train2017/c.jpg")):
        write_image(tmp_path / "images" / name, seed)
    return tmp_path / "images"


def test_coco(tmp_path: Path, images: Path, content: dict[str, Any]) -> None:
    data = Coco(write(tmp_path / "instances.json", content), images)
    first, second = data[0], data[1]
    assert first.boxes.tolist() == [[4, 6, 14, 14], [20, 2, 25, 7], [0, 0, 9, 9]]
    assert first.crowd is not None
    assert first.crowd.tolist() == [False, False, True]
    assert [(q.phrase, q.objects, q.exhaustive, q.kind) for q in first.queries] == [
        ("dog", (0,), True, "name"),
        ("cat", (1,), False, "name"),
        ("tv", (), True, "negative"),
    ]
    assert first.mask(0)[6:14, 4:14].all()
    assert first.mask(2).sum() == 81
    assert sorted(q.phrase for q in second.queries) == ["cat", "dog", "tv"]
    assert len(second) == 0


def test_negatives_are_drawn_by_the_image(
    tmp_path: Path, images: Path, content: dict[str, Any]
) -> None:
    content["categories"] += [{"id": i, "name": f"thing {i}"} for i in range(10, 40)]
    path = write(tmp_path / "instances.json", content)
    first, again = Coco(path, images, negatives=4), Coco(path, images, negatives=4)
    drawn = [[q.phrase for q in first[i].queries if not q.objects] for i in range(2)]
    assert list(map(len, drawn)) == [4, 4]
    assert drawn[0] != drawn[1]
    assert drawn[0] == [q.phrase for q in again[0].queries if not q.objects]


def lvis(content: dict[str, Any]) -> dict[str, Any]:
    content["images"] = [
        {
            "id": 7,
            "coco_url": "http://images.cocodataset.org/train2017/c.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "neg_category_ids": [3],
            "not_exhaustive_category_ids": [2],
        }
    ]
    content["annotations"] = content["annotations"][:2]
    names = (("crab_(animal)", ["crab_(animal)"]), ("stop_sign", ["stop_sign", "halt_sign"]))
    for category, (name, synonyms) in zip(content["categories"], names, strict=False):
        category.update(name=name, synonyms=synonyms)
    content["categories"].append({"id": 4, "name": "unknown_here", "synonyms": []})
    return content


def test_lvis(tmp_path: Path, images: Path, content: dict[str, Any]) -> None:
    path = write(tmp_path / "lvis.json", lvis(content))
    data = Lvis(path, images)
    assert data.key(0) == "train2017/c.jpg"
    assert [(q.phrase, q.objects, q.exhaustive, q.kind) for q in data[0].queries] == [
        ("crab", (0,), True, "name"),
        ("stop sign", (1,), False, "name"),
        ("halt sign", (1,), False, "synonym"),
        ("tv", (), True, "negative"),  # "unknown here" may be there or not
    ]
    plain = Lvis(path, images, synonyms=False)[0].queries
    assert [q.phrase for q in plain] == ["crab", "stop sign", "tv"]
    assert data.phrases == ["crab", "stop sign", "halt sign", "tv", "unknown here"]
    assert read_phrases(path) == data.phrases


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("categories"), "no categories: it is not COCO"),
        (lambda c: c.update(images=[]), "split is empty"),
        (lambda c: c["annotations"][0].update(image_id=9), "annotation 1 names image 9"),
        (lambda c: c["annotations"][0].update(category_id=9), "annotation 1 names category 9"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2]), r"a box is \[x, y, width, height\]"),
        (lambda c: c["annotations"][0].pop("segmentation"), "annotation 1: a segmentation is"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), r"image 7 names .*gone\.jpg"),
    ],
)
def test_bad_files(
    tmp_path: Path, images: Path, content: dict[str, Any], edit: Any, message: str
) -> None:
    edit(content)
    with pytest.raises(DataError, match=message):
        Coco(write(tmp_path / "instances.json", content), images)[0]


def test_bad_lvis(tmp_path: Path, images: Path, content: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="not a file of LVIS"):
        Lvis(write(tmp_path / "coco.json", content), images)
    broken = lvis(content)
    broken["images"][0]["neg_category_ids"] = [99]
    with pytest.raises(DataError, match="absent category 99"):
        Lvis(write(tmp_path / "lvis.json", broken), images)[0]

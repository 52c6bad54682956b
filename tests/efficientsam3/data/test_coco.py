"""COCO's and LVIS's categories become phrases; only known absence makes a negative."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.data.annotated_images import AnnotatedImages
from efficientsam3.data.coco import CocoAnnotations
from efficientsam3.data.phrases import read_phrases
from efficientsam3.errors import DataError

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
            thing(4, 7, 1, [3, 3, 0, 5]),  # COCO has a few boxes without area.
        ],
        "categories": [{"id": i, "name": n} for i, n in ((1, "dog"), (2, "cat"), (3, "tv"))],
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.jpg", "b.jpg", "train2017/c.jpg")):
        write_image(tmp_path / "images" / name, seed)
    return tmp_path / "images"


def test_categories_of_coco(tmp_path: Path, images: Path, content: dict[str, Any]) -> None:
    data = AnnotatedImages(
        images, CocoAnnotations(write(tmp_path / "instances.json", content), negatives=8)
    )
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


def test_negatives_depend_on_the_image_alone(
    tmp_path: Path, images: Path, content: dict[str, Any]
) -> None:
    content["categories"] += [{"id": i, "name": f"thing {i}"} for i in range(10, 40)]
    path = write(tmp_path / "instances.json", content)
    first, again = (AnnotatedImages(images, CocoAnnotations(path, negatives=4)) for _ in range(2))
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


def test_categories_and_synonyms_of_lvis(
    tmp_path: Path, images: Path, content: dict[str, Any]
) -> None:
    path = write(tmp_path / "lvis.json", lvis(content))
    annotations = CocoAnnotations(path, synonyms=True)
    data = AnnotatedImages(images, annotations)
    assert data.key(0) == "train2017/c.jpg"
    assert [(q.phrase, q.objects, q.exhaustive, q.kind) for q in data[0].queries] == [
        ("crab", (0,), True, "name"),
        ("stop sign", (1,), False, "name"),
        ("halt sign", (1,), False, "synonym"),
        ("tv", (), True, "negative"),  # "unknown here" may be in the image.
    ]
    plain = AnnotatedImages(images, CocoAnnotations(path))[0].queries
    assert [q.phrase for q in plain] == ["crab", "stop sign", "tv"]
    assert annotations.phrases == ["crab", "stop sign", "halt sign", "tv", "unknown here"]
    assert read_phrases(path) == annotations.phrases


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("categories"), "has no list 'categories'"),
        (lambda c: c.update(images=[]), "split is empty"),
        (
            lambda c: c["annotations"][0].update(image_id=9),
            r"annotations\[0\] \(id 1\) has image_id 9",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=9),
            r"annotations\[0\] \(id 1\) has category_id 9",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2]),
            r"has bbox \[1, 2\]; it is \[x, y, width, height\]",
        ),
        (lambda c: c["annotations"][0].pop("segmentation"), "2 of 3 objects have a mask"),
        (
            lambda c: c["images"][0].update(file_name="gone.jpg"),
            r"images\[0\] \(id 7\) names .*gone\.jpg",
        ),
    ],
)
def test_wrong_files_are_named(
    tmp_path: Path, images: Path, content: dict[str, Any], edit: Any, message: str
) -> None:
    edit(content)
    with pytest.raises(DataError, match=message):
        AnnotatedImages(images, CocoAnnotations(write(tmp_path / "instances.json", content)))[0]


def test_unknown_absent_categories_of_lvis_are_named(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    broken = lvis(content)
    broken["images"][0]["neg_category_ids"] = [99]
    annotations = CocoAnnotations(write(tmp_path / "lvis.json", broken))
    with pytest.raises(DataError, match=r"images\[0\] \(id 7\) names category 99"):
        annotations[0]

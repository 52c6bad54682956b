"""Images of SA-Co files with all of their phrases, also those that name nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.data.annotated_images import AnnotatedImages
from efficientsam3.data.phrases import read_phrases
from efficientsam3.data.saco import SaCoAnnotations
from efficientsam3.errors import AnnotationError, DataError

from .conftest import SIZE, packed, rectangle, write_image

HEIGHT, WIDTH = SIZE


def pair(number: int, name: str, phrase: str, **changes: Any) -> dict[str, Any]:
    record = {"id": number, "file_name": name, "text_input": phrase, "width": WIDTH}
    flags = {"height": HEIGHT, "is_instance_exhaustive": 1, "is_pixel_exhaustive": 1}
    return {**record, **flags, **changes}


def found(number: int, of: int, x: int, y: int, w: int, h: int, **more: Any) -> dict[str, Any]:
    mask = packed(rectangle(x, y, x + w, y + h))
    box = [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]
    return {"id": number, "image_id": of, "bbox": box, "segmentation": mask, "iscrowd": 0, **more}


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    write_image(tmp_path / "images" / "a.jpg", 1)
    write_image(tmp_path / "images" / "sub" / "b.jpg", 2)
    content = {
        "images": [
            pair(1, "a.jpg", "dog"),
            pair(2, "a.jpg", "red apple"),
            pair(3, "sub/b.jpg", "dog", is_instance_exhaustive=0),
        ],
        "annotations": [
            found(1, 1, 4, 6, 10, 8),
            found(2, 1, 20, 2, 5, 5),
            found(3, 3, 1, 1, 30, 20),
            found(4, 3, 5, 5, 3, 3, iscrowd=1),
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    path = tmp_path / "gold.json"
    path.write_text(json.dumps(content))
    return path


def change(path: Path, edit: Any) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def samples(*paths: Path) -> AnnotatedImages:
    return AnnotatedImages(paths[0].parent / "images", *map(SaCoAnnotations, paths))


def test_all_pairs_of_an_image_are_one_sample(gold: Path) -> None:
    data = samples(gold)
    assert [data.key(i) for i in range(len(data))] == ["a.jpg", "sub/b.jpg"]
    first, second = data[0], data[1]
    assert [(q.phrase, q.objects, q.exhaustive) for q in first.queries] == [
        ("dog", (0, 1), True),
        ("red apple", (), True),
    ]
    assert first.boxes.round().tolist() == [[4, 6, 14, 14], [20, 2, 25, 7]]
    assert first.mask(0).sum() == 80
    (query,) = second.queries
    assert (query.objects, query.exhaustive) == ((0,), False)  # A crowd is no object.
    assert second.crowd is not None
    assert second.crowd.tolist() == [False, True]
    assert SaCoAnnotations(gold).phrases == ["dog", "red apple"]
    assert list(read_phrases(gold)) == ["dog", "red apple"]


def test_a_crowd_alone_is_neither_present_nor_absent(gold: Path) -> None:
    change(gold, lambda c: c["annotations"].pop(2))
    assert samples(gold)[1].queries == ()


def test_several_files_of_the_same_images(gold: Path, tmp_path: Path) -> None:
    other = tmp_path / "silver.json"
    cat = found(1, 1, 2, 2, 3, 3)
    other.write_text(json.dumps({"images": [pair(1, "a.jpg", "cat")], "annotations": [cat]}))
    sample = samples(gold, other)[0]
    assert [(q.phrase, q.objects) for q in sample.queries] == [
        ("dog", (0, 1)),
        ("red apple", ()),
        ("cat", (2,)),
    ]
    assert sample.boxes[2].round().tolist() == [2, 2, 5, 5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ('{"images": [', "is not JSON, or is cut short"),
        ("[]", "not an object of lists"),
        ('{"images": [], "annotations": []}', "the split is empty"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(AnnotationError, match=message):
        SaCoAnnotations(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["annotations"][0].update(image_id=9),
            r"annotations\[0\] \(id 1\) has image_id 9, which no record of images has",
        ),
        (
            lambda c: c["images"][0].pop("text_input"),
            r"gold\.json: images\[0\] \(id 1\) has no 'text_input'",
        ),
        (
            lambda c: c["images"][0].update(file_name="gone.jpg"),
            r"gold\.json: images\[0\] \(id 1\) names the image .*gone\.jpg, which is missing",
        ),
        (
            lambda c: c["annotations"][1]["segmentation"].update(size=[9, 9]),
            r"annotations\[1\] \(id 2\) has a segmentation that is wrong: run lengths cover",
        ),
        (
            lambda c: c["images"][1].update(width=WIDTH + 1),
            r"images\[1\] \(id 2\) says that a\.jpg has another size",
        ),
    ],
)
def test_wrong_records_are_named(gold: Path, edit: Any, message: str) -> None:
    change(gold, edit)
    with pytest.raises(DataError, match=message):
        samples(gold)[0]

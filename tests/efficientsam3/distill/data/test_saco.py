"""SA-Co files become images with phrases, the absent ones too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efficientsam3.distill.data.phrases import read_phrases
from efficientsam3.distill.data.saco import SaCo
from efficientsam3.distill.errors import DataError

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


def test_pairs(gold: Path) -> None:
    data = SaCo(gold, gold.parent / "images")
    assert [data.key(i) for i in range(len(data))] == ["a.jpg", "sub/b.jpg"]
    first, second = data[0], data[1]
    assert [(q.phrase, q.objects, q.exhaustive) for q in first.queries] == [
        ("dog", (0, 1), True),
        ("red apple", (), True),
    ]
    assert first.boxes.round().tolist() == [[4, 6, 14, 14], [20, 2, 25, 7]]
    assert first.mask(0).sum() == 80
    (query,) = second.queries
    assert (query.objects, query.exhaustive) == ((0,), False)  # a crowd is no object
    assert second.crowd is not None
    assert second.crowd.tolist() == [False, True]
    assert data.phrases == ["dog", "red apple"]
    assert list(read_phrases(gold)) == ["dog", "red apple"]


def test_several_files(gold: Path, tmp_path: Path) -> None:
    other = tmp_path / "silver.json"
    other.write_text(json.dumps({"images": [pair(1, "a.jpg", "cat")], "annotations": []}))
    data = SaCo([gold, other], gold.parent / "images")
    assert [q.phrase for q in data[0].queries] == ["dog", "red apple", "cat"]


def test_bad_files(gold: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    with pytest.raises(DataError, match="no file"):
        SaCo(tmp_path / "none.json", images)
    (tmp_path / "cut.json").write_text(gold.read_text()[:-30])
    with pytest.raises(DataError, match="not whole JSON"):
        SaCo(tmp_path / "cut.json", images)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataError, match="no list 'images'"):
        SaCo(tmp_path / "other.json", images)
    (tmp_path / "empty.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="split is empty"):
        SaCo(tmp_path / "empty.json", images)
    change(gold, lambda c: c["annotations"][0].update(image_id=9))
    with pytest.raises(DataError, match="annotation 1 names pair 9"):
        SaCo(gold, images)
    change(gold, lambda c: c["images"][0].pop("text_input"))
    with pytest.raises(DataError, match="lacks text_input"):
        SaCo(gold, images)


def test_a_record_that_names_a_missing_image(gold: Path) -> None:
    (gold.parent / "images" / "a.jpg").unlink()
    data = SaCo(gold, gold.parent / "images")
    with pytest.raises(DataError, match=r"gold\.json, pair 1 names the image .*a\.jpg"):
        data[0]


def test_run_lengths_of_the_wrong_size(gold: Path) -> None:
    change(gold, lambda c: c["annotations"][1]["segmentation"].update(size=[9, 9]))
    with pytest.raises(DataError, match=r"pair 1, annotation 2: the run lengths are of 9 x 9"):
        SaCo(gold, gold.parent / "images")[0]

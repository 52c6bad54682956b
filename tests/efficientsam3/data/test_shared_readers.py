"""Training and evaluation get the same phrases, boxes and masks from the same annotation file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efficientsam3.data.annotated_images import AnnotatedImages
from efficientsam3.data.coco import CocoAnnotations, category_phrases
from efficientsam3.data.json_records import RecordTable
from efficientsam3.data.saco import SaCoAnnotations
from efficientsam3.evaluate import read_ground_truth
from efficientsam3.io.rle import decode

from .conftest import SIZE, packed, rectangle, write_image

HEIGHT, WIDTH = SIZE
Content = dict[str, Any]


def rows(relative: bool = False) -> list[Content]:
    """Three annotations of two images; a box is [x, y, width, height]."""
    scale = (WIDTH, HEIGHT) if relative else (1, 1)
    out = []
    places = ((7, 1, (4, 6, 10, 8)), (7, 2, (20, 2, 5, 5)), (8, 1, (0, 0, 40, 30)))
    for number, (image, category, (x, y, w, h)) in enumerate(places, 1):
        mask = packed(rectangle(x, y, x + w, y + h))
        box = [x / scale[0], y / scale[1], w / scale[0], h / scale[1]]
        record = {"id": number, "image_id": image, "category_id": category, "area": w * h}
        out.append({**record, "bbox": box, "segmentation": mask, "iscrowd": 0})
    return out


def images(**more: Any) -> list[Content]:
    size = {"height": HEIGHT, "width": WIDTH}
    return [{"id": id, "file_name": f"{id}.jpg", **size, **more} for id in (7, 8)]


def coco() -> Content:
    names = ((1, "fire_hydrant"), (2, "dog (toy)"), (3, "tv"))
    categories = [{"id": id, "name": name} for id, name in names]
    return {"images": images(), "annotations": rows(), "categories": categories}


def lvis() -> Content:
    names = ((1, "crab_(animal)"), (2, "bow_(weapon)"), (3, "bow_(decorative_ribbons)"))
    categories = [{"id": id, "name": name, "synonyms": [name]} for id, name in names]
    listed = images(neg_category_ids=[3], not_exhaustive_category_ids=[1])
    return {"images": listed, "annotations": rows(), "categories": categories}


def saco(relative: bool = True) -> Content:
    pairs = []
    for row, phrase in zip(images(), ("red crab", "dog"), strict=True):
        pairs.append({**row, "text_input": phrase, "is_instance_exhaustive": row["id"] == 7})
    pairs.append({**pairs[0], "id": 9, "text_input": "nothing"})
    categories = [{"id": 1, "name": "object"}]
    return {"images": pairs, "annotations": rows(relative), "categories": categories}


def saco_in_pixels() -> Content:
    return saco(relative=False)


@pytest.mark.parametrize(
    ("make", "phrases"),
    [
        (coco, [["fire hydrant", "dog (toy)", "tv"], ["fire hydrant", "dog (toy)", "tv"]]),
        (
            lvis,
            [
                ["crab", "bow (weapon)", "bow (decorative ribbons)"],
                ["crab", "bow (decorative ribbons)"],
            ],
        ),
        (saco, [["red crab", "nothing"], ["dog"]]),
        (saco_in_pixels, [["red crab", "nothing"], ["dog"]]),
    ],
)
def test_training_and_evaluation_read_the_same(
    tmp_path: Path, make: Callable[[], Content], phrases: list[list[str]]
) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(make()))
    for id in (7, 8):
        write_image(tmp_path / f"{id}.jpg", id)
    reader = SaCoAnnotations(path) if make in (saco, saco_in_pixels) else CocoAnnotations(path)
    training, truth = AnnotatedImages(tmp_path, reader), read_ground_truth(path)
    assert [training.key(i) for i in range(2)] == list(truth.images) == ["7.jpg", "8.jpg"]
    for index, pairs in enumerate(truth.images.values()):
        sample = training[index]
        assert [q.phrase for q in sample.queries] == phrases[index]
        assert [p.phrase for p in pairs] == phrases[index]
        for query, pair in zip(sample.queries, pairs, strict=True):
            assert (query.key, query.exhaustive) == (pair.key, pair.exhaustive)
            assert len(query.objects) == len(pair.targets)
            for row, target in zip(query.objects, pair.targets, strict=True):
                assert sample.boxes[row] == pytest.approx(target.box, abs=1e-4)
                assert np.array_equal(sample.mask(row), decode(target.mask))
    first = training[0]
    assert first.boxes == pytest.approx(np.array([[4, 6, 14, 14], [20, 2, 25, 7]]), abs=1e-4)
    assert (first.mask(0) == rectangle(4, 6, 14, 14)).all()


def test_marks_of_sense_are_left_out_where_words_differ() -> None:
    def phrases(*names: str, **more: Any) -> list[list[str]]:
        rows = [{"name": name, **more} for name in names]
        return category_phrases(RecordTable(Path("a.json"), "categories", rows))

    senses = ("crab_(animal)", "bow_(weapon)", "bow_(ribbon)", "stop_sign")
    assert phrases(*senses, frequency="c") == [
        ["crab"],
        ["bow (weapon)"],
        ["bow (ribbon)"],
        ["stop sign"],
    ]
    # The parentheses of other data sets are their authors' own words.
    assert phrases("car (parked)", "traffic_light") == [["car (parked)"], ["traffic light"]]
    assert phrases("mouse_(rodent)", synonyms=["mouse_(rodent)", "house_mouse"]) == [
        ["mouse", "house mouse"]
    ]


def test_a_box_of_one_pixel_is_not_a_part_of_the_image(tmp_path: Path) -> None:
    """[0, 0, 1, 1] is the whole image in SA-Co's own files, and the first pixel in pixels."""
    first, whole = rectangle(0, 0, 1, 1), rectangle(0, 0, WIDTH, HEIGHT)
    for mask, box in ((first, (0, 0, 1, 1)), (whole, (0, 0, WIDTH, HEIGHT))):
        content = saco()
        content["annotations"] = content["annotations"][:1]
        content["annotations"][0] |= {"bbox": [0, 0, 1, 1], "segmentation": packed(mask)}
        path = tmp_path / "a.json"
        path.write_text(json.dumps(content))
        assert SaCoAnnotations(path)[0].objects[0].box == box

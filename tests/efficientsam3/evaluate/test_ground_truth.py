"""Readers of ground truth: what they make of each layout, and what they say of bad files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efficientsam3.data.formats import annotation_format
from efficientsam3.evaluate import AnnotationError, read_ground_truth
from efficientsam3.evaluate.ground_truth import group_splits

Write = Callable[[str, Any], Path]


def test_gold_of_one_annotator(toy: SimpleNamespace, write: Write) -> None:
    truth = read_ground_truth(write("gold.json", toy.saco()))
    assert (truth.name, truth.layout, truth.complete) == ("gold", "saco", True)
    assert [(p.key, p.file, p.phrase, len(p.targets)) for p in truth.pairs] == [
        ((10, 1), "a.png", "red square", 2),
        ((11, 1), "a.png", "dog", 0),
        ((12, 1), "b.png", "red square", 1),
        ((13, 1), "sub/c.png", "dog", 0),
        ((14, 1), "sub/c.png", "blue thing", 1),
    ]
    target = truth.pairs[0].targets[0]
    assert target.box == pytest.approx(toy.LEFT)  # normalized in the file
    assert (target.area, target.crowd, truth.pairs[0].size) == (400, False, toy.SIZE)
    assert list(truth.images) == ["a.png", "b.png", "sub/c.png"]


def test_boxes_in_pixels_are_seen(toy: SimpleNamespace, write: Write) -> None:
    content = toy.saco()
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        row["bbox"] = [x * toy.SIZE[1], y * toy.SIZE[0], w * toy.SIZE[1], h * toy.SIZE[0]]
    assert read_ground_truth(write("g.json", content)).pairs[0].targets[0].box == pytest.approx(
        toy.LEFT
    )


def test_pairs_of_a_image_stand_together_and_limit_counts_images(
    toy: SimpleNamespace, write: Write
) -> None:
    pairs = [toy.PAIRS[i] for i in (0, 2, 1, 3, 4)]
    path = write("g.json", toy.saco(pairs))
    assert [p.file for p in read_ground_truth(path).pairs] == 2 * ["a.png"] + ["b.png"] + 2 * [
        "sub/c.png"
    ]
    two = read_ground_truth(path, limit=2)
    assert [p.file for p in two.pairs] == ["a.png", "a.png", "b.png"] and not two.complete


def test_gold_of_three_annotators_by_a_pattern(
    toy: SimpleNamespace, write: Write, tmp_path: Path
) -> None:
    names = [f"gold_food_merged_{letter}_release_test.json" for letter in "abc"]
    second, third = toy.saco(), toy.saco()
    second["annotations"] = second["annotations"][:2]
    third["images"][1]["is_instance_exhaustive"] = 0
    for name, content in zip(names, (toy.saco(), second, third), strict=True):
        write(name, content)
    truth = read_ground_truth(tmp_path / "gold_food_merged_*_release_test.json")
    assert truth.name == "gold_food_merged_release_test" and len(truth.paths) == 3
    assert [len(t) for t in truth.pairs[2].annotators] == [1, 0, 1]
    # One annotator who says that instances are missing is enough.
    assert [p.exhaustive for p in truth.pairs] == [True, False, True, True, True]
    assert list(group_splits(truth.paths)) == [truth.name]


def coco_content(toy: SimpleNamespace) -> dict[str, Any]:
    height, width = toy.SIZE
    x0, y0, x1, y1 = toy.LEFT
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": width, "height": height},
            {"id": 9, "file_name": "b.png", "width": width, "height": height},
        ],
        "categories": [
            {"id": 1, "name": "red_square"},
            {"id": 18, "name": "dog"},
            {"id": 3, "name": "car"},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 1,
                "iscrowd": 0,
                "area": 400.0,
                "bbox": toy.xywh(toy.LEFT),
                "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 18,
                "iscrowd": 1,
                "area": 400.0,
                "bbox": toy.xywh(toy.RIGHT),
                "segmentation": {"size": [height, width], "counts": [height * width - 5, 5]},
            },
        ],
    }


def test_coco_asks_every_category_of_every_image(toy: SimpleNamespace, write: Write) -> None:
    truth = read_ground_truth(write("instances_val.json", coco_content(toy)))
    assert truth.layout == "coco"
    asked = [(p.key, p.phrase, len(p.targets), p.exhaustive, p.countable) for p in truth.pairs]
    assert asked == [
        ((7, 1), "red square", 1, True, True),
        ((7, 3), "car", 0, True, True),
        ((7, 18), "dog", 1, True, False),  # a crowd's instances are not marked one by one
        ((9, 1), "red square", 0, True, True),
        ((9, 3), "car", 0, True, True),
        ((9, 18), "dog", 0, True, True),
    ]
    target = truth.pairs[0].targets[0]
    assert target.mask is not None and target.mask["size"] == list(toy.SIZE)
    some = read_ground_truth(write("c.json", coco_content(toy)), negatives=1)
    assert [p.key[0] for p in some.pairs] == [7, 7, 7, 9]
    assert [p.key for p in some.pairs] == [
        p.key for p in read_ground_truth(some.paths[0], negatives=1).pairs
    ]


def test_lvis_asks_what_someone_looked_for(toy: SimpleNamespace, write: Write) -> None:
    content = coco_content(toy)
    for row, absent, partial in zip(content["images"], ([3], [18, 1]), ([1], []), strict=True):
        del row["file_name"]
        row["coco_url"] = f"http://images.cocodataset.org/val2017/{row['id']:012d}.jpg"
        row |= {"neg_category_ids": absent, "not_exhaustive_category_ids": partial}
    for row, letter in zip(content["categories"], "rcf", strict=True):
        row["frequency"] = letter
    content["annotations"].pop()
    truth = read_ground_truth(write("lvis_v1_val.json", content))
    assert truth.layout == "lvis"
    assert [(p.key, len(p.targets), p.exhaustive) for p in truth.pairs] == [
        ((7, 1), 1, False),
        ((7, 3), 0, True),
        ((9, 1), 0, True),
        ((9, 18), 0, True),
    ]
    assert truth.pairs[0].file == "val2017/000000000007.jpg"
    assert truth.frequencies == {"red square": "r", "dog": "c", "car": "f"}


Spoil = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda c: c["annotations"][1].update(image_id=99),
            r"annotations\[1\] \(id 2\) has image_id 99",
        ),
        (
            lambda c: c["annotations"][1]["segmentation"].update(size=[60, 40]),
            r"\[1\] \(id 2\) has a segmentation .* it has 60 x 40 pixels .* image has 40 x 60",
        ),
        (
            lambda c: c["annotations"][1]["segmentation"].update(size=[40, 61]),
            r"annotations\[1\] \(id 2\) .* cover 2400 pixels, but their size 40 x 61 has 2440",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation=None),
            r"annotations\[0\] \(id 1\) has a segmentation that is wrong",
        ),
        (lambda c: c["annotations"][2].pop("bbox"), r"annotations\[2\] \(id 3\) has no 'bbox'"),
        (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), r"\(id 3\) has bbox \[1, 2, 3\]"),
        (lambda c: c["images"][3].pop("text_input"), r"images\[3\] \(id 13\) has no 'text_input'"),
        (lambda c: c["images"][3].update(text_input="  "), r"images\[3\] .* text_input '  '"),
        (lambda c: c["images"][3].update(width=0), r"images\[3\] .* width 0"),
        (
            lambda c: c["images"][3].update(id=10),
            r"images\[3\] \(id 10\) has the id of images\[0\]",
        ),
        (lambda c: c["images"].__setitem__(1, 5), r"images\[1\] is a int, not an object"),
        (lambda c: c["images"].clear(), "split is empty"),
        (lambda c: c.update(images={}), "has no known annotation format: it has 'images'"),
        (lambda c: c.pop("annotations"), "has no known annotation format: it has 'images', 'cat"),
    ],
)
def test_bad_records_are_named(
    toy: SimpleNamespace, write: Write, spoil: Spoil, sentence: str
) -> None:
    content = toy.saco()
    spoil(content)
    with pytest.raises(AnnotationError, match=sentence) as raised:
        read_ground_truth(write("gold.json", content))
    assert "gold.json" in str(raised.value)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda c: c["annotations"][0].update(category_id=2), r"category_id 2, which no record"),
        (
            lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]]),
            r"annotations\[0\] \(id 1\) has a segmentation that is wrong: a polygon is",
        ),
        (lambda c: c["images"][0].pop("file_name"), "neither 'file_name' nor 'coco_url'"),
        (lambda c: c["images"][0].update(neg_category_ids=[5]), "names category 5"),
        (lambda c: c["categories"][0].update(name=""), r"categories\[0\] \(id 1\) has name ''"),
    ],
)
def test_bad_records_of_coco_are_named(
    toy: SimpleNamespace, write: Write, spoil: Spoil, sentence: str
) -> None:
    content = coco_content(toy)
    spoil(content)
    with pytest.raises(AnnotationError, match=sentence):
        read_ground_truth(write("coco.json", content))


def test_bad_files_are_named(toy: SimpleNamespace, write: Write, tmp_path: Path) -> None:
    with pytest.raises(
        AnnotationError, match=r"cut\.json is not JSON, or is cut short: .* of 500 bytes"
    ):
        read_ground_truth(write("cut.json", json.dumps(toy.saco())[:500]))
    with pytest.raises(AnnotationError, match=r"there is no file .*none\.json"):
        read_ground_truth(tmp_path / "none.json")
    with pytest.raises(AnnotationError, match="is a folder"):
        read_ground_truth(tmp_path)
    with pytest.raises(AnnotationError, match=r"no file matches .*\*\.txt"):
        read_ground_truth(tmp_path / "*.txt")
    with pytest.raises(AnnotationError, match="no known annotation format: it has list"):
        read_ground_truth(write("list.json", []))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AnnotationError, match=r"is not JSON: .* at byte 0"):
        read_ground_truth(binary)
    with pytest.raises(AnnotationError, match="limit is 1 image or more"):
        read_ground_truth(write("g.json", toy.saco()), limit=0)


def test_annotators_are_told_by_names_or_pairs(toy: SimpleNamespace, write: Write) -> None:
    same = [write(f"{name}.json", toy.saco()) for name in ("ann", "bob")]
    other = write("other.json", toy.saco(toy.PAIRS[:2]))
    assert group_splits([*same, other]) == {"ann": same, "other": [other]}
    gold = [write(f"gold_{s}_merged_{a}_t.json", toy.saco()) for s in ("x", "y") for a in "ab"]
    assert group_splits(gold) == {"gold_x_merged_t": gold[:2], "gold_y_merged_t": gold[2:]}
    plain = [write(f"{n}.json", coco_content(toy)) for n in "cd"]
    assert list(group_splits(plain)) == ["c", "d"]


def test_files_of_other_splits_are_no_annotators(toy: SimpleNamespace, write: Write) -> None:
    first, other = write("x_merged_a_.json", toy.saco()), toy.saco(toy.PAIRS[:3])
    with pytest.raises(AnnotationError, match=r"has no image of id 13, which .*x_merged_a_"):
        read_ground_truth([first, write("x_merged_b_.json", other)])
    changed = copy.deepcopy(toy.saco())
    changed["images"][2]["text_input"] = "cat"
    with pytest.raises(
        AnnotationError, match=r"images\[2\] .* text_input 'cat', but in .* 'red sq"
    ):
        read_ground_truth([first, write("x_merged_b_.json", changed)])
    with pytest.raises(AnnotationError, match="is COCO: evaluate one file at a time"):
        paths = [write(f"{name}.json", coco_content(toy)) for name in "ab"]
        read_ground_truth(paths)
    with pytest.raises(AnnotationError, match="is of clips"):
        read_ground_truth(write("veval.json", {"videos": []}))
    assert annotation_format(Path("v"), {"videos": []}) == "veval"

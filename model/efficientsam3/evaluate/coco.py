"""COCO's and LVIS' instances: a phrase is a category's name.

In COCO every category was looked for in every picture. In LVIS only some were: those that are
there, and those that someone made sure are not (``neg_category_ids``); of some that are there not
all instances are marked (``not_exhaustive_category_ids``).
"""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from .records import Table
from .truth import Pair, Target, Truth, split_name

SEED = 0


def read(path: Path, content: Any, layout: str, limit: int | None, negatives: int | None) -> Truth:
    """The pairs of a split; ``negatives``: at most so many absent categories of a picture."""
    images = Table.of(path, content, "images", ("id", "width", "height"))
    categories = Table.of(path, content, "categories", ("id", "name"))
    annotations = Table.of(path, content, "annotations", ("image_id", "category_id", "bbox"))
    ids, category_ids = images.by_id(), categories.by_id()
    annotations.known("image_id", ids, "images")
    annotations.known("category_id", category_ids, "categories")
    names = {
        number: categories.text(index, "name").replace("_", " ")
        for number, index in category_ids.items()
    }
    chosen = {row["id"] for row in images.rows[:limit]}
    targets: dict[tuple[Any, Any], list[Target]] = defaultdict(list)
    present: dict[Any, dict[Any, None]] = defaultdict(dict)
    for index, row in enumerate(annotations.rows):
        if row["image_id"] in chosen:
            size = images.size(ids[row["image_id"]])
            targets[row["image_id"], row["category_id"]].append(_target(annotations, index, size))
            present[row["image_id"]][row["category_id"]] = None
    pairs = []
    for index, image in enumerate(images.rows[:limit]):
        there = present[image["id"]]
        partial = set(image.get("not_exhaustive_category_ids", ()))
        absent = [
            number
            for number in (image.get("neg_category_ids", ()) if layout == "lvis" else names)
            if number not in there
        ]
        if negatives is not None and len(absent) > negatives:
            absent = sorted(random.Random(f"{SEED} {image['id']}").sample(absent, negatives))
        for number in sorted([*there, *absent]):
            if number not in names:
                raise images.wrong(
                    index, f"names category {number!r}, which no record of categories has"
                )
            found = tuple(targets.get((image["id"], number), ()))
            pairs.append(
                Pair(
                    key=(image["id"], number),
                    file=_file(images, index),
                    size=images.size(index),
                    phrase=names[number],
                    category=names[number],
                    truths=(found,),
                    exhaustive=number not in partial,
                    countable=not any(target.crowd for target in found),
                )
            )
    frequencies = {
        names[row["id"]]: row["frequency"] for row in categories.rows if "frequency" in row
    }
    return Truth(
        split_name(path),
        layout,
        (path,),
        tuple(pairs),
        complete=len(chosen) == len(images.rows),
        categories=names,
        frequencies=frequencies,
        negatives=negatives,
    )


def _file(images: Table, index: int) -> str:
    row = images.rows[index]
    if "file_name" in row:
        return images.text(index, "file_name")
    if "coco_url" in row:  # LVIS: of COCO's train2017 or val2017
        return "/".join(PurePosixPath(images.text(index, "coco_url")).parts[-2:])
    raise images.wrong(index, "has neither 'file_name' nor 'coco_url'")


def _target(table: Table, index: int, size: tuple[int, int]) -> Target:
    row = table.rows[index]
    box = table.box(index, row["bbox"])
    shape = row.get("segmentation")
    mask = table.mask(index, shape, size, "segmentation") if shape else None
    area = row.get("area", (box[2] - box[0]) * (box[3] - box[1]))
    return Target(box, mask, bool(row.get("iscrowd", 0)), float(area))

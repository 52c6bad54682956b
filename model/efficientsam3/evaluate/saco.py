"""SA-Co/Gold and SA-Co/Silver: a record of ``images`` is a picture and a phrase."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from .errors import AnnotationError
from .records import Record, Table
from .truth import Pair, Target, Truth, split_name

CATEGORY = 1
"""The only category of these files; what is asked is in the record of the image."""


def read(contents: list[tuple[Path, Any]], limit: int | None) -> Truth:
    """The pairs of one split, as one to three annotators saw them."""
    first = _images(*contents[0])
    wanted = _first_pictures(first, limit)
    annotators = [_targets(path, content, first, wanted) for path, content in contents]
    pairs = []
    for index in wanted:
        row = first.rows[index]
        pairs.append(
            Pair(
                key=(row["id"], CATEGORY),
                file=first.text(index, "file_name"),
                size=first.size(index),
                phrase=first.text(index, "text_input"),
                category=first.text(index, "text_input"),
                truths=tuple(tuple(targets[row["id"]]) for targets, _ in annotators),
                # A pair counts only if each annotator says that all instances are there.
                exhaustive=all(row["id"] not in partial for _, partial in annotators),
            )
        )
    paths = tuple(path for path, _ in contents)
    whole = len(pairs) == len(first.rows)
    return Truth(split_name(paths[0]), "saco", paths, tuple(pairs), whole, {CATEGORY: "object"})


def _images(path: Path, content: Any) -> Table:
    return Table.of(path, content, "images", ("id", "file_name", "text_input", "width", "height"))


def _first_pictures(images: Table, limit: int | None) -> list[int]:
    """Indices of the records of the first ``limit`` pictures, grouped by picture."""
    groups: dict[str, list[int]] = {}
    for index in range(len(images.rows)):
        groups.setdefault(images.text(index, "file_name"), []).append(index)
    return [index for group in list(groups.values())[:limit] for index in group]


def _targets(
    path: Path, content: Any, first: Table, wanted: list[int]
) -> tuple[dict[Any, list[Target]], set[Any]]:
    """One annotator's instances by pair, and pairs that are not exhaustive."""
    images = _images(path, content)
    ids = images.by_id()
    partial = set()
    for index in wanted:
        row = first.rows[index]
        if row["id"] not in ids:
            raise AnnotationError(
                f"{path} has no image of id {row['id']!r}, which {first.path} has: several files "
                "are several annotators of one split. Evaluate splits one at a time"
            )
        own = images.rows[ids[row["id"]]]
        for key in ("text_input", "file_name", "width", "height"):
            if own[key] != row[key]:
                raise images.wrong(
                    ids[row["id"]],
                    f"has {key} {own[key]!r}, but in {first.path} it is {row[key]!r}",
                )
        if not own.get("is_instance_exhaustive", 1):
            partial.add(row["id"])
    annotations = Table.of(path, content, "annotations", ("image_id", "bbox", "segmentation"))
    annotations.known("image_id", ids, "images")
    chosen = {first.rows[index]["id"] for index in wanted}
    # Boxes are parts of the picture in SA-Co's own files, pixels in some that others made.
    scaled = all(_in_unit(row) for row in annotations.rows)
    out: dict[Any, list[Target]] = defaultdict(list)
    for index, row in enumerate(annotations.rows):
        if row["image_id"] in chosen:
            size = images.size(ids[row["image_id"]])
            out[row["image_id"]].append(_target(annotations, index, size, scaled))
    return out, partial


def _in_unit(row: Record) -> bool:
    box = row["bbox"]
    return isinstance(box, list) and all(isinstance(v, (int, float)) and v <= 1.001 for v in box)


def _target(table: Table, index: int, size: tuple[int, int], scaled: bool) -> Target:
    from pycocotools import mask as coco

    row = table.rows[index]
    mask = table.mask(index, row["segmentation"], size, "segmentation")
    x0, y0, x1, y1 = table.box(index, row["bbox"])
    wide, high = (size[1], size[0]) if scaled else (1, 1)
    crowd = row.get("iscrowd", row.get("is_crowd", 0))
    box = (x0 * wide, y0 * high, x1 * wide, y1 * high)
    return Target(box, mask, bool(crowd), float(coco.area(mask)))

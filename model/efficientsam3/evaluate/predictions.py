"""Files of predictions: COCO's result lists, and the journals of our own runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from ..lines import SUFFIX
from ..rle import box_of, encode
from .errors import PredictionError
from .journal import read_identity, read_journal
from .records import Box, Record, Table, read_json
from .truth import Key, Truth

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """One predicted instance.

    box: x0, y0, x1, y1 in pixels. mask: compressed run lengths. target: which of the pair's
    instances was pointed at, where one was.
    """

    box: Box | None
    mask: Record | None
    score: float
    target: int | None = None

    @classmethod
    def of(cls, mask: Array, score: float) -> Prediction:
        """By its mask, (H, W) bool."""
        rle, box = encode(mask)
        return cls(box, rle, float(score))

    @property
    def corners(self) -> Box:
        """Its box, or its mask's."""
        return self.box if self.box is not None else box_of(self.mask or {})


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for a split.

    by_pair: by (image_id, category_id). failed: why a picture has none, by picture. path: of
    the file that they come from. prompt: what they were asked by, where that is known.
    """

    by_pair: Mapping[Key, Sequence[Prediction]]
    failed: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    prompt: str | None = None


def read_predictions(path: str | Path, truth: Truth) -> Predictions:
    """Read predictions for a split, of either kind of file.

    Raises:
        PredictionError: names the file and the record.
    """
    path = Path(path)
    failed: dict[str, str] = {}
    prompt = None
    if path.suffix == SUFFIX:
        prompt = read_identity(path).get("prompt")
        entries = {entry.picture: entry for entry in read_journal(path)}  # the last one counts
        pictures = truth.pictures
        missing = sum(picture not in entries for picture in pictures)
        if missing:
            raise PredictionError(
                f"{path} has {len(pictures) - missing} of {len(pictures)} pictures: the run that "
                "wrote it was stopped, or was of fewer. Run it again to go on"
            )
        failed = {e.picture: e.failed for e in entries.values() if e.failed}
        rows = [row for e in entries.values() for row in e.predictions]
        table = Table(path, "predictions", rows, PredictionError)
    else:
        table = _results(path)
    return Predictions(_by_pair(table, truth), failed, path, prompt)


def _results(path: Path) -> Table:
    content = read_json(path, PredictionError)
    if not isinstance(content, list):
        raise PredictionError(
            f"{path} is no list of predictions: COCO's result format is a list of "
            "{image_id, category_id, segmentation, score}"
        )
    return Table(path, "predictions", content, PredictionError)


def _by_pair(table: Table, truth: Truth) -> dict[Key, list[Prediction]]:
    table.need(("image_id", "score") if truth.layout == "saco" else _COCO_KEYS)
    sizes = {pair.key: pair.size for pair in truth.pairs}
    images = {image for image, _ in sizes}
    scaled = _scaled(table)
    out: dict[Key, list[Prediction]] = {}
    for index, row in enumerate(table.rows):
        category = next(iter(truth.categories)) if truth.layout == "saco" else row["category_id"]
        try:
            size = sizes.get((row["image_id"], category))
            known = row["image_id"] in images, category in truth.categories
        except TypeError as error:  # a list, or an object
            raise table.wrong(index, "has an image_id or category_id that is no id") from error
        if size is None:
            if not known[0] and truth.complete:
                image = row["image_id"]
                raise table.wrong(index, f"has image_id {image!r}, which {truth.paths[0]} has not")
            if not known[1]:
                raise table.wrong(
                    index, f"has category_id {category!r}, which {truth.paths[0]} has not"
                )
            continue  # nobody knows whether it is there, or it is beyond the limit
        out.setdefault((row["image_id"], category), []).append(
            _prediction(table, index, size, scaled)
        )
    return out


_COCO_KEYS = ("image_id", "category_id", "score")


def _prediction(table: Table, index: int, size: tuple[int, int], scaled: bool) -> Prediction:
    row, mask, box = table.rows[index], None, None
    if row.get("segmentation") is not None:
        mask = table.mask(index, row["segmentation"], size, "segmentation")
    if row.get("bbox") is not None:
        x0, y0, x1, y1 = table.box(index, row["bbox"])
        wide, high = (size[1], size[0]) if scaled else (1, 1)
        box = (x0 * wide, y0 * high, x1 * wide, y1 * high)
    if mask is None and box is None:
        raise table.wrong(index, "has neither 'segmentation' nor 'bbox'")
    return Prediction(box, mask, table.score(index), row.get("target"))


def _scaled(table: Table) -> bool:
    """Whether boxes are parts of the picture, as in SA-Co's ground truth, not pixels."""
    boxes = [row["bbox"] for row in table.rows if isinstance(row.get("bbox"), list)]
    return bool(boxes) and all(
        isinstance(v, (int, float)) and v <= 1.001 for box in boxes for v in box
    )


def write_results(path: str | Path, journal: str | Path) -> int:
    """Write COCO's result list of a journal, for other tools; gives its length."""
    from ..weights import replacing

    rows = _last(Path(journal))
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[" + ",\n".join(json.dumps(row) for row in rows) + "]\n")
    return len(rows)


def _last(journal: Path) -> list[dict[str, Any]]:
    entries = {entry.picture: entry for entry in read_journal(journal)}
    return [row for entry in entries.values() for row in entry.predictions]

"""Files of predictions: COCO's result lists, and run files of ``evaluate_images``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.json_records import RecordTable, read_json
from ..data.types import Box, ObjectAnnotation, QueryKey, Record
from ..io.atomic import replacing
from ..io.jsonl import DAMAGED_LINE, SUFFIX, read_head, read_records
from ..io.rle import box_of, encode
from ..types import Array
from .errors import PredictionError
from .ground_truth import GroundTruth, Pair

PREDICTIONS = "predictions"
"""The kind of run files that hold predictions."""


@dataclass(frozen=True, eq=False, slots=True)
class Prediction:
    """One predicted instance.

    Attributes:
        box: (x0, y0, x1, y1) in pixels, or None if only the mask is known.
        mask: Compressed run lengths, or None if only the box is known.
        score: In [0, 1].
        target: Index of the pair's instance whose box was the prompt, if one was.
    """

    box: Box | None
    mask: Record | None
    score: float
    target: int | None = None

    @classmethod
    def from_mask(cls, mask: Array, score: float) -> Prediction:
        """Make a prediction of a mask.

        Args:
            mask: (H, W) bool.
            score: In [0, 1].
        """
        rle, box = encode(mask)
        return cls(box, rle, float(score))

    @property
    def corners(self) -> Box:
        """The box, or that of the mask: (x0, y0, x1, y1) in pixels."""
        return self.box if self.box is not None else box_of(self.mask or {})


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for a split.

    Attributes:
        by_pair: Predictions by (image_id, category_id).
        failed: Why an image has none, by the image's name.
        path: The file that they come from.
        prompt: How the model was prompted, if it is known.
    """

    by_pair: Mapping[QueryKey, Sequence[Prediction]]
    failed: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None
    prompt: str | None = None


def read_predictions(path: str | Path, truth: GroundTruth) -> Predictions:
    """Read predictions for a split.

    Args:
        path: COCO's result list (.json), or a run file of ``evaluate_images`` (.jsonl).
        truth: The split.

    Raises:
        PredictionError: a record is wrong or does not belong to the split, or images are missing.
        RunFileError: the .jsonl file is not one of predictions.
    """
    path = Path(path)
    failed: dict[str, str] = {}
    prompt = None
    if path.suffix == SUFFIX:
        prompt = read_head(path, PREDICTIONS)["asked"].get("prompt")
        records = last_records(path)
        images = truth.images
        missing = sum(name not in records for name in images)
        if missing:
            raise PredictionError(
                f"{path} has {len(images) - missing} of {len(images)} images: the run that wrote "
                "it was stopped, or was of fewer images. Run it again to continue"
            )
        failed = {name: r["failed"] for name, r in records.items() if "failed" in r}
        rows = _rows(path, records)
    else:
        rows = read_json(path, PredictionError)
        if not isinstance(rows, list):
            raise PredictionError(
                f"{path} is not a list of predictions: COCO's result format is a list of "
                "{image_id, category_id, segmentation, score}"
            )
    table = RecordTable(path, "predictions", rows, PredictionError)
    return Predictions(_by_pair(table, truth), failed, path, prompt)


def _by_pair(table: RecordTable, truth: GroundTruth) -> dict[QueryKey, list[Prediction]]:
    keys = ("image_id", "score") + (() if truth.layout == "saco" else ("category_id",))
    table.require(keys)
    sizes = {pair.key: pair.size for pair in truth.pairs}
    images = {image for image, _ in sizes}
    relative = table.boxes_are_relative()
    out: dict[QueryKey, list[Prediction]] = {}
    for index, row in enumerate(table.rows):
        category = next(iter(truth.categories)) if truth.layout == "saco" else row["category_id"]
        image = row["image_id"]
        try:
            size = sizes.get((image, category))
            known_image, known_category = image in images, category in truth.categories
        except TypeError as error:  # a list, or an object
            raise table.wrong(index, "has an image_id or category_id that is no id") from error
        if size is not None:
            prediction = _prediction(table, index, size, relative)
            out.setdefault((image, category), []).append(prediction)
        elif not known_image and truth.complete:
            raise table.wrong(index, f"has image_id {image!r}, which {truth.paths[0]} has not")
        elif not known_category:
            raise table.wrong(
                index, f"has category_id {category!r}, which {truth.paths[0]} has not"
            )
        # Others are of pairs that are not annotated, or of images beyond the limit.
    return out


def _prediction(
    table: RecordTable, index: int, size: tuple[int, int], relative: bool
) -> Prediction:
    row, mask, box = table.rows[index], None, None
    if row.get("segmentation") is not None:
        mask = table.mask(index, row["segmentation"], size, "segmentation")
    if row.get("bbox") is not None:
        box = table.box_in_pixels(index, size, relative)
    if mask is None and box is None:
        raise table.wrong(index, "has neither 'segmentation' nor 'bbox'")
    return Prediction(box, mask, table.score(index), row.get("target"))


def require_mask(instance: Prediction | ObjectAnnotation, pair: Pair) -> Record:
    """The mask of an instance that is compared by its mask.

    Args:
        instance: A prediction, or an annotated instance.
        pair: The pair that it belongs to, for the message.

    Raises:
        PredictionError: It has a box alone.
    """
    if instance.mask is None:
        kind = "prediction" if isinstance(instance, Prediction) else "instance"
        raise PredictionError(
            f"{'a' if kind == 'prediction' else 'an'} {kind} of {pair.phrase!r} in {pair.file} "
            f"(image id {pair.key[0]!r}) has a box and no mask; compare boxes instead (--iou box, "
            "iou='box')"
        )
    return instance.mask


def write_coco_results(path: str | Path, run_file: str | Path) -> int:
    """Write the predictions of a run file as COCO's result list, for other tools.

    Args:
        path: The .json file to write.
        run_file: The .jsonl file of predictions.

    Returns:
        The number of predictions.
    """
    rows = _rows(Path(run_file), last_records(run_file))
    with replacing(Path(path)) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[" + ",\n".join(json.dumps(row) for row in rows) + "]\n")
    return len(rows)


def _rows(path: Path, records: Mapping[str, Record]) -> list[Any]:
    """The predictions of all images."""
    rows: list[Any] = []
    for name, record in records.items():
        found = record.get("result", [])
        if not isinstance(found, list):
            raise PredictionError(f"{path}: the predictions of {name} are damaged: {DAMAGED_LINE}")
        rows += found
    return rows


def last_records(path: str | Path) -> dict[str, Record]:
    """The last record of each image, by its name.

    Args:
        path: A run file of ``evaluate_images``.

    Raises:
        PredictionError: a record is of no image.
        RunFileError: it is another file, or damaged.
    """
    out: dict[str, Record] = {}
    for record in read_records(path, PREDICTIONS):
        if "input" not in record:
            raise PredictionError(f"{path} has a record that is of no image. {DAMAGED_LINE}")
        out[record["input"]] = record
    return out

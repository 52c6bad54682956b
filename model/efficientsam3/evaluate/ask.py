"""Ask a model about the pairs of one picture; answers as COCO's result list has them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ImageError
from .records import Record
from .truth import Pair, Target

if TYPE_CHECKING:
    from ..image import EncodedImage, ImageModel
    from ..types import Instances

PROMPTS = {
    "text": "the phrase",
    "exemplar": "the box of the largest instance, without the phrase; positive pairs only",
    "box": "the box of each instance, one after another, to the interactive head",
}


def ask(
    model: ImageModel, file: Path, pairs: list[Pair], prompt: str, floor: float
) -> list[Record]:
    encoded = model.encode(_read(file, pairs[0]))
    if prompt == "text":
        return _ask_phrases(model, encoded, pairs, floor)
    one = _ask_exemplar if prompt == "exemplar" else _ask_boxes
    return [record for pair in pairs for record in one(model, encoded, pair, floor)]


def _read(file: Path, pair: Pair) -> Any:
    """The picture's pixels as its annotators saw them."""
    from PIL import Image

    from ..pixels import read_rgb

    pixels = read_rgb(file)
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    if size == pair.size:
        return pixels
    if size == pair.size[::-1]:
        # Annotated before its EXIF rotation was applied.
        with Image.open(file) as image:
            if image.size == pair.size[::-1]:
                return np.array(image.convert("RGB"))
    raise ImageError(
        f"{file} has {size[0]} x {size[1]} pixels (height x width), but its record, image id "
        f"{pair.key[0]!r}, says {pair.size[0]} x {pair.size[1]}"
    )


def _ask_phrases(
    model: ImageModel, image: EncodedImage, pairs: list[Pair], floor: float
) -> list[Record]:
    found = model.segment(image, [pair.phrase for pair in pairs], threshold=floor)
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(found.labels):
        rows.setdefault(label, []).append(row)
    return [record for pair in pairs for record in _records(pair, found[rows.get(pair.phrase, [])])]


def _ask_exemplar(model: ImageModel, image: EncodedImage, pair: Pair, floor: float) -> list[Record]:
    targets = [(t.area, t.box) for t in pair.targets if promptable(t, pair)]
    if not targets:
        return []
    _, box = max(targets)
    return _records(pair, model.segment(image, boxes=[box], threshold=floor))


def _ask_boxes(model: ImageModel, image: EncodedImage, pair: Pair, floor: float) -> list[Record]:
    chosen = [i for i, t in enumerate(pair.targets) if promptable(t, pair)]
    if not chosen:
        return []
    found = model.segment_objects(image, boxes=[pair.targets[i].box for i in chosen])
    return [
        record | {"target": target}
        for record, target in zip(_records(pair, found), chosen, strict=True)
    ]


def promptable(target: Target, pair: Pair) -> bool:
    (x0, y0, x1, y1), (height, width) = target.box, pair.size
    inside = x0 < width and y0 < height and x1 > 0 and y1 > 0
    return not target.crowd and x0 < x1 and y0 < y1 and inside


def _records(pair: Pair, found: Instances) -> list[Record]:
    """Instances as COCO's result list has them."""
    masks: Iterable[Any] = found.rles if found.patches is not None else [None] * len(found)
    image, category = pair.key
    out = []
    for (x0, y0, x1, y1), score, mask in zip(
        found.boxes.tolist(), found.scores.tolist(), masks, strict=True
    ):
        record = {"image_id": image, "category_id": category, "score": score}
        record["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        out.append(record | ({} if mask is None else {"segmentation": mask}))
    return out

"""Reading annotation files and images, with errors that name the record."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ImageError
from ...types import Array
from ..errors import DataError


def read_json(path: str | Path) -> Any:
    """A JSON file.

    Raises:
        DataError: there is none, or it is cut short.
    """
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) is not whole JSON: {error}. It is cut short "
            "or damaged: get it again."
        ) from error


def read_image(path: Path, named_by: str) -> Array:
    """An image file -> (H, W, 3) uint8 RGB.

    Args:
        named_by: the record that names the file, for the error.
    """
    from ...pixels import read_rgb

    if not path.is_file():
        raise DataError(f"{named_by} names the image {path}, which is not there")
    try:
        return read_rgb(path).permute(1, 2, 0).numpy()
    except ImageError as error:
        raise DataError(f"{named_by}: {error}. Get the file again.") from error


def corners(box: Any, size: tuple[int, int], named_by: str, *, unit: bool = False) -> Array:
    """COCO's [x, y, width, height] -> (4,) float32 xyxy pixels, within the image.

    Args:
        size: height and width of the image. unit: the numbers are parts of the image.
    """
    try:
        x, y, w, h = (float(v) for v in box)
    except (TypeError, ValueError) as error:
        raise DataError(f"{named_by}: a box is [x, y, width, height]; got {box!r}") from error
    if w < 0 or h < 0 or not np.isfinite([x, y, w, h]).all():
        raise DataError(f"{named_by}: the box {box} has no size")
    height, width = size
    if unit:
        x, y, w, h = x * width, y * height, w * width, h * height
    out = np.array([x, y, x + w, y + h], np.float32)
    limits = np.array([width, height, width, height], np.float32)
    return np.clip(out, 0, limits)


def check_size(image: Array, record: Any, named_by: str) -> None:
    """The image has the size that its record says, if it says one."""
    if "height" not in record or "width" not in record:
        return
    said = int(record["height"]), int(record["width"])
    if said != image.shape[:2]:
        raise DataError(
            f"{named_by} says {said[1]} x {said[0]} pixels, but the image has "
            f"{image.shape[1]} x {image.shape[0]}: it was resized or is another one"
        )


def read_list(subset: str | Path | Iterable[str]) -> set[str]:
    """Names, one a line; ``#`` starts a comment."""
    if isinstance(subset, (str, Path)):
        path = Path(subset)
        if not path.is_file():
            raise DataError(f"there is no list of a subset at {path}")
        subset = path.read_text(encoding="utf-8").splitlines()
    names = {line.split("#")[0].strip() for line in subset} - {""}
    if not names:
        raise DataError("the list of the subset is empty: give one name a line")
    return names


def some(names: Iterable[str], most: int = 5) -> str:
    """The first few of many names, for an error."""
    names = sorted(names)
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

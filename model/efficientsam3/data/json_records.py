"""JSON files of records, checked with errors that name the file and the record."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AnnotationError, EfficientSam3Error, MaskError
from ..io.rle import MAX_PIXELS, box_of, from_segmentation, mask_size
from .types import Box, Record

MAX_NUMBER = 1e15
"""The largest number of pixels, or of square pixels, that a record may have."""


def read_json(path: str | Path, error: type[EfficientSam3Error] = AnnotationError) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        error: The class of error to raise.

    Returns:
        The content.

    Raises:
        error: The file is missing, is not JSON, or is cut short.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as missing:
        raise error(f"there is no file {path}") from missing
    except IsADirectoryError as folder:
        raise error(f"{path} is a folder; name a JSON file in it") from folder
    except RecursionError as nested:
        raise error(f"{path} has values that are nested too deeply") from nested
    except json.JSONDecodeError as broken:
        raise error(
            f"{path} is not JSON, or is cut short: {broken.msg} at line {broken.lineno}, column "
            f"{broken.colno} of {path.stat().st_size} bytes. Download or write it again"
        ) from broken
    except UnicodeDecodeError as binary:
        raise error(f"{path} is not JSON: {binary.reason} at byte {binary.start}") from binary
    except ValueError as number:  # Python converts no number of more than 4,300 digits
        raise error(f"{path} has a number that is too long: {number}") from number


def is_number(value: Any) -> bool:
    """Whether a value is a number that pixels, areas and scores can have.

    Args:
        value: A value of a JSON file, which may hold NaN and numbers of any size.
    """
    is_numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_numeric and abs(value) <= MAX_NUMBER  # also false for NaN


@dataclass(frozen=True)
class RecordTable:
    """A list of records in a JSON file.

    Attributes:
        path: The file.
        name: The name of the list in the file.
        rows: The records.
        error: The class of error that is raised for a wrong record.
    """

    path: Path
    name: str
    rows: list[Record]
    error: type[EfficientSam3Error] = AnnotationError

    @classmethod
    def of(cls, path: Path, content: Any, name: str, keys: Iterable[str] = ("id",)) -> RecordTable:
        """Take a list out of the content of a file.

        Args:
            path: The file, for errors.
            content: The content, an object of lists.
            name: The name of the list.
            keys: What every record must have.

        Raises:
            AnnotationError: There is no such list, or a record lacks a key.
        """
        if not isinstance(content, Mapping):
            raise AnnotationError(
                f"{path} holds a {type(content).__name__}, not an object of lists"
            )
        rows = content.get(name)
        if not isinstance(rows, list):
            raise AnnotationError(
                f"{path} has no list {name!r}; it has {', '.join(map(repr, content)) or 'nothing'}"
            )
        table = cls(path, name, rows)
        table.require(keys)
        return table

    def require(self, keys: Iterable[str]) -> None:
        """Refuse the table if a record is not an object or lacks one of ``keys``.

        Args:
            keys: Names of fields.
        """
        wanted = tuple(keys)
        for index, row in enumerate(self.rows):
            if not isinstance(row, dict):
                raise self.wrong(index, f"is a {type(row).__name__}, not an object")
            for key in wanted:
                if key not in row:
                    raise self.wrong(index, f"has no {key!r}; it has {', '.join(map(repr, row))}")

    def place(self, index: int) -> str:
        """Name the file and a record in it, for errors.

        Args:
            index: Which record.
        """
        row = self.rows[index]
        number = f" (id {row['id']!r})" if isinstance(row, dict) and "id" in row else ""
        return f"{self.path}: {self.name}[{index}]{number}"

    def wrong(self, index: int, sentence: str) -> EfficientSam3Error:
        """Make the error that a record is wrong; the caller raises it.

        Args:
            index: Which record.
            sentence: What is wrong, beginning with a verb.
        """
        return self.error(f"{self.place(index)} {sentence}")

    def by_id(self) -> dict[Any, int]:
        """Map the id of each record to its index; an id that occurs twice is an error."""
        out: dict[Any, int] = {}
        for index, row in enumerate(self.rows):
            number = row["id"]
            if not isinstance(number, (int, str)):
                raise self.wrong(index, "has an id that is neither a number nor text")
            if number in out:
                raise self.wrong(index, f"has the id of {self.name}[{out[number]}]")
            out[number] = index
        return out

    def group_by(self, key: str, ids: Iterable[Any], target: str) -> dict[Any, list[int]]:
        """Group the indices of records by the record of another list that they refer to.

        Args:
            key: The field that refers to it, such as "image_id".
            ids: The ids of the other list.
            target: The name of the other list, for errors.

        Returns:
            Indices by id, with an empty list for ids that no record refers to.
        """
        out: dict[Any, list[int]] = {number: [] for number in ids}
        for index, row in enumerate(self.rows):
            value = row[key]
            if not isinstance(value, (int, str)) or value not in out:
                raise self.wrong(index, f"has {key} {value!r}, which no record of {target} has")
            out[value].append(index)
        return out

    def size(self, index: int) -> tuple[int, int]:
        """Read the (height, width) of a record, in pixels.

        Args:
            index: Which record.
        """
        row = self.rows[index]
        height: Any = row.get("height")
        width: Any = row.get("width")
        if (
            not all(isinstance(n, int) and not isinstance(n, bool) for n in (height, width))
            or min(height, width) < 1
            or height * width > MAX_PIXELS
        ):
            raise self.wrong(
                index,
                f"has height {height!r:.20} and width {width!r:.20}; whole numbers from 1, with "
                f"at most {MAX_PIXELS:,} pixels",
            )
        return row["height"], row["width"]

    def text(self, index: int, key: str) -> str:
        """Read a text that is not empty, without white space around it.

        Args:
            index: Which record.
            key: The field.
        """
        value = self.rows[index][key]
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(index, f"has {key} {value!r}; it is a text that is not empty")
        return value.strip()

    def mask(self, index: int, value: Any, size: tuple[int, int], name: str) -> Record:
        """Read a mask in any of COCO's forms as compressed run lengths.

        Args:
            index: The record, for errors.
            value: Polygons or run lengths.
            size: (height, width) that the mask must have.
            name: What to call the mask in errors.
        """
        try:
            return from_segmentation(value, size)
        except MaskError as error:
            raise self.wrong(index, f"has a {name} that is wrong: {error}") from error

    def box(self, index: int, value: Any, name: str = "bbox") -> Box:
        """Turn COCO's [x, y, width, height] into (x0, y0, x1, y1).

        Args:
            index: The record, for errors.
            value: Four numbers.
            name: What to call the box in errors.
        """
        if (
            not isinstance(value, Sequence)
            or len(value) != 4
            or not all(is_number(v) for v in value)
            or min(value[2:]) < 0
        ):
            raise self.wrong(index, f"has {name} {value!r:.80}; it is [x, y, width, height]")
        x, y, w, h = (float(v) for v in value)
        return x, y, x + w, y + h

    def boxes_are_relative(self) -> bool:
        """Decide whether boxes are parts of the image (SA-Co's files) or pixels (COCO's).

        They are parts of the image if no number of any box is above 1, up to rounding, unless one
        is the extent of its mask in pixels: masks of one pixel have such boxes too.
        """
        rows = [row for row in self.rows if isinstance(row.get("bbox"), list)]
        small = bool(rows) and all(
            isinstance(v, (int, float)) and v <= 1.001 for row in rows for v in row["bbox"]
        )
        return small and not any(_is_extent(row) for row in rows)

    def box_in_pixels(self, index: int, size: tuple[int, int], relative: bool) -> Box:
        """Read the box of a record.

        Args:
            index: The record.
            size: (height, width) of the image.
            relative: Whether the numbers are parts of the image, see ``boxes_are_relative``.
        """
        x0, y0, x1, y1 = self.box(index, self.rows[index]["bbox"])
        height, width = size if relative else (1, 1)
        return x0 * width, y0 * height, x1 * width, y1 * height

    def score(self, index: int) -> float:
        """Read the score of a prediction, a finite number.

        Args:
            index: Which record.
        """
        return self.number(index, "score")

    def number(self, index: int, key: str) -> float:
        """Read a number that pixels, areas and scores can have.

        Args:
            index: Which record.
            key: The field.
        """
        value = self.rows[index][key]
        if not is_number(value):
            raise self.wrong(index, f"has {key} {value!r:.80}; it is a finite number")
        return float(value)


def _is_extent(row: Record) -> bool:
    """Whether a box is the extent of the record's mask in pixels, and not the whole image."""
    shape = row.get("segmentation")
    if not isinstance(shape, Mapping) or any(v not in (0, 1) for v in row["bbox"]):
        return False
    try:
        x0, y0, x1, y1 = box_of(shape)
        height, width = mask_size(shape)
    except MaskError:
        return False
    return (height > 1 or width > 1) and row["bbox"] == [x0, y0, x1 - x0, y1 - y0]

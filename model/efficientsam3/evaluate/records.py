"""JSON files of records, read so that what is wrong is said with the file and the record."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import EfficientSam3Error
from ..rle import compress
from .errors import AnnotationError

Record = dict[str, Any]
Box = tuple[float, float, float, float]


def read_json(path: Path, error: type[EfficientSam3Error] = AnnotationError) -> Any:
    """What a JSON file holds.

    Raises:
        error: there is no such file, or it is no JSON, or cut short.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError as missing:
        raise error(f"there is no file {path}") from missing
    except IsADirectoryError as folder:
        raise error(f"{path} is a folder; name a JSON file in it") from folder
    except json.JSONDecodeError as broken:
        raise error(
            f"{path} is no JSON, or cut short: {broken.msg} at line {broken.lineno}, column "
            f"{broken.colno} of {path.stat().st_size} bytes. Download or write it again"
        ) from broken
    except UnicodeDecodeError as binary:
        raise error(f"{path} is no JSON: {binary.reason} at byte {binary.start}") from binary


@dataclass(frozen=True)
class Table:
    """The list ``name`` of a file, whose rows are records.

    error: what is raised if one is wrong.
    """

    path: Path
    name: str
    rows: list[Record]
    error: type[EfficientSam3Error] = AnnotationError

    @classmethod
    def of(cls, path: Path, content: Any, name: str, keys: Iterable[str] = ("id",)) -> Table:
        """The list ``name`` of a file's content; each record has all of ``keys``."""
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
        table.need(keys)
        return table

    def need(self, keys: Iterable[str]) -> None:
        """Refuse records that lack one of ``keys``."""
        wanted = tuple(keys)
        for index, row in enumerate(self.rows):
            if not isinstance(row, dict):
                raise self.wrong(index, f"is a {type(row).__name__}, not an object")
            for key in wanted:
                if key not in row:
                    raise self.wrong(index, f"has no {key!r}; it has {', '.join(map(repr, row))}")

    def wrong(self, index: int, sentence: str) -> EfficientSam3Error:
        """The error that record ``index`` is wrong, to be raised."""
        row = self.rows[index]
        number = f" (id {row['id']!r})" if isinstance(row, dict) and "id" in row else ""
        return self.error(f"{self.path}: {self.name}[{index}]{number} {sentence}")

    def by_id(self) -> dict[Any, int]:
        """Index of each record by its id; an id that comes twice is an error."""
        out: dict[Any, int] = {}
        for index, row in enumerate(self.rows):
            number = row["id"]
            if not isinstance(number, (int, str)):
                raise self.wrong(index, "has an id that is neither a number nor text")
            if number in out:
                raise self.wrong(index, f"has the id of {self.name}[{out[number]}]")
            out[number] = index
        return out

    def known(self, key: str, ids: Mapping[Any, Any], target: str) -> None:
        """Refuse records whose ``key`` is not among ``ids``, those of the list ``target``."""
        for index, row in enumerate(self.rows):
            value = row[key]
            if not isinstance(value, (int, str)) or value not in ids:
                raise self.wrong(index, f"has {key} {value!r}, which no record of {target} has")

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of a record."""
        row = self.rows[index]
        height, width = row.get("height"), row.get("width")
        if not all(isinstance(n, int) and n > 0 for n in (height, width)):
            raise self.wrong(index, f"has height {height!r} and width {width!r}; pixels, from 1")
        return row["height"], row["width"]

    def text(self, index: int, key: str) -> str:
        """A text that is not empty, without white space around it."""
        value = self.rows[index][key]
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(index, f"has {key} {value!r}; it is a text that is not empty")
        return value.strip()

    def mask(self, index: int, value: Any, size: tuple[int, int], name: str) -> Record:
        """A mask of ``size`` in any of COCO's forms, as compressed run lengths."""
        try:
            rle = _polygons(value, size) if isinstance(value, list) else compress(value)
        except EfficientSam3Error as error:
            raise self.wrong(index, f"has a {name} that is wrong: {error}") from error
        if tuple(rle["size"]) != size:
            h, w = rle["size"]
            raise self.wrong(
                index,
                f"has a {name} of {h} x {w}, but its picture is {size[0]} x {size[1]} "
                "(height x width)",
            )
        return rle

    def box(self, index: int, value: Any, name: str = "bbox") -> Box:
        """[x, y, width, height] -> x0, y0, x1, y1."""
        if (
            not isinstance(value, Sequence)
            or len(value) != 4
            or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
            or min(value[2:]) < 0
        ):
            raise self.wrong(index, f"has {name} {value!r}; it is [x, y, width, height]")
        x, y, w, h = (float(v) for v in value)
        return x, y, x + w, y + h

    def score(self, index: int) -> float:
        """The score of a prediction."""
        value = self.rows[index]["score"]
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.wrong(index, f"has score {value!r}; it is a number in [0, 1]")
        return float(value)


def _polygons(value: list[Any], size: tuple[int, int]) -> Record:
    from pycocotools import mask as coco

    for polygon in value:
        if (
            not isinstance(polygon, list)
            or len(polygon) % 2
            or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in polygon)
        ):
            raise EfficientSam3Error("a polygon is [x, y, x, y, ...] in pixels")
    # COCO has a few of one or two corners beside the true ones; they have no area.
    whole = [polygon for polygon in value if len(polygon) >= 6]
    if not whole:
        raise EfficientSam3Error("it has no polygon of three corners or more")
    merged: Record = coco.merge(coco.frPyObjects(whole, *size))
    return merged


def has_magic(name: str) -> bool:
    """Whether a name is a pattern."""
    import glob

    return glob.has_magic(name) and not Path(name).exists()


def find_files(names: Iterable[str | Path], error: Callable[[str], Exception]) -> list[Path]:
    """Files by names and patterns, each once, in the order of the names."""
    import glob

    found: dict[Path, None] = {}
    for name in map(str, names):
        if has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise error(f"no file matches {name}")
            found.update((Path(match), None) for match in matches)
        else:
            found[Path(name)] = None
    if not found:
        raise error("name at least one file")
    return list(found)

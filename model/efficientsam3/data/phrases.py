"""Phrases to train text encoders on, from lists, annotation files and tables of captions."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from ..errors import DataError
from .coco import category_phrases
from .json_records import RecordTable, read_json
from .name_lists import read_lines


def read_phrases(path: str | Path, column: str = "re_caption") -> Sequence[str]:
    """Read the phrases of a file; its suffix says how.

    Args:
        path: ``.txt``, one phrase a line; ``.json`` of SA-Co, of upstream's ``text_annotations``,
            of COCO's or LVIS's categories, or a plain list; ``.parquet``, or a folder of such
            files, as Recap-DataComp-1B has.
        column: The column of a parquet file.

    Returns:
        Phrases, each once, except those of parquet files, which are read when asked for.

    Raises:
        DataError: The file is empty, cut short, or of another format.
    """
    path = Path(path)
    if path.is_dir():
        return ParquetPhrases(sorted(path.glob("**/*.parquet")), column, str(path))
    if path.suffix == ".parquet":
        return ParquetPhrases([path], column, str(path))
    if path.suffix == ".json":
        phrases = _from_json(read_json(path), path)
    elif path.suffix == ".txt":
        phrases = read_lines(path)
    else:
        raise DataError(f"{path}: phrases are read from .txt, .json and .parquet")
    return unique(phrases, str(path))


def unique(phrases: Iterable[str], name: str) -> list[str]:
    """Remove empty and repeated phrases.

    Args:
        phrases: The phrases.
        name: Where they are from, for errors.

    Raises:
        DataError: No phrase is left.
    """
    out = list(dict.fromkeys(p for phrase in phrases if (p := phrase.strip())))
    if not out:
        raise DataError(f"{name} has no phrases")
    return out


_TEXT_KEYS = ("text_input", "text", "phrase", "caption", "prompt")


def _from_json(content: Any, path: Path) -> list[str]:
    records = content
    if isinstance(content, dict):
        if "text_annotations" in content:
            records = content["text_annotations"]
        elif _has_phrases(content.get("images")):
            records = content["images"]
        elif "categories" in content:
            categories = RecordTable.of(path, content, "categories", ("name",))
            return list(itertools.chain.from_iterable(category_phrases(categories)))
    if not isinstance(records, list):
        raise DataError(
            f"{path} holds no phrases: expected SA-Co's 'images' with 'text_input', "
            "'text_annotations', 'categories', or a list"
        )
    return [_text(record, path) for record in records]


def _has_phrases(images: Any) -> bool:
    """Whether a list of images is one of SA-Co's pairs."""
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and "text_input" in first


def _text(record: Any, path: Path) -> str:
    if isinstance(record, str):
        return record
    if isinstance(record, dict):
        for key in _TEXT_KEYS:
            if isinstance(record.get(key), str):
                return str(record[key])
    raise DataError(
        f"{path}: a record has no phrase under {', '.join(_TEXT_KEYS)}; got {record!r:.100}"
    )


class ParquetPhrases(Sequence[str]):
    """A column of text in parquet files.

    Args:
        paths: The files, in order.
        column: The column; rows without text are skipped.
        name: What to call the files in errors.

    Raises:
        DataError: pyarrow is not installed, there are no files, or a file is cut short or lacks the
            column.
    """

    def __init__(self, paths: Sequence[Path], column: str = "re_caption", name: str = "") -> None:
        if not paths:
            raise DataError(f"{name or 'the list'} has no .parquet file")
        self.column, self._columns = column, []
        for path in paths:
            self._columns.append(_read_column(path, column))
        self._starts = list(itertools.accumulate((len(c) for c in self._columns), initial=0))
        if not len(self):
            raise DataError(f"{name or paths[0]} has no text in column {column!r}")

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = bisect.bisect_right(self._starts, index) - 1
        return str(self._columns[part][index - self._starts[part]].as_py())


def _read_column(path: Path, column: str) -> Any:
    try:
        import pyarrow as arrow
        from pyarrow import compute, parquet
    except ImportError as error:
        raise DataError(
            f"{path.name} needs pyarrow: pip install 'efficientsam3[train]', or pyarrow alone"
        ) from error
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if column not in names:
            raise DataError(f"{path} has no column {column!r}; it has {', '.join(names)}")
        values = file.read([column])[column]
        values.validate(full=True)  # text that is not UTF-8 is an error here
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) is not parquet, or is cut short: {error}. "
            "Download it again."
        ) from error
    if not (arrow.types.is_string(values.type) or arrow.types.is_large_string(values.type)):
        raise DataError(f"{path}: column {column!r} has values of type {values.type}, not text")
    trimmed = compute.utf8_trim_whitespace(values)
    return trimmed.filter(compute.greater(compute.utf8_length(trimmed), 0))

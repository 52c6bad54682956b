"""Sources of phrases for text encoders: lists, annotation files, caption tables."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from ..errors import DataError
from .files import read_json


def read_phrases(path: str | Path, column: str = "re_caption") -> Sequence[str]:
    """Phrases of a file, by its ending.

    Args:
        path: ``.txt``, one a line; ``.json`` of SA-Co, of upstream's ``text_annotations``, of
            COCO or LVIS categories, or a plain list; ``.parquet``, or a folder of them, such
            as Recap-DataComp-1B.
        column: of a parquet file.

    Raises:
        DataError: a file that is empty, cut short, or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        return ParquetPhrases(sorted(path.glob("**/*.parquet")), column, str(path))
    if path.suffix == ".parquet":
        return ParquetPhrases([path], column, str(path))
    if path.suffix == ".json":
        phrases = _from_json(read_json(path), path)
    elif path.suffix == ".txt":
        if not path.is_file():
            raise DataError(f"there is no file {path}")
        phrases = path.read_text(encoding="utf-8").splitlines()
    else:
        raise DataError(f"{path}: phrases are read from .txt, .json and .parquet")
    return unique(phrases, str(path))


def unique(phrases: Iterable[str], name: str) -> list[str]:
    """Phrases without empty ones and repeats.

    Raises:
        DataError: none is left.
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
        elif any("text_input" in r for r in content.get("images", ())[:1]):
            records = content["images"]
        elif "categories" in content:
            return _names(content["categories"])
    if not isinstance(records, list):
        raise DataError(
            f"{path} holds no phrases: expected SA-Co's 'images' with 'text_input', "
            "'text_annotations', 'categories', or a list"
        )
    return [_text(record, path) for record in records]


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


def _names(categories: list[dict[str, Any]]) -> list[str]:
    from .coco import plain

    names = [[c["name"], *c.get("synonyms", ())] for c in categories]
    return [plain(name) for name in itertools.chain.from_iterable(names)]


class ParquetPhrases(Sequence[str]):
    """A column of text of parquet files, read a row group at a time.

    Args:
        paths: in order. column: of text; rows without text are skipped. name: for errors.

    Raises:
        DataError: pyarrow is missing; no files; a file that is cut short or lacks the column.
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
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} ({path.stat().st_size:,} bytes) is not whole parquet: {error}. Get it again."
        ) from error
    if not (arrow.types.is_string(values.type) or arrow.types.is_large_string(values.type)):
        raise DataError(f"{path}: column {column!r} is of {values.type}, not of text")
    trimmed = compute.utf8_trim_whitespace(values)
    return trimmed.filter(compute.greater(compute.utf8_length(trimmed), 0))

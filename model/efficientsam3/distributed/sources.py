"""What is annotated, cut into partitions before anything is run.

The partitions of a source depend on its files and on ``rows`` alone, so that a later command cuts
in the same places. Image files and paths in Parquet are cut into equal numbers of rows; images in
Parquet too, within each file; a tar file is one partition, since its content is known only when it
is read to the end. A video is one partition, since its frames are tracked one after another.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from ..errors import ArgumentError, DataError
from ..io.paths import describe_passed_over, is_image_file, is_video_file
from .stores import FileEntry, absolute, import_pyarrow, is_uri, join, list_files, open_file

ROWS = 256
"""Images of a partition."""
LISTING_THREADS = 16
NAMES = {
    "parquet": "Parquet files",
    "tar": "tar files",
    "files": "images",
    "video": "videos",
}
"""Kinds of sources, as messages call them."""

logger = logging.getLogger(__name__)


class Columns(NamedTuple):
    """Where a Parquet file or a tar file has what is read of a row.

    Attributes:
        image: Column of Parquet with images as bytes or as paths.
        key: Column of Parquet with the keys of rows; None: paths, or the file and the row.
        concepts: Column of Parquet, or field of the JSON file beside the image in a tar, with the
            concepts of a row; of a tar "txt" too, the lines of the text beside the image. None:
            all rows have the same.
    """

    image: str = "image"
    key: str | None = None
    concepts: str | None = None


DEFAULT_COLUMNS = Columns()


@dataclass(frozen=True)
class Partition:
    """A part of the work, of which the results are written together.

    Attributes:
        number: From 0.
        kind: "files": ``rows`` has the images. "parquet": rows ``start`` to ``stop`` of ``file``.
            "tar" and "video": all of ``file``.
        rows: Key, place and concepts of each image; the place is None where it is missing.
        file: Path or URI of the file that holds the images.
        start: First row.
        stop: Row after the last.
        columns: Where the file has what is read.
    """

    number: int
    kind: str
    rows: list[tuple[str, str | None, Any]] = field(default_factory=list)
    file: str = ""
    start: int = 0
    stop: int = 0
    columns: Columns = DEFAULT_COLUMNS

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.kind == "files":
            return f"partition {self.number} (from {self.rows[0][0]})"
        rows = f", rows {self.start} to {self.stop - 1}" if self.kind == "parquet" else ""
        return f"partition {self.number} ({self.file}{rows})"


class Plan:
    """All partitions of a source.

    Args:
        kind: As in ``Partition``.
        files: The files of the source.
        columns: Where they have what is read.
        parts: Of each partition: Arrow columns of keys, places and concepts; the file and its first
            and last row; or the file.

    Attributes:
        kind: As in ``Partition``.
        identity: Plain values that differ once a file of the source changes.
        images: Number of images; None where it is not known before they are read.
    """

    def __init__(
        self, kind: str, files: Sequence[FileEntry], columns: Columns, parts: Sequence[Any]
    ) -> None:
        self.kind, self._columns, self._parts = kind, columns, parts
        self.identity = _identity(files)
        self.images: int | None = None
        if kind == "files":
            self.images = sum(len(part[0]) for part in parts)
        elif kind == "parquet":
            self.images = sum(stop - start for _, start, stop in parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> Partition:
        part = self._parts[number]
        if self.kind == "files":
            columns = [column.to_pylist() for column in part]
            return Partition(number, self.kind, rows=list(zip(*columns, strict=True)))
        if self.kind == "parquet":
            name, start, stop = part
            return Partition(
                number, self.kind, file=name, start=start, stop=stop, columns=self._columns
            )
        return Partition(number, self.kind, file=part, columns=self._columns)


def make_plan(
    sources: Sequence[str],
    *,
    out: str,
    rows: int = ROWS,
    columns: Columns = DEFAULT_COLUMNS,
) -> Plan:
    """List the files of sources, and cut their images into partitions.

    Args:
        sources: Image files, folders and patterns of them; or videos; or Parquet files; or tar
            files in the form of WebDataset. As paths or URIs.
        out: The folder of the results, which is left out.
        rows: Images of a partition.
        columns: Where Parquet and tar files have what is read.

    Raises:
        ArgumentError: ``rows`` is less than 1, or a column is asked of files that have none.
        DataError: There is nothing, files of several kinds, or Parquet without the column.
    """
    if not isinstance(rows, int) or rows < 1:
        raise ArgumentError(f"a partition has at least 1 row; got {rows}")
    found: dict[str, FileEntry] = {}
    results = absolute(out).rstrip("/") + "/"
    for source in sources:
        for file in list_files(source):
            if not file.name.startswith(results):
                found.setdefault(file.name, file)
    kind, files = _choose_kind(list(found.values()), sources)
    if kind in ("files", "video"):
        for name, value in zip(columns._fields, columns, strict=True):
            if value not in (None, "image"):
                raise ArgumentError(
                    f"{NAMES[kind]} have no columns, so no column {value!r} for the {name}: name a "
                    "Parquet file or tar files as the source"
                )
    if kind == "files":
        return Plan(kind, files, columns, _cut_files([f.name for f in files], rows))
    if kind in ("tar", "video"):
        return Plan(kind, files, columns, [file.name for file in files])
    return _plan_parquet(files, rows, columns)


def _choose_kind(files: Sequence[FileEntry], sources: Sequence[str]) -> tuple[str, list[FileEntry]]:
    kinds: dict[str, list[FileEntry]] = {kind: [] for kind in NAMES}
    others = []
    for file in files:
        path = _as_path(file.name)
        if path.suffix.lower() in (".parquet", ".tar"):
            kinds[path.suffix.lower()[1:]].append(file)
        elif is_image_file(path):
            kinds["files"].append(file)
        elif is_video_file(path):
            kinds["video"].append(file)
        else:
            others.append(path)
    present = {kind: found for kind, found in kinds.items() if found}
    if len(present) > 1:
        counts = " and ".join(
            f"{len(found)} {NAMES[kind] if len(found) > 1 else NAMES[kind].removesuffix('s')}"
            for kind, found in present.items()
        )
        raise DataError(
            f"{', '.join(sources)} has {counts}: name one kind with a pattern, such as '*.jpg'"
        )
    passed_over = describe_passed_over(others)
    if not present:
        raise DataError(
            f"no images, videos, Parquet files or tar files in {', '.join(sources)}"
            + (passed_over and f": {passed_over}")
        )
    if passed_over:
        logger.warning("%s", passed_over)
    ((kind, found),) = present.items()
    return kind, found


def _as_path(name: str) -> Any:
    return PurePosixPath(name.partition("?")[0] if is_uri(name) else name.replace("\\", "/"))


def _identity(files: Sequence[FileEntry]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.bytes} {file.time}\n".encode("utf-8", "surrogateescape"))
    return {
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "digest": digest.hexdigest()[:16],
    }


def _cut_files(names: Sequence[str], rows: int) -> list[Any]:
    """Columns of each partition. Arrow holds texts in a fraction of the memory of Python."""
    arrow = import_pyarrow("")
    places = arrow.chunked_array([arrow.array(names, arrow.string())])
    nothing = arrow.nulls(len(names), arrow.string())
    return _cut([places, places, arrow.chunked_array([nothing])], rows)


def _cut(columns: Sequence[Any], rows: int) -> list[Any]:
    count = len(columns[0])
    return [
        tuple(column.slice(start, rows) for column in columns) for start in range(0, count, rows)
    ]


# Parquet -------------------------------------------------------------------------------------


def _plan_parquet(files: Sequence[FileEntry], rows: int, columns: Columns) -> Plan:
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        footers = list(pool.map(lambda file: _read_footer(file.name, columns), files))
    holds_paths = {footer[1] for footer in footers}
    if len(holds_paths) > 1:
        raise DataError(
            f"the column {columns.image!r} has bytes in some of the Parquet files and paths in "
            "others: annotate them by two commands"
        )
    if not holds_paths.pop():
        parts = [
            (file.name, start, min(start + rows, count))
            for file, (count, _) in zip(files, footers, strict=True)
            for start in range(0, count, rows)
        ]
        return Plan("parquet", files, columns, _not_empty(parts, files))
    arrow = import_pyarrow("")
    tables = [_read_paths(file.name, columns) for file in files]
    together = [
        arrow.chunked_array([c for t in tables for c in t[i].chunks], type=tables[0][i].type)
        for i in range(3)
    ]
    return Plan("files", files, columns, _not_empty(_cut(together, rows), files))


def _not_empty(parts: list[Any], files: Sequence[FileEntry]) -> list[Any]:
    if not parts:
        raise DataError(f"{files[0].name} has no rows")
    return parts


def _read_footer(name: str, columns: Columns) -> tuple[int, bool]:
    """The number of rows, and whether the column of images has paths."""
    types = import_pyarrow("types")
    with open_parquet(name) as file:
        schema = file.schema_arrow
        for column in columns:
            if column is not None and column not in schema.names:
                raise DataError(
                    f"{name} has no column {column!r}; it has {', '.join(schema.names)}"
                )
        kind = schema.field(columns.image).type
        if types.is_struct(kind):  # as the package datasets stores images
            if "bytes" not in {kind.field(i).name for i in range(kind.num_fields)}:
                raise DataError(f"the column {columns.image!r} of {name} has no field 'bytes'")
        elif not (
            types.is_binary(kind)
            or types.is_large_binary(kind)
            or types.is_string(kind)
            or types.is_large_string(kind)
        ):
            raise DataError(
                f"the column {columns.image!r} of {name} is of type {kind}; images are bytes or "
                "paths"
            )
        return file.metadata.num_rows, types.is_string(kind) or types.is_large_string(kind)


def open_parquet(name: str) -> Any:
    """Open a Parquet file.

    Args:
        name: Path or URI.

    Raises:
        DataError: It is damaged, or is none.
    """
    parquet, arrow = import_pyarrow("parquet"), import_pyarrow("")
    try:
        return parquet.ParquetFile(open_file(name), pre_buffer=False)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}") from error


def _read_paths(name: str, columns: Columns) -> list[Any]:
    """Keys, places and concepts of all rows; places are relative to the folder of the file."""
    arrow = import_pyarrow("")
    wanted = list(dict.fromkeys(c for c in columns if c is not None))
    with open_parquet(name) as file:
        try:
            table = file.read(wanted)
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{name} cannot be read as Parquet: {error}") from error
    folder = name.rpartition("/")[0]
    places = table[columns.image].to_pylist()
    texts = [None if place is None else _resolve(place, folder) for place in places]
    resolved = arrow.chunked_array([arrow.array(texts, arrow.string())])
    if columns.key is None:
        named = [text or f"{name}#row={row}" for row, text in enumerate(texts)]
        keys = arrow.chunked_array([arrow.array(named, arrow.string())])
    else:
        keys = table[columns.key].cast(arrow.string())
    if columns.concepts is None:
        concepts = arrow.chunked_array([arrow.nulls(len(table), arrow.string())])
    else:
        concepts = table[columns.concepts]
    return [keys, resolved, concepts]


def _resolve(place: str, folder: str) -> str:
    return place if is_uri(place) or place.startswith("/") else join(folder, place)

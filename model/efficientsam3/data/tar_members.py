"""Files in tars, read in any order without unpacking them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..errors import DataError
from ..io.paths import walk_files
from .json_records import read_json


class TarMember(NamedTuple):
    """A file in a tar that is not compressed.

    Attributes:
        tar: The tar.
        path: The file's path in the tar.
        start: Its first byte in the tar.
        size: Its bytes.
    """

    tar: Path
    path: str
    start: int
    size: int

    @property
    def name(self) -> str:
        """The file's name without folders."""
        return PurePosixPath(self.path).name

    @property
    def parts(self) -> tuple[str, ...]:
        """As of a path in a folder of the tar's name."""
        return (*self.tar.parent.parts, self.tar.stem, *PurePosixPath(self.path).parts)

    def __str__(self) -> str:
        return f"{self.tar}:{self.path}"

    def read(self) -> bytes:
        """The content.

        Raises:
            DataError: The tar is cut short, or cannot be read.
        """
        try:
            with self.tar.open("rb") as file:
                file.seek(self.start)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self} cannot be read: {error}") from error
        if len(content) < self.size:
            raise DataError(f"{self.tar} is cut short in {self.path}: download it again")
        return content


Place = Path | TarMember
"""Where a file is: in a folder or in a tar."""


def find_tars(root: Path) -> list[Path]:
    """The tars below a folder, in order.

    Args:
        root: The folder.
    """
    return sorted(p for p in walk_files(root, follow_links=True) if p.suffix == ".tar")


def file_of(place: Place) -> Path:
    """The file on disk: the file itself, or its tar.

    Args:
        place: Where the file is.
    """
    return place.tar if isinstance(place, TarMember) else place


def read_json_of(place: Place) -> Any:
    """Read a JSON file.

    Args:
        place: Where the file is.

    Raises:
        DataError: It is not JSON, or cannot be read.
    """
    if not isinstance(place, TarMember):
        return read_json(place)
    try:
        return json.loads(place.read())
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}; download the tar again") from error


def list_members(tar: Path) -> Iterator[TarMember]:
    """The files of a tar. Its headers alone are read.

    Args:
        tar: The tar; not compressed.

    Raises:
        DataError: It is no tar, is compressed, cut short or damaged.
    """
    try:
        length, end = tar.stat().st_size, 0
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                end = member.offset_data + member.size
                if member.isfile():
                    yield TarMember(tar, member.name, member.offset_data, member.size)
        if end + tarfile.BLOCKSIZE > length:  # a whole tar ends with empty blocks
            raise DataError(f"{tar} is cut short: download it again")
    except (tarfile.TarError, OSError) as error:
        raise DataError(
            f"{tar} cannot be read as a tar ({error}): download it again, or unpack it if it is "
            "compressed"
        ) from error

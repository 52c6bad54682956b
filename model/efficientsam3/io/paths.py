"""Finding files, images among them, by names, folders and patterns."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ..errors import EfficientSam3Error
from .heif import HEIF_SUFFIXES, INSTALL, heif_package

logger = logging.getLogger(__name__)

NO_PICTURES = frozenset(
    {".mpg", ".mpeg", ".bufr", ".grib", ".h5", ".hdf", ".wmf", ".emf", ".eps", ".ps", ".iim"}
)
"""Suffixes that Pillow registers and that are not taken for images: videos, data of other fields,
drawings, and PostScript, for which Pillow starts another program."""

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)
"""Suffixes of video files."""

ENDINGS = "their names end in .avif .bmp .gif .jpg .png .tif .webp, or in what else Pillow reads"
"""For messages about folders without images."""


def image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case, of the files in a folder that are images: what Pillow decodes.

    HEIC is among them where pi-heif or pillow-heif is installed.
    """
    return _image_suffixes(len(Image.registered_extensions()), heif_package() is not None)


@lru_cache
def _image_suffixes(registered: int, heif: bool) -> frozenset[str]:
    found = {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
    return frozenset((found - NO_PICTURES) | {".mpo"} | (HEIF_SUFFIXES if heif else set()))


def is_image_file(path: Path) -> bool:
    """Whether a file is an image by its name.

    Args:
        path: The file; hidden files are no images.
    """
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")


def is_video_file(path: Path) -> bool:
    """Whether a file is a video by its name.

    Args:
        path: The file; hidden files are no videos.
    """
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")


def describe_passed_over(paths: Iterable[Path]) -> str:
    """Count the files that are no images by their names, by suffix.

    Args:
        paths: Files, of which images and hidden files are not counted.

    Returns:
        Such as "3 files are passed over, because Pillow does not read them: 2 .cr2, 1 .txt"; ""
        where there are none.
    """
    others = [p for p in paths if not p.name.startswith(".") and not is_image_file(p)]
    is_heic = any(path.suffix.lower() in HEIF_SUFFIXES for path in others)
    return _describe_others(others, "Pillow does not read", f" (HEIC: {INSTALL})" * is_heic)


def describe_unnamed(folders: Iterable[Path], named: Iterable[Path]) -> str:
    """Count the files below folders that annotations do not name, by suffix.

    Args:
        folders: The folders of images.
        named: The files that annotations name.

    Returns:
        Such as "3 files are passed over, because the annotations do not name them: 2 .heic, 1
        .jpg"; "" where there are none.
    """
    known = {os.path.abspath(path) for path in named}
    found = {os.path.abspath(path) for folder in folders for path in walk_files(folder)}
    return _describe_others(map(Path, found - known), "the annotations do not name")


def log_unnamed(folders: Iterable[Path], named: Iterable[Path]) -> None:
    """Log how many files below folders annotations do not name, if there are any.

    Args:
        folders: The folders of images.
        named: The files that annotations name, and their own.
    """
    folders = list(folders)
    if others := describe_unnamed(folders, named):
        logger.warning("%s: %s", ", ".join(map(str, folders)), others)


def _describe_others(paths: Iterable[Path], reason: str, note: str = "") -> str:
    others = Counter(path.suffix.lower() or "without a suffix" for path in paths)
    if not others:
        return ""
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    total = others.total()
    what, it = ("1 file is", "it") if total == 1 else (f"{total} files are", "them")
    return f"{what} passed over, because {reason} {it}: {listed}{note}"


def walk_files(folder: Path, *, follow_links: bool = False) -> Iterator[Path]:
    """Find all files below a folder, at any depth, except hidden ones.

    Args:
        folder: The folder; one that does not exist has no files.
        follow_links: Whether symbolic links to folders are followed.

    Yields:
        Paths, in the order of the file system.
    """
    for here, folders, names in os.walk(folder, followlinks=follow_links):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(here, name) for name in names if not name.startswith("."))


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern, and not the name of an existing file.

    Args:
        name: Such as ``*.json``.
    """
    return glob.has_magic(name) and not Path(name).exists()


def find_files(names: Iterable[str | Path], error: type[EfficientSam3Error]) -> list[Path]:
    """Find files by names and patterns.

    Args:
        names: Names, which are taken as they are, and patterns; ``**`` matches any depth.
        error: The class of error to raise.

    Returns:
        Each file once, in the order of the names; the matches of a pattern in alphabetical order.

    Raises:
        error: A pattern matches nothing, or there are no names.
    """
    found: dict[Path, None] = {}
    for name in map(str, names):
        if is_pattern(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise error(f"no file matches {name}")
            found.update((Path(match), None) for match in matches)
        else:
            found[Path(name)] = None
    if not found:
        raise error("name at least one file")
    return list(found)


def natural_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by name, with numbers by their value: ``2.jpg`` before ``10.jpg``.

    Args:
        paths: The paths.
    """

    def key(path: Path) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", str(path))
        return [(0, int(p)) if p.isdecimal() and p.isascii() else (1, p.casefold()) for p in parts]

    return sorted(paths, key=lambda path: (key(path), str(path)))

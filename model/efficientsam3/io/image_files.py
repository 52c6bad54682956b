"""Finding image files, and the pages of them, by files, folders and patterns."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError
from .pages import count_several
from .paths import ENDINGS, describe_passed_over, is_image_file, walk_files

PAGES = ("first", "all")
"""Which pages of a file are taken."""
RESULTS = ("overlays", "masks", "instances.json", "run.jsonl", "run.jsonl.previous")
"""Names in a folder of results that are not looked at."""

logger = logging.getLogger(__name__)


class ImageFile(NamedTuple):
    """An image file that was found, or a page of one.

    Attributes:
        path: Absolute path.
        folder: Absolute path of the folder that names of results are relative to.
        page: Number of the page, from 1.
    """

    path: Path
    folder: Path
    page: int = 1

    @property
    def key(self) -> str:
        """The path, with the number of the page from the second on: ``scan.tif#page=2``.

        The name of a page does not depend on how many pages there are.
        """
        return f"{self.path}#page={self.page}" if self.page > 1 else str(self.path)


def find_images(
    sources: Iterable[str | Path], out: str | Path, *, pages: str = "first"
) -> list[ImageFile]:
    """Find images by files, folders and patterns; each once, sorted by path.

    A warning counts the files that are passed over, by suffix.

    Args:
        sources: Image files, folders (with all folders below them; hidden ones are left out), and
            patterns such as ``"photos/*.jpg"``.
        out: Folder of the results. Images that an earlier run wrote there are left out.
        pages: "first": the first page of each file. "all": each page of a TIFF and each frame of an
            animation is an image of its own.

    Raises:
        ImageError: a source does not exist or has no name, there is no image in any of them, or
            ``pages`` is another value.
    """
    if pages not in PAGES:
        raise ImageError(f"pages is {' or '.join(map(repr, PAGES))}; got {pages!r}")
    names = [str(source) for source in sources]
    results = absolute(Path(out))
    written = [results / name for name in RESULTS]
    found: dict[Path, ImageFile] = {}
    others: set[Path] = set()
    for name in names:
        for path, folder in _matches(name):
            files = walk_files(path) if path.is_dir() else [path]
            for file in files:
                if any(file.is_relative_to(result) for result in written):
                    continue
                if file == path or is_image_file(file):
                    found.setdefault(file, ImageFile(file, folder))
                else:
                    others.add(file)
    unmatched = {file for name in names for file in _unmatched(name)}
    others |= {f for f in unmatched if not any(f.is_relative_to(result) for result in written)}
    passed_over = describe_passed_over(others)
    if not found:
        reason = passed_over or ENDINGS
        raise ImageError(f"no images in {', '.join(names)}: {reason}")
    if passed_over:
        logger.warning("%s", passed_over)
    images = [found[path] for path in sorted(found)]
    if pages == "all":
        return [image._replace(page=n) for image in images for n in _page_numbers(image.path)]
    return images


def _page_numbers(path: Path) -> range:
    """Numbers of the pages of a file, from 1; one where it cannot be read."""
    try:
        return range(1, count_several(path) + 1)
    except ImageError:  # reported when the image is segmented
        return range(1, 2)


def _unmatched(source: str) -> list[Path]:
    """Files that match a pattern and are no images by their names."""
    path = Path(source).expanduser()
    if path.exists() or not glob.has_magic(source):
        return []
    names = (Path(name) for name in glob.glob(str(path), recursive=True))
    return [absolute(name) for name in names if name.is_file() and not is_image_file(name)]


def _matches(source: str) -> list[tuple[Path, Path]]:
    """The paths that a source names, each with the folder that result names are relative to."""
    if not source:
        raise ImageError('the name of a source is empty; the current folder is "."')
    path = Path(source).expanduser()
    if path.is_dir():
        return [(absolute(path), absolute(path))]
    if path.exists():
        return [(absolute(path), absolute(path.parent))]
    if not glob.has_magic(source):
        raise ImageError(f"there is no image or folder at {source}")
    fixed = path
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    # Folders match, as in a shell; with ** their files match by themselves.
    folders = "**" not in source
    names = (Path(name) for name in glob.glob(str(path), recursive=True))
    found = [n for n in names if (n.is_dir() and folders) or (n.is_file() and is_image_file(n))]
    if not found:
        others = describe_passed_over(_unmatched(source))
        raise ImageError(f"no image matches {source}" + (others and f": {others}"))
    return [(absolute(name), absolute(fixed)) for name in found]


def absolute(path: Path) -> Path:
    """The absolute path of a file; symbolic links stay, because their names are the user's.

    Args:
        path: The path.
    """
    return Path(os.path.abspath(path))

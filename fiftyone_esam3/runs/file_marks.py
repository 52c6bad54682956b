"""Marks of media files, which tell whether a file was replaced since a run read it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Sequence
from pathlib import Path

from efficientsam3.io.identity import content_digest

MOST_BYTES = 64 << 20
"""Up to this size the content of files is part of their mark."""


def mark_files(paths: Sequence[str]) -> str:
    """A mark of one file, or of the files of a clip.

    Args:
        paths: the files.

    Returns:
        their size, a digest of their times of modification and, up to ``MOST_BYTES``, one of their
        content; "" where one of them is no file that can be read.
    """
    try:
        size, times = _size_and_times(paths)
        return f"{size}-{times}-{content_digest(paths) if size <= MOST_BYTES else ''}"
    except OSError:
        return ""


def is_replaced(mark: str, paths: Sequence[str]) -> bool:
    """Whether files differ from those that have a mark.

    Files with the same size and times are not read. Copies with other times are the same files
    where their content is the same, as far as the mark has it.

    Args:
        mark: from :func:`mark_files`. Nothing is known to differ from "".
        paths: the files.

    Returns:
        False where one of the files cannot be read: that is an error of its own.
    """
    if not mark:
        return False
    size, times, content = mark.split("-")
    try:
        now = _size_and_times(paths)
        if (str(now[0]), now[1]) == (size, times):
            return False
        return str(now[0]) != size or not content or content_digest(paths) != content
    except OSError:
        return False


def _size_and_times(paths: Sequence[str]) -> tuple[int, str]:
    found = [Path(path).stat() for path in paths]
    if not all(stat.S_ISREG(one.st_mode) for one in found):
        raise OSError("no file whose content can be read twice")
    times = hashlib.sha256(repr([one.st_mtime_ns for one in found]).encode())
    return sum(one.st_size for one in found), times.hexdigest()[:8]

"""Lists of names: files that name a subset of a data set, and names in error messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import DataError, EfficientSam3Error


def read_names(subset: str | Path | Iterable[str]) -> set[str]:
    """Read the names of a subset.

    Args:
        subset: A text file with a name a line, or the names; ``#`` begins a comment.

    Raises:
        DataError: There is no such file, or no name in it.
    """
    if isinstance(subset, (str, Path)):
        subset = read_lines(Path(subset), "list of a subset")
    names = {line.split("#")[0].strip() for line in subset} - {""}
    if not names:
        raise DataError("the list of the subset is empty: give one name a line")
    return names


def read_lines(
    path: Path, what: str = "file", error: type[EfficientSam3Error] = DataError
) -> list[str]:
    """Read the lines of a text file.

    Args:
        path: The file, in UTF-8.
        what: What the file is, for errors.
        error: The class of error to raise.

    Raises:
        error: There is no such file, or it is not a text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as binary:
        raise error(
            f"{path} is not a text in UTF-8: {binary.reason} at byte {binary.start}"
        ) from binary
    except FileNotFoundError as missing:
        raise error(f"there is no {what} at {path}") from missing
    except OSError as missing:
        raise error(f"{path} cannot be read: {missing.strerror or missing}") from missing


def first_names(names: Iterable[str], count: int = 5) -> str:
    """Join the first ``count`` of many names, in alphabetical order, for an error message.

    Args:
        names: The names.
        count: How many are shown.
    """
    names = sorted(names)
    rest = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + rest

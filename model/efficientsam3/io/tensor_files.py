"""Files of tensors that appear when they are complete, and one error where they cannot be written.

safetensors and torch report a full disk with exceptions of their own, which are no ``OSError``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError
from .atomic import replacing


@contextmanager
def replacing_tensors(path: Path, way_out: str = "") -> Iterator[Path]:
    """Write a temporary file of tensors that replaces ``path`` when the block ends without error.

    Args:
        path: The file to write. Missing folders are created.
        way_out: What the message of an error says at its end. Empty: to free some space and to run
            the same command again.

    Yields:
        The temporary file, in the folder of ``path``.

    Raises:
        CheckpointError: The file cannot be written, as on a full disk. An earlier file stays.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _first_line(_system_error(error))
        raise CheckpointError(
            f"{path} could not be written ({reason}; {_free_space(path.parent)} free)"
            + (way_out or ": free some space and run the same command again")
        ) from error


def _free_space(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB" if folder.exists() else "?"


def _system_error(error: BaseException) -> BaseException:
    """The first error of a chain, which the system reported: torch's own follow from it."""
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Where a model's learned weights come from, in a form that can be pickled."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ..errors import CheckpointError
from ..variants import Packaged, find_variant
from .parts import weight_files

if TYPE_CHECKING:
    from ..config import ModelConfig
    from ..nn.detector import Detector


def weight_sources(
    model: str,
    checkpoint: str | os.PathLike[str] | None = None,
    base: str | os.PathLike[str] | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """The weight files that ``load`` reads, or where the hub has them.

    Args:
        model: A name of the table, or a saved folder.
        checkpoint: A local weight file instead of the hub's.
        base: A second weight file.

    Returns:
        The local files, and the address in the hub as plain values; {} where no file is the hub's.

    Raises:
        UnknownModelError: There is no such model.
    """
    given = [file for file in (checkpoint, base) if file is not None]
    files = [part for file in given for part in weight_files(file)]
    if Path(model).is_dir():
        return [file for file in sorted(Path(model).iterdir()) if file.is_file()], {}
    source = find_variant(model).weights
    if checkpoint is not None:
        return files, {}
    if isinstance(source, Packaged):
        return sorted(source.find().iterdir()), {}
    return files, {"repo": source.repo, "path": source.path, "revision": source.revision}


class WeightsInMemory:
    """Learned weights that have no file. A pickle contains them.

    Args:
        net: The network.
        key: What its copies have in common; a new one by default.
    """

    def __init__(self, net: Detector, key: str | None = None) -> None:
        self.net, self.key = net, key or uuid4().hex

    def __call__(self) -> Detector:
        """Return the network."""
        return self.net


class WeightFiles:
    """Learned weights of files, which are read each time they are needed.

    It pickles as the names of the files, and with what they were when the model was loaded.

    Args:
        read: Reads the files; it can be pickled.
        files: The files.
        first: What was read already; it is given once and not kept.

    Attributes:
        key: Equal for the same files, read in the same way.
    """

    def __init__(
        self, read: partial[tuple[str, ModelConfig, Detector]], files: list[Path], first: Detector
    ) -> None:
        self._read, self._files = read, [file.absolute() for file in files]
        self._unused = [first]
        self.key = (read.func.__name__, read.args, self._stamps())

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        stats = [file.stat() for file in self._files]
        return tuple((s.st_size, s.st_mtime_ns) for s in stats)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_unused": []}

    def __call__(self) -> Detector:
        """Return the weights.

        Raises:
            CheckpointError: The files have changed since the model was loaded.
        """
        if self._unused:
            return self._unused.pop()
        if not all(f.is_file() for f in self._files) or self._stamps() != self.key[2]:
            raise CheckpointError(
                f"{' or '.join(map(str, self._files))} has changed since the model was loaded, and "
                "its learned weights are read from there; load the model again"
            )
        return self._read()[2]

"""Where a model's learned weights come from, in a form that can be pickled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..build import ModelConfig
from ..errors import CheckpointError
from ..nn.detector import Detector


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

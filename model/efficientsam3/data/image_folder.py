"""A folder of images without annotations, to save a teacher's features of."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..io.paths import describe_passed_over, is_image_file, walk_files
from .annotated_images import read_image
from .name_lists import first_names, read_names
from .sample import TrainingSample

logger = logging.getLogger(__name__)


class ImageFolder:
    """Images below a folder, at any depth.

    Args:
        root: The folder.
        subset: A file of paths below the root, one a line, or the paths; None takes all.

    Raises:
        DataError: There is no folder or no image, or images of the subset are missing.
    """

    def __init__(self, root: str | Path, subset: str | Path | Iterable[str] | None = None) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"there is no folder {root}")
        files = list(walk_files(self.root, follow_links=True))
        found = (path for path in files if is_image_file(path))
        self._paths = {path.relative_to(self.root).as_posix(): path for path in found}
        if others := describe_passed_over(files):
            logger.warning("%s: %s", self.root, others)
        if subset is not None:
            wanted = read_names(subset)
            if missing := wanted - self._paths.keys():
                raise DataError(
                    f"{self.root} lacks {len(missing):,} images: {first_names(missing)}"
                )
            self._paths = {key: self._paths[key] for key in wanted}
        if not self._paths:
            raise DataError(f"there is no image below {self.root}")
        self._keys = sorted(self._paths)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        """The path below the root.

        Args:
            index: Which image.
        """
        return self._keys[index]

    def files(self, index: int) -> list[Path]:
        """The files of a sample: its image.

        Args:
            index: Which image.
        """
        return [self._paths[self._keys[index]]]

    def __getitem__(self, index: int) -> TrainingSample:
        key = self._keys[index]
        image = read_image(self._paths[key], str(self.root))
        return TrainingSample(key, image, np.zeros((0, 4), np.float32))

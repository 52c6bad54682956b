"""Teacher features on disk: computed once, read in every epoch and for every student."""

from __future__ import annotations

from pathlib import Path

from .shards import DESCRIPTION_FILE, ShardFeatures
from .source import FeatureSource
from .upstream import UpstreamFeatures

__all__ = ["FeatureSource", "ShardFeatures", "UpstreamFeatures", "open_features"]


def open_features(folder: str | Path, shape: tuple[int, ...] = (1024, 72, 72)) -> FeatureSource:
    """Open saved features, in this package's format or in upstream's.

    Args:
        folder: What ``extract_image_features``, ``extract_text_features`` or upstream's trainer
            wrote.
        shape: Shape of one record in upstream's files, which do not state it. Not used for ours.

    Returns:
        The features, by key.

    Raises:
        FeatureFileError: There are no features in the folder, or they are damaged.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION_FILE).is_file() and any(folder.glob("rank*-keys.txt")):
        return UpstreamFeatures(folder, shape)
    return ShardFeatures(folder)

"""What can go wrong with videos, by name."""

from __future__ import annotations

from ..errors import EfficientSam3Error


class VideoError(EfficientSam3Error, ValueError):
    """A video that cannot be read or written, or is no video."""

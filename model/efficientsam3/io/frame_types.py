"""Frames of a video, and what is known of their source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

Warn = Callable[[str, int], None]
"""Takes a sentence about something that cannot be read, and how many frames or packets it is."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video."""

    index: int
    """Number of the frame in its source, from 0."""
    time: float | None
    """Seconds since the first frame of the source; None where the source has no times."""
    image: Pixels
    """(H, W, 3) uint8 RGB, upright."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a source before it is read; None where it is not known."""

    name: str
    """Name of the file or folder, without its path; the address of a stream."""
    frames: int | None = None
    """Number of frames that the container states. Fewer may decode."""
    rate: float | None = None
    """Frames per second; the mean where the rate varies."""
    size: tuple[int, int] | None = None
    """(height, width) in pixels, upright."""
    live: bool = False
    """Whether it is a camera or an address, which cannot be read a second time."""
    waits: bool = True
    """Whether the source waits until the next frame is read. Cameras and broadcasts do not."""
    file_names: tuple[str, ...] | None = None
    """The file of each frame, for a folder, a pattern or a list of image files: its path from the
    folder that holds all of them on, such as ``frames/1.jpg``. None for other sources."""


@dataclass(frozen=True, eq=False)
class PendingFrame:
    """A frame whose pixels are converted only when ``make`` is called; skipping one is cheap."""

    index: int
    """Number of the frame in its source, from 0."""
    time: float | None
    """Seconds since the first frame; None where the source has no times."""
    make: Callable[[], Pixels]
    """Converts the pixels; raises ImageError where they cannot be read."""

"""Frames of a source by their index, some of them cached, for going back and forth."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import TrackError
from ..io.frame_types import Frame
from ..io.frames import FrameReader, read_frames
from ..io.samples import is_tensor


class FrameCache:
    """The frames of a source, by index.

    A source that can be read again (a file, a folder, a list, an array) gives any frame at any
    time. Going back opens it again; the frames on the way are cached, so that it is opened only
    once in a while when frames are read backward. A stream (a camera, an address, a generator)
    gives the frames that are still cached. Threads may share it.

    Args:
        source: As ``read_frames`` takes it.
        max_frames: Largest number of frames that are cached, from 2.
        max_bytes: Largest number of their bytes; two frames are always cached.

    Attributes:
        info: What is known of the source.
        rereadable: Whether the source can be read again.
    """

    def __init__(self, source: Any, max_frames: int = 32, max_bytes: int = 1 << 28) -> None:
        self._max_frames, self._max_bytes = max(2, max_frames), max_bytes
        self._lock = threading.Lock()
        self._cached: OrderedDict[int, Frame] = OrderedDict()
        self._reader: FrameReader = read_frames(source, latest_only=False)
        self._next = 0  # the reader gives no frame with a lower index
        self.info = self._reader.info
        files = (str, os.PathLike, Sequence, np.ndarray, Image.Image)
        kept = isinstance(source, files) or is_tensor(source)
        self.rereadable = kept and not self.info.live

    def get(self, index: int) -> Frame:
        """The frame of an index.

        Args:
            index: Index of the frame, from 0.

        Raises:
            TrackError: There is no such frame, or it is a frame of a stream and no longer cached.
        """
        frame = self.find(index)
        if frame is None or frame.index != index:
            raise TrackError(f"{self.info.name} has no frame {index}")
        return frame

    def find(self, index: int) -> Frame | None:
        """The frame of an index, or the first after it where that one cannot be read.

        Args:
            index: Index of the frame, from 0.

        Returns:
            The frame; None after the last.

        Raises:
            TrackError: The index is negative, or of a stream's frame that is no longer cached.
        """
        if index < 0:
            raise TrackError(f"frames are counted from 0; got {index}")
        with self._lock:
            if index in self._cached:
                return self._cached[index]
            if index < self._next:
                return self._read_again(index)
            return self._read_on(index)

    def forward(self, index: int) -> Iterator[Frame]:
        """Frames from an index to the last.

        Args:
            index: Index of the first frame.
        """
        frame = self.find(index)
        while frame is not None:
            yield frame
            frame = self.find(frame.index + 1)

    def backward(self, index: int) -> Iterator[Frame]:
        """Frames from an index to the first.

        Args:
            index: Index of the first frame, which is given first.
        """
        for number in range(index, -1, -1):
            frame = self.find(number)
            if frame is not None and frame.index == number:
                yield frame

    def close(self) -> None:
        """Close the source."""
        self._reader.close()

    def _read_on(self, index: int) -> Frame | None:
        for frame in self._reader:
            self._next = frame.index + 1
            self._cache(frame)
            if frame.index >= index:
                return frame
        return None

    def _read_again(self, index: int) -> Frame | None:
        if not self.rereadable:
            later = [f for f in self._cached if f > index]
            first = min(self._cached, default=self._next)
            if later and first <= index:
                return self._cached[min(later)]  # the frame itself could not be read
            raise TrackError(
                f"frame {index} of {self.info.name} has passed, and a stream cannot be read again; "
                f"frames {first} to {self._next - 1} are still cached. Track a file or a folder, "
                "or cache more frames."
            )
        # After one step back, more steps back are likely: the frames before are cached too.
        count = min(self._max_frames, self._max_bytes // max(1, self._frame_bytes()))
        self._reader.reopen(max(0, index + 2 - max(2, count)))
        self._next = 0
        return self._read_on(index)

    def _frame_bytes(self) -> int:
        return max((f.image.nbytes for f in self._cached.values()), default=1)

    def _cache(self, frame: Frame) -> None:
        self._cached[frame.index] = frame
        self._cached.move_to_end(frame.index)
        while len(self._cached) > self._max_frames or (
            len(self._cached) > 2 and len(self._cached) * self._frame_bytes() > self._max_bytes
        ):
            self._cached.popitem(last=False)

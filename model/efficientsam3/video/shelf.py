"""Frames of a source by their number, some of them held: what going back and forth needs."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .frames import Frame, FrameReader, read_frames
from .settings import TrackError


class Shelf:
    """The frames of a source, by number.

    What can be read again (a file, a folder, a list, an array) gives any frame at any time;
    going back opens it again, and frames on the way are held, so that a run backwards opens it
    once in a while. A stream (a camera, an address, a generator) gives what is still held.

    Args:
        source: as ``read_frames`` takes it.
        held: frames that are held at most, and bytes of them; two always are.
    """

    def __init__(self, source: Any, held: int = 32, held_bytes: int = 1 << 28) -> None:
        self._source = source
        self._most, self._most_bytes = max(2, held), held_bytes
        self._held: OrderedDict[int, Frame] = OrderedDict()
        self._reader: FrameReader = read_frames(source, newest=False)
        self._next = 0  # no frame before this is still to come from the reader
        self.info = self._reader.info
        kept = isinstance(source, (str, os.PathLike, Sequence, np.ndarray, Tensor, Image.Image))
        self.rereadable = kept and not self.info.live

    def get(self, index: int) -> Frame:
        """A frame.

        Raises:
            TrackError: there is none of this number, or it has passed.
        """
        frame = self.find(index)
        if frame is None or frame.index != index:
            raise TrackError(f"{self.info.name} has no frame {index}")
        return frame

    def find(self, index: int) -> Frame | None:
        """The frame of this number, or the first after it (some cannot be read); None: the end."""
        if index < 0:
            raise TrackError(f"frames are counted from 0; got {index}")
        if index in self._held:
            return self._held[index]
        if index < self._next:
            return self._again(index)
        return self._onwards(index)

    def forwards(self, index: int) -> Iterator[Frame]:
        """Frames from this one to the end."""
        frame = self.find(index)
        while frame is not None:
            yield frame
            frame = self.find(frame.index + 1)

    def backwards(self, index: int) -> Iterator[Frame]:
        """Frames from this one to the first."""
        for number in range(index, -1, -1):
            frame = self.find(number)
            if frame is not None and frame.index == number:
                yield frame

    def close(self) -> None:
        """Let go of the source."""
        self._reader.close()

    def _onwards(self, index: int) -> Frame | None:
        for frame in self._reader:
            self._next = frame.index + 1
            self._hold(frame)
            if frame.index >= index:
                return frame
        return None

    def _again(self, index: int) -> Frame | None:
        later = [f for f in self._held if f > index]
        if not self.rereadable:
            first = min(self._held, default=self._next)
            if later and first <= index:
                return self._held[min(later)]  # the frame itself could not be read
            raise TrackError(
                f"frame {index} of {self.info.name} has passed, and a stream cannot be read again; "
                f"frames {first} to {self._next - 1} are still held. Track a file or a folder, "
                "or hold more frames."
            )
        # Whoever goes back by one goes on back: what leads up to the frame is held too.
        many = max(1, min(self._most, self._most_bytes // max(1, self._bytes())) - 1)
        self._reader.close()
        self._reader = read_frames(self._source, start=max(0, index + 1 - many))
        self._next = 0
        return self._onwards(index)

    def _bytes(self) -> int:
        """Bytes of one frame."""
        return max((f.image.nbytes for f in self._held.values()), default=1)

    def _hold(self, frame: Frame) -> None:
        self._held[frame.index] = frame
        self._held.move_to_end(frame.index)
        while len(self._held) > self._most or (
            len(self._held) > 2 and len(self._held) * self._bytes() > self._most_bytes
        ):
            self._held.popitem(last=False)

"""Cameras and broadcasts that go away: they are waited for, and read again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..errors import VideoError
from .frame_types import PendingFrame, VideoInfo, Warn

RETRY = 1.0
"""Seconds between two tries to open a source again."""

Open = Callable[[Warn], tuple[VideoInfo, Iterator[PendingFrame]]]


class ReopenedFrames(Iterator[PendingFrame]):
    """The frames of a source that is opened again whenever it ends or fails.

    Indices go on. Times go on too, by the clock of this machine while the source is away. A
    warning says when the source went away and for how long.

    Args:
        open_source: Opens the source; its frames count from 0.
        warn: Called with what happens.
        limit: Seconds for which the source is waited for.

    Attributes:
        info: What is known of the source.

    Raises:
        VideoError: The source cannot be opened the first time.
    """

    def __init__(self, open_source: Open, warn: Warn, limit: float) -> None:
        self._open, self._warn, self._limit = open_source, warn, limit
        self._stopped = threading.Event()
        self._index, self._offset, self._time = 0, 0.0, 0.0
        self.info, self._frames = open_source(self._say)
        self._start = time.monotonic()

    def __next__(self) -> PendingFrame:
        gone: float | None = None
        while not self._stopped.is_set():
            frame = next(self._frames, None)
            if frame is not None:
                return self._renumber(frame, gone)
            if gone is None:
                gone = time.monotonic()
            else:
                self._stopped.wait(RETRY)  # it opened, and has no frame yet
            if not self._reopen(gone):
                break
        raise StopIteration

    def _renumber(self, frame: PendingFrame, gone: float | None) -> PendingFrame:
        if gone is not None:
            now = time.monotonic()
            self._offset = max(self._time, now - self._start)
            self._warn(
                f"{self.info.name} went away after {self._index} frames and is read again after "
                f"{now - gone:.1f} seconds",
                0,
            )
        shown = None
        if frame.time is not None:
            shown = self._time = self._offset + frame.time
        self._index += 1
        return replace(frame, index=self._index - 1, time=shown)

    def _reopen(self, gone: float) -> bool:
        """Try until the source opens; False when the time is over."""
        close(self._frames)
        while not self._stopped.is_set():
            if time.monotonic() - gone >= self._limit:
                if self._limit:
                    self._warn(
                        f"{self.info.name} went away after {self._index} frames and did not come "
                        f"back within {self._limit:g} seconds",
                        0,
                    )
                return False
            try:
                _, self._frames = self._open(self._say)
                return True
            except VideoError:
                self._stopped.wait(min(RETRY, max(0.0, gone + self._limit - time.monotonic())))
        return False

    def _say(self, sentence: str, lost: int) -> None:
        """Pass on what the source says of damage; packets that a break loses do not count."""
        self._warn(sentence, 0)

    def stop(self) -> None:
        """Wait no longer; may be called from another thread."""
        self._stopped.set()

    def close(self) -> None:
        """Close the source."""
        self.stop()
        close(self._frames)


def close(frames: Iterator[PendingFrame]) -> None:
    """Close frames that can be closed.

    Args:
        frames: The frames.
    """
    end = getattr(frames, "close", None)
    if end is not None:
        end()

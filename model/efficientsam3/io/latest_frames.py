"""The latest frame of a source that does not wait, where processing is slower than the source."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from .frame_types import PendingFrame

CLOSE_TIMEOUT = 1.0
"""Seconds that ``close`` waits for the reading thread; an address may have gone silent."""


class LatestFrames(Iterator[PendingFrame]):
    """Reads frames in a thread as they arrive, and gives the latest that was not given yet.

    The thread starts when the first frame is asked for. Errors of the source are raised by the
    next call of ``next``.

    Args:
        frames: Frames of a source; the thread alone reads and closes it.
        is_picked: Says by its index whether a frame is asked for. Other frames do not replace
            one that is, and do not count as skipped.

    Attributes:
        skipped: Number of frames that were asked for, and replaced by a later one.
    """

    def __init__(self, frames: Iterator[PendingFrame], is_picked: Callable[[int], bool]) -> None:
        self.skipped = 0
        self._frames, self._is_picked = frames, is_picked
        self._changed = threading.Condition()
        self._latest: PendingFrame | None = None
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._read, name="latest frame", daemon=True)

    def __next__(self) -> PendingFrame:
        if not self._closed and self._thread.ident is None:
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._ended or self._closed)
            frame, self._latest = self._latest, None
            if frame is not None and not self._closed:
                return frame
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Close the source; a source that is silent closes when its next frame arrives."""
        with self._changed:
            self._closed, self._latest = True, None
            self._changed.notify_all()
        stop = getattr(self._frames, "stop", None)
        if stop is not None:
            stop()
        if self._thread.ident is None:
            self._close_source()
        elif self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)

    def _read(self) -> None:
        try:
            for frame in self._frames:
                with self._changed:
                    if self._closed:
                        break
                    if self._is_picked(frame.index):
                        self.skipped += self._latest is not None
                        self._latest = frame
                        self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised again by __next__
            self._error = error
        finally:
            self._close_source()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _close_source(self) -> None:
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()

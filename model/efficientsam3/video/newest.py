"""The newest frame of a source that does not wait, for those who are slower than it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from .frames import Waiting

LINGER = 1.0
"""Seconds that closing waits for a frame that is on its way; an address may have gone silent."""


class Newest(Iterator[Waiting]):
    """Takes frames as they come and holds one: the newest that was not given yet.

    A thread reads, from the first frame that is asked for on. What the source raises is raised
    where the next frame is asked for.

    Args:
        frames: of a source; read, and closed, by the thread alone.
        wanted: by their number; others neither count as passed over nor take the place of one.

    Attributes:
        passed: frames that were wanted and came too soon after each other.
    """

    def __init__(self, frames: Iterator[Waiting], wanted: Callable[[int], bool]) -> None:
        self.passed = 0
        self._frames, self._wanted = frames, wanted
        self._news = threading.Condition()
        self._newest: Waiting | None = None
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._thread = threading.Thread(target=self._read, name="newest frame", daemon=True)

    def __next__(self) -> Waiting:
        if not self._closed and self._thread.ident is None:
            self._thread.start()
        with self._news:
            self._news.wait_for(lambda: self._newest is not None or self._ended or self._closed)
            given, self._newest = self._newest, None
            if given is not None and not self._closed:
                return given
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        """Let go of the source; where it is silent just now, as soon as it stirs."""
        with self._news:
            self._closed, self._newest = True, None
            self._news.notify_all()
        if self._thread.ident is None:
            self._let_go()
        elif self._thread is not threading.current_thread():
            self._thread.join(LINGER)

    def _read(self) -> None:
        try:
            for frame in self._frames:
                with self._news:
                    if self._closed:
                        break
                    if self._wanted(frame.number):
                        self.passed += self._newest is not None
                        self._newest = frame
                        self._news.notify_all()
        except BaseException as error:  # noqa: BLE001 - raised where frames are asked for
            self._error = error
        finally:
            self._let_go()
            with self._news:
                self._ended = True
                self._news.notify_all()

    def _let_go(self) -> None:
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()

"""A video followed into files: tracks as they are found, pictures as they are drawn."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

from .. import draw
from ..lines import Record
from .concepts import TrackedFrame
from .frames import Frame, FrameReader, Pixels
from .journal import Journal, from_record, last_records, read_head, read_records
from .resume import WATCHED, Identities

if TYPE_CHECKING:
    from .overlay import OverlayVideo
    from .sheet import ContactSheet

Progress = Callable[[TrackedFrame, bool], None]
"""Told of each frame that is done; True: it was done before, and is drawn again."""
Follow = Callable[[Iterable[Frame]], Iterator[TrackedFrame]]
"""A tracker: frames in, what is known of each out, in order and maybe some frames later."""


class Pictures:
    """Draws frames for those who write pictures."""

    def __init__(self, video: OverlayVideo | None = None, sheet: ContactSheet | None = None):
        self.video, self.sheet = video, sheet

    def __bool__(self) -> bool:
        return self.video is not None or self.sheet is not None

    def show(self, image: Pixels, tracked: TrackedFrame) -> None:
        """Draw a frame with what was found in it."""
        found = tracked.instances
        if self.video is not None:
            self.video.show(draw.overlay(image, found), tracked.index, tracked.time)
        if self.sheet is not None:
            from .sheet import PIXELS

            tile = partial(draw.overlay, image, found, pixels=PIXELS)
            self.sheet.show(tile, tracked.index, tracked.time)

    def close(self) -> None:
        """Finish the files with what was shown."""
        for writer in (self.video, self.sheet):
            if writer is not None:
                writer.close()


def first_frame(journal: Journal, start: int, stride: int, every: int, redraw: bool) -> int:
    """The frame from which on a run reads: what was done is watched again for a while.

    Args:
        start, stride: of the run's frames. every: the detector's turn, which stays in step.
        redraw: whether all frames are wanted, as for pictures.
    """
    if redraw or journal.last is None:
        return start
    return _watched_from(journal, start, stride, every)


def _watched_from(journal: Journal, start: int, stride: int, every: int) -> int:
    if journal.last is None:
        return start
    turn = stride * every
    turns = max(0, journal.last + stride - WATCHED * stride - start) // turn
    return start + turns * turn


def run(
    frames: FrameReader,
    journal: Journal,
    follow: Follow | None,
    pictures: Pictures,
    *,
    start: int = 0,
    stop: int | None = None,
    every: int = 1,
    anew: bool = False,
    progress: Progress | None = None,
) -> None:
    """Follow a video to its end; frames that the journal has are not followed again.

    Args:
        frames: from ``first_frame`` on. follow: None where the journal is whole, and pictures
            alone are wanted. anew: whether it follows a journal that is begun from ``start`` again.
    """
    feed = _Feed(frames, journal, pictures, progress)
    if follow is None:
        for _ in feed:
            pass
        return
    feed.first = start if anew else _watched_from(journal, start, frames.stride, every)
    done, past = journal.last, list[Record]()
    if done is not None:
        past = last_records(journal.path, WATCHED + every)
    identities = Identities(past, journal.ids)
    for tracked in follow(feed):
        if done is not None and tracked.index <= done:
            identities.compare(tracked)
            continue
        named = identities.rename(tracked)
        journal.add(named)
        feed.finish(named)
    journal.finish(stop)


class _Feed:
    """The frames that a tracker gets; those before were done, and are drawn again if need be.

    A frame's image is kept until the tracker has decided about it.
    """

    def __init__(
        self,
        frames: FrameReader,
        journal: Journal,
        pictures: Pictures,
        progress: Progress | None,
    ) -> None:
        self.frames, self.pictures = frames, pictures
        self.first = 0
        self._path, self._last = journal.path, journal.last
        self._tell = progress or (lambda tracked, again: None)
        self._images: dict[int, Pixels] = {}

    def __iter__(self) -> Iterator[Frame]:
        done = self._done() if self.pictures and self._last is not None else iter(())
        for frame in self.frames:
            if self._last is None or frame.index > self._last:
                if self.pictures:
                    self._images[frame.index] = frame.image
            else:
                tracked = next((t for t in done if t.index >= frame.index), None)
                if tracked is not None and tracked.index == frame.index:
                    self.pictures.show(frame.image, tracked)
                    self._tell(tracked, True)
            if frame.index >= self.first:
                yield frame

    def _done(self) -> Iterator[TrackedFrame]:
        concepts = tuple(read_head(self._path)["video"]["concepts"])
        return (from_record(record, concepts) for record in read_records(self._path))

    def finish(self, tracked: TrackedFrame) -> None:
        """Draw a frame that is decided."""
        image = self._images.get(tracked.index)
        for index in [i for i in self._images if i <= tracked.index]:
            del self._images[index]
        if image is not None:
            self.pictures.show(image, tracked)
        self._tell(tracked, False)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let ``kill`` end a run as Ctrl-C does: what is done is finished properly."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

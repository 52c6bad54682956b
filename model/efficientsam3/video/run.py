"""Tracking of a video into files: tracks as they are found, pictures as they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from ..io.frame_types import Pixels
from ..io.frames import FrameReader
from ..viz import overlay
from ..viz.contact_sheet import FRAME_PIXELS
from .resume import OVERLAP_FRAMES, IdentityMatcher
from .track_file import TrackFile, last_records, read_tracked
from .types import TrackedFrame

if TYPE_CHECKING:
    from ..viz.contact_sheet import ContactSheet
    from ..viz.video_writer import OverlayVideo

Progress = Callable[[TrackedFrame, bool], None]
"""Called with each frame; True: an earlier run tracked it, and it is only drawn."""
Track = Callable[[FrameReader], Iterator[TrackedFrame]]
"""Tracks the frames of a reader; results are in order, hold images, and may be delayed."""


class Renderers:
    """Draws frames into a video and a contact sheet.

    Args:
        video: Gets all frames; None: no video.
        sheet: Gets some frames; None: no contact sheet.
    """

    def __init__(self, video: OverlayVideo | None = None, sheet: ContactSheet | None = None):
        self.video, self.sheet = video, sheet

    def __bool__(self) -> bool:
        return self.video is not None or self.sheet is not None

    def show(self, image: Pixels, tracked: TrackedFrame) -> None:
        """Draw a frame with its objects.

        Args:
            image: (H, W, 3) uint8 RGB.
            tracked: The objects of the frame.
        """
        objects = tracked.instances
        if self.video is not None:
            self.video.show(overlay.overlay(image, objects), tracked.index, tracked.time)
        if self.sheet is not None:
            draw = partial(overlay.overlay, image, objects, pixels=FRAME_PIXELS)
            self.sheet.show(draw, tracked.index, tracked.time)

    def close(self) -> None:
        """Finish the files with what was drawn."""
        for writer in (self.video, self.sheet):
            if writer is not None:
                writer.close()


def run(
    reader: FrameReader,
    file: TrackFile,
    track: Track | None,
    renderers: Renderers | None = None,
    *,
    detect_every: int = 1,
    from_start: bool = False,
    progress: Progress | None = None,
) -> None:
    """Track a video to its end, and write what is found.

    Frames that the file has are not written again. The last of them are tracked again, because the
    memory of the earlier run is lost, and objects get their identities of the file.

    Args:
        reader: The frames, from the first frame of the run.
        file: Gets the tracks.
        track: The tracker; None: the file is complete, and only pictures are drawn.
        renderers: Draw pictures of all frames; None: no pictures.
        detect_every: The detector runs on every n-th frame, also after a stop.
        from_start: Whether all frames are tracked again after a stop.
        progress: Called with each frame.
    """
    report = progress or (lambda tracked, drawn_again: None)
    start, last = reader.start, file.last
    if renderers and last is not None:
        for image, tracked in _earlier(reader, file, last):
            renderers.show(image, tracked)
            report(tracked, True)
    if track is None:
        return
    identities = IdentityMatcher()
    if last is not None:
        identities = IdentityMatcher(
            last_records(file.path, OVERLAP_FRAMES + detect_every), file.next_id
        )
        if not from_start:
            # The detector runs on the same frames as before the stop.
            turn = reader.stride * detect_every
            skipped = last + reader.stride - OVERLAP_FRAMES * reader.stride - start
            start += max(0, skipped) // turn * turn
        reader.reopen(start)
    results = track(reader)  # raises for wrong arguments, before the file is created
    file.begin()
    for tracked in results:
        if last is not None and tracked.index <= last:
            identities.compare(tracked)
            continue
        renamed = identities.rename(tracked)
        file.add_frame(renamed)
        if renderers and tracked.image is not None:
            renderers.show(tracked.image, renamed)
        report(renamed, False)
    file.finish(reader.stop, reader.left_out)


def _earlier(
    reader: FrameReader, file: TrackFile, last: int
) -> Iterator[tuple[Pixels, TrackedFrame]]:
    """The frames that the file has, with their pixels."""
    done = read_tracked(file.path)
    for frame in reader:
        if frame.index > last:
            return
        tracked = next((t for t in done if t.index >= frame.index), None)
        if tracked is not None and tracked.index == frame.index:
            yield frame.image, tracked

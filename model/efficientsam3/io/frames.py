"""Frames of any source, read one after another, one in memory at a time."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError, VideoError, shorten
from ..values import is_whole
from .frame_types import Frame, PendingFrame, Pixels, VideoInfo
from .heif import HEIF_SUFFIXES
from .latest_frames import LatestFrames
from .pages import SCALED_PAGES, Pages, spread
from .paths import (
    ENDINGS,
    describe_passed_over,
    image_suffixes,
    is_image_file,
    natural_order,
    walk_files,
)
from .picture_files import ONE_PICTURE
from .pixel_values import Samples, SourceRange, check_value_range, to_uint8
from .samples import is_tensor, samples_of_any
from .video_decode import open_camera, open_video

log = logging.getLogger(__name__)

FILMS = frozenset({".fli", ".flc"})
"""Suffixes of pictures that PyAV reads as videos."""
MAX_WARNINGS = 20
"""Sentences about unreadable data that a reader keeps. Further ones are only counted."""


class FrameReader(Iterator[Frame]):
    """The frames of a source; also a context manager, which closes the source.

    ``read_frames`` makes one.

    Args:
        source: As ``read_frames`` takes it.
        picked: Indices of the frames to read: start, stop and step.
        rate: As ``read_frames`` takes it.
        latest_only: As ``read_frames`` takes it.
        value_range: As ``read_frames`` takes it.
        reconnect: As ``read_frames`` takes it.

    Attributes:
        info: What is known of the source.
        warnings: Sentences about what could not be read; they are logged as warnings too. The
            frames around it are given.
        unreadable: Number of pictures, or of packets of a video, that could not be read.
        left_out: Number of frames that are left out, because their picture could not be read.
    """

    def __init__(
        self,
        source: Any,
        picked: slice,
        rate: float | None = None,
        latest_only: bool | None = None,
        value_range: Any = None,
        reconnect: float | None = None,
    ) -> None:
        self._reconnect = reconnect
        self._values = SourceRange(check_value_range(value_range))
        self._items: Any = None  # what can be read at any index
        self.start, self.stop, self.stride = picked.start, picked.stop, picked.step
        self.warnings: list[str] = []
        self.unreadable = self.left_out = 0
        # A generator is closed when nothing refers to it, so that it is not kept.
        self._source = None if isinstance(source, Iterator) else source
        self._rate = rate
        self._any_read = self._ended = False
        self.info, self._frames = self._open(source)
        if rate is not None:
            self.info = replace(self.info, rate=rate)
        self._latest: LatestFrames | None = None
        if latest_only or (latest_only is None and not self.info.waits):
            self._frames = self._latest = LatestFrames(self._frames, self._is_picked)

    @property
    def expected(self) -> int | None:
        """Number of frames that will come; None where it is not known."""
        if self.info.frames is None:
            return None if self.stop is None else len(range(self.start, self.stop, self.stride))
        end = self.info.frames if self.stop is None else min(self.stop, self.info.frames)
        return len(range(self.start, end, self.stride))

    @property
    def skipped(self) -> int:
        """Number of frames that arrived while others were processed, and were skipped."""
        return 0 if self._latest is None else self._latest.skipped

    def _is_picked(self, index: int) -> bool:
        """Whether a frame is one of those asked for, or ends them."""
        after = index - self.start
        return (after >= 0 and not after % self.stride) or index == self.stop

    def __next__(self) -> Frame:
        while not self._ended:
            pending = next(self._frames, None)
            if pending is None or (self.stop is not None and pending.index >= self.stop):
                self.close()
                break
            if not self._is_picked(pending.index):
                self._any_read = True
                continue
            try:
                image = pending.make()
            except ImageError as error:
                self.left_out += 1
                self.warn(f"frame {pending.index} of {self.info.name} is left out: {error}", 1)
                continue
            self._any_read = True
            time = pending.time if self._rate is None else pending.index / self._rate
            return Frame(pending.index, time, image)
        if self.unreadable and not self._any_read:
            self._any_read = True  # raised once
            raise VideoError(f"nothing of {self.info.name} can be read: {self.warnings[0]}")
        raise StopIteration

    def reopen(self, start: int) -> None:
        """Read again, from another frame on; for a file, a folder, a pattern, a list or an array.

        Args:
            start: Index of the first frame, which keeps the stride.

        Raises:
            VideoError: The source is an iterator, which cannot be read again.
        """
        if self._source is None:
            raise VideoError(f"{self.info.name} cannot be read again")
        self.close()
        self.start, self._ended = start, False
        _, self._frames = self._open(self._source)

    def warn(self, sentence: str, unreadable: int = 0) -> None:
        """Note a sentence about what could not be read, and how many frames or packets it is.

        Args:
            sentence: What could not be read.
            unreadable: How many frames or packets that is.
        """
        self.unreadable += unreadable
        if len(self.warnings) < MAX_WARNINGS and sentence not in self.warnings:
            self.warnings.append(sentence)
            log.warning("%s", sentence)

    def close(self) -> None:
        """Close the source; no more frames come."""
        self._ended = True
        close = getattr(self._frames, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self, source: Any) -> tuple[VideoInfo, Iterator[PendingFrame]]:
        if isinstance(source, (str, os.PathLike)):
            return self._open_path(os.fspath(source))
        if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
            return open_camera(int(source), self.warn, self._reconnect)
        if isinstance(source, Image.Image):
            return self._open_pages("the image", Pages(source))
        if isinstance(source, np.ndarray) or is_tensor(source):
            if source.ndim in (2, 3):
                source = source[None]
            if source.ndim != 4:
                raise VideoError(
                    "an array of frames is (T, H, W, C), a tensor of them (T, C, H, W); got shape "
                    f"{tuple(source.shape)}"
                )
            self._items = source
            return VideoInfo("the array", len(source)), self._pending(source)
        if isinstance(source, FrameReader):
            # The inner reader already skips frames where its source does not wait.
            return replace(source.info, waits=True), self._pending(source)
        if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
            paths = all(isinstance(item, (str, os.PathLike)) for item in source)
            names = name_files([Path(item) for item in source]) if paths else None
            self._items = source
            info = VideoInfo("the list", len(source), file_names=names)
            return info, self._pending(source)
        if isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray, dict, set)):
            return VideoInfo("the stream"), self._pending(source)
        raise VideoError(
            "frames come from a file, a folder of images, an address, the number of a camera, or "
            f"an iterable of images; got {type(source).__name__}"
        )

    def _open_path(self, name: str) -> tuple[VideoInfo, Iterator[PendingFrame]]:
        if "://" in name:
            live = not name.startswith("file://")
            return open_video(name, self.warn, live=live, reconnect=self._reconnect)
        files = find_files(name)
        path = Path(name).expanduser()
        if path.is_file():
            if path.suffix.lower() not in (image_suffixes() | HEIF_SUFFIXES) - FILMS:
                return open_video(str(path), self.warn, start=self.start)
            try:
                pages = Pages(path)
            except ImageError:
                pages = None  # the frame is reported as unreadable
            if pages is not None and len(pages) > 1 and path.suffix.lower() not in ONE_PICTURE:
                return self._open_pages(path.name, pages)
        if not self._any_read and (others := _passed_over(name)):
            log.warning("%s: %s", name, others)
        self._items = files
        shown = Path(os.path.abspath(path)).name if path.exists() else name
        info = VideoInfo(shown, len(files), file_names=name_files(files))
        return info, self._pending(files)

    def _open_pages(self, name: str, pages: Pages) -> tuple[VideoInfo, Iterator[PendingFrame]]:
        self._items = pages

        def read() -> Iterator[PendingFrame]:
            for page, time, found in pages.read(lambda page: page >= self.start):
                yield PendingFrame(page, time, partial(self._scale, found))

        return VideoInfo(name, len(pages), pages.rate), read()

    # Pixels --------------------------------------------------------------------------------

    def _pending(self, items: Iterable[Any]) -> Iterator[PendingFrame]:
        """Items of a source, which are opened or converted only when their pixels are made."""
        for i, item in enumerate(items):
            if isinstance(item, Frame):
                yield PendingFrame(item.index, item.time, partial(self._pixels, item.image))
            else:
                yield PendingFrame(i, None, partial(self._pixels, item))

    def _pixels(self, image: Any) -> Pixels:
        """Any image as (H, W, 3) uint8 RGB.

        Arrays are copied, because a generator may reuse one buffer for all its frames.
        """
        pixels = self._scale(samples_of_any(image))
        return pixels.copy() if isinstance(image, np.ndarray) or is_tensor(image) else pixels

    def _scale(self, samples: Samples | ImageError) -> Pixels:
        """Scale a frame by the range of values of the source."""
        if isinstance(samples, ImageError):
            raise samples
        if samples.is_deep:
            self._find_range()
            low, high = self._values.of(samples)
            if (beyond := self._values.exceeded_by(samples)) is not None:
                self.warn(
                    f"values of some frames of {self.info.name} lie outside of the range of the "
                    f"source, {low:g} to {high:g}, and are cut off (the first from {beyond.low:g} "
                    f"to {beyond.high:g}). Give the range: value_range=(black, white)"
                )
        pixels = to_uint8(samples, self._values)
        if pixels.shape[2] == 1:
            pixels = pixels.repeat(3, 2)
        return np.ascontiguousarray(pixels[..., :3])

    def _find_range(self) -> None:
        """Let frames that are spread over the source decide its range of values, once."""
        items, self._items = self._items, None
        if items is None:
            return
        for index in spread(len(items), SCALED_PAGES):
            try:
                item = items[index]
                if isinstance(item, Frame):
                    item = item.image
                self._values.note(item if isinstance(item, Samples) else samples_of_any(item))
            except ImageError:
                continue  # the frame is reported in its turn


def _passed_over(source: str) -> str:
    """What of a folder, or of what a pattern matches, is not read, in one sentence; "" if nothing.

    Further folders are often other videos, so that their images are no frames of this one.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        found = map(Path, glob.glob(str(path), recursive=True))
        return describe_passed_over(file for file in found if file.is_file())
    others = describe_passed_over(file for file in path.iterdir() if file.is_file())
    deeper = sum(is_image_file(p) for p in walk_files(path) if p.parent != path)
    if not deeper:
        return others
    below = "1 image in a folder" if deeper == 1 else f"{deeper} images in folders"
    below += f" below it are passed over; a pattern reads them: '{source}/**/*'"
    return f"{others}; {below}" if others else below


def find_files(source: str) -> list[Path]:
    """The files that the frames of a source are read from, in the order of frames.

    Args:
        source: A file, a folder of images, or a glob pattern of images.

    Returns:
        The video file alone; or the image files, in natural order (2 before 10).

    Raises:
        VideoError: There is no such file, or no image.
    """
    if not source:
        raise VideoError('the name of the source is empty; the current folder is "."')
    path = Path(source).expanduser()
    if path.is_dir():
        files = natural_order(p for p in path.iterdir() if is_image_file(p))
        if not files:
            raise VideoError(f"no images in the folder {path}: {_passed_over(source) or ENDINGS}")
        return files
    if path.exists():
        return [path]
    if not glob.has_magic(source):
        raise VideoError(f"there is no video or folder of images at {source}")
    matches = map(Path, glob.glob(str(path), recursive=True))
    files = natural_order(p for p in matches if is_image_file(p))
    if not files:
        others = _passed_over(source)
        raise VideoError(f"no image matches {source}" + (others and f": {others}"))
    return files


def name_files(files: Sequence[Path]) -> tuple[str, ...]:
    """Name files by their paths from the last folder that holds all of them on.

    Args:
        files: Such as ``clips/a/1.jpg`` and ``clips/a/2.jpg``, which are ``a/1.jpg``, ``a/2.jpg``.
    """
    paths = [Path(os.path.abspath(file)) for file in files]
    try:
        folder = Path(os.path.commonpath([path.parent for path in paths])).parent
        return tuple(path.relative_to(folder).as_posix() for path in paths)
    except ValueError:  # no file, or files on two drives of Windows
        return tuple(path.as_posix() for path in paths)


def read_frames(
    source: Any,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    rate: float | None = None,
    latest_only: bool | None = None,
    value_range: Any = None,
    reconnect: float | None = None,
) -> FrameReader:
    """Read frames lazily: constant memory, whatever the length.

    Args:
        source: A video file; a TIFF of several pages or an animation; a folder of images, in
            natural order (2 before 10); a pattern such as "frames/*.jpg"; an address
            ("rtsp://..."); the number of a camera; an array (T, H, W, C) or tensor (T, C, H, W); a
            list or generator of images (paths, PIL images, arrays in RGB, tensors) or of
            ``Frame``, which keep their index and time.
        start: Index of the first frame, from 0.
        stop: Index of the frame to end before; None: the end of the source.
        stride: Take every n-th frame.
        rate: Frames per second, for sources without times; it replaces a file's own.
        latest_only: Skip frames that arrive while one is processed, so that the frame that is
            given is the latest. Frames keep their indices and times. None: do so for cameras and
            broadcasts (rtsp, rtmp, rtp, udp, srt), which do not wait; read all of other sources.
        value_range: The values that are black and white, for images that have not 8 bits; None:
            the range of the source (see ``io.pixel_values``).
        reconnect: Seconds for which a camera or an address that goes away is waited for. None: 30
            for cameras and broadcasts, 0 for other addresses (http, tcp), whose films have an end.

    Returns:
        An iterator of frames, with ``.info`` and ``.expected``, and with ``.warnings`` about data
        that is cut short or damaged. What decodes is given.

    Raises:
        VideoError: There is nothing at the source, or it is not a video.
    """
    for name, value in (("start", start), ("stride", stride), ("stop", stop)):
        if not (is_whole(value, None) or (name == "stop" and value is None)):
            raise VideoError(f"{name} is the whole number of a frame; got {shorten(value)}")
    if start < 0 or stride < 1 or (stop is not None and stop < start):
        raise VideoError(
            f"frames are counted from 0 and forward: got start {start}, stop {stop}, "
            f"stride {stride}"
        )
    if rate is not None and not 0 < rate < 1e6:
        raise VideoError(f"a rate is a number of frames per second; got {rate}")
    if reconnect is not None and not 0 <= reconnect < 1e9:
        raise VideoError(f"reconnect is a number of seconds from 0; got {reconnect}")
    picked = slice(start, stop, stride)
    return FrameReader(source, picked, rate, latest_only, value_range, reconnect)

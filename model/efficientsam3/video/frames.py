"""Frames of anything that has frames, one after another, one in memory at a time."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageSequence
from torch import Tensor

from ..batch import SUFFIXES
from ..errors import ImageError
from ..pixels import read_rgb
from .errors import VideoError

Pixels = npt.NDArray[np.uint8]

log = logging.getLogger(__name__)

STILL = SUFFIXES - {".gif"}
"""Endings of files that hold one picture; all others are opened as videos."""
TOLD = 20
"""Remarks on what could not be read that a reader keeps; it counts the rest."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    index: its number in the source, from 0. time: seconds since the source's first frame, None
    where that is not known. image: (H, W, 3) uint8 RGB, upright.
    """

    index: int
    time: float | None
    image: Pixels


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a source before it is read; None: not known.

    frames: as the container says, which can be more than decode. rate: frames a second, the mean
    where it varies. size: (height, width), upright. live: a camera or an address, which cannot be
    read a second time. waits: until the next frame is asked for; cameras and broadcasts do not.
    """

    name: str
    frames: int | None = None
    rate: float | None = None
    size: tuple[int, int] | None = None
    live: bool = False
    waits: bool = True


class Waiting(NamedTuple):
    """A frame that is made when asked for: what is skipped costs no conversion."""

    number: int
    time: float | None
    make: Callable[[], Pixels]


class FrameReader(Iterator[Frame]):
    """The frames of a source; also a context, which closes the source.

    Attributes:
        info: of the source.
        trouble: what could not be read, in sentences; the log has them as warnings. Frames around
            it are given as if it were not there.
        lost: how many pictures, or packets of a video, could not be read.
        passed: how many frames came while others were worked on, and were passed over.
    """

    def __init__(
        self,
        source: Any,
        picked: slice,
        rate: float | None = None,
        newest: bool | None = None,
    ) -> None:
        self.start, self.stop, self.stride = picked.start, picked.stop, picked.step
        self.trouble: list[str] = []
        self.lost = 0
        self.info, self._frames = self._open(source)
        if newest or (newest is None and not self.info.waits):
            from .newest import Newest

            self._frames = Newest(self._frames, self._wanted)
        if rate is not None:
            self.info = replace(self.info, rate=rate)
        self._rate = rate
        self._read = False  # anything at all
        self._ended = False

    @property
    def expected(self) -> int | None:
        """How many frames will come, as far as is known."""
        if self.info.frames is None:
            return None if self.stop is None else len(range(self.start, self.stop, self.stride))
        end = self.info.frames if self.stop is None else min(self.stop, self.info.frames)
        return len(range(self.start, end, self.stride))

    @property
    def passed(self) -> int:
        return getattr(self._frames, "passed", 0)

    def _wanted(self, number: int) -> bool:
        """Whether a frame is one of those picked, or ends them."""
        after = number - self.start
        return (after >= 0 and not after % self.stride) or number == self.stop

    def __next__(self) -> Frame:
        while not self._ended:
            waiting = next(self._frames, None)
            if waiting is None or (self.stop is not None and waiting.number >= self.stop):
                self.close()
                break
            if not self._wanted(waiting.number):
                self._read = True
                continue
            try:
                image = waiting.make()
            except ImageError as error:
                self.tell(f"frame {waiting.number} of {self.info.name} is left out: {error}", 1)
                continue
            self._read = True
            time = waiting.time if self._rate is None else waiting.number / self._rate
            return Frame(waiting.number, time, image)
        if self.lost and not self._read:
            self._read = True  # said once
            raise VideoError(f"nothing of {self.info.name} can be read: {self.trouble[0]}")
        raise StopIteration

    def tell(self, sentence: str, lost: int = 0) -> None:
        """Note what could not be read."""
        self.lost += lost
        if len(self.trouble) < TOLD:
            self.trouble.append(sentence)
            log.warning("%s", sentence)

    def close(self) -> None:
        """Let go of the source; no more frames come."""
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

    def _open(self, source: Any) -> tuple[VideoInfo, Iterator[Waiting]]:
        if isinstance(source, (str, os.PathLike)):
            return self._path(os.fspath(source))
        if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
            from .decode import open_camera

            return open_camera(int(source), self.tell)
        if isinstance(source, Image.Image):
            count = getattr(source, "n_frames", 1)
            stills = (still.copy() for still in ImageSequence.Iterator(source))
            return VideoInfo("the image", count), _items(stills)
        if isinstance(source, (np.ndarray, Tensor)):
            if source.ndim in (2, 3):
                source = source[None]
            if source.ndim != 4:
                raise VideoError(
                    "an array of frames is (T, H, W, C), a tensor of them (T, C, H, W); got shape "
                    f"{tuple(source.shape)}"
                )
            return VideoInfo("the array", len(source)), _items(source)
        if isinstance(source, FrameReader):
            # What a reader passes over is its own affair: what it gives is all wanted.
            return replace(source.info, waits=True), _items(source)
        if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray)):
            return VideoInfo("the list", len(source)), _items(source)
        if isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray, dict, set)):
            return VideoInfo("the stream"), _items(source)
        raise VideoError(
            "frames come from a file, a folder of images, an address, the number of a camera, or "
            f"an iterable of images; got {type(source).__name__}"
        )

    def _path(self, name: str) -> tuple[VideoInfo, Iterator[Waiting]]:
        from .decode import open_video

        if "://" in name:
            return open_video(name, self.tell, live=not name.startswith("file://"))
        path = Path(name).expanduser()
        if path.is_dir():
            files = _natural(p for p in path.iterdir() if _is_still(p))
            if not files:
                raise VideoError(
                    f"no images in the folder {path}: their names end in {' '.join(sorted(STILL))}"
                )
            return VideoInfo(path.name, len(files)), _items(files)
        if path.exists():
            if path.suffix.lower() in STILL:
                return VideoInfo(path.name, 1), _items([path])
            return open_video(str(path), self.tell, start=self.start)
        if glob.has_magic(name):
            matches = map(Path, glob.glob(str(path), recursive=True))
            files = _natural(p for p in matches if _is_still(p))
            if files:
                return VideoInfo(name, len(files)), _items(files)
            raise VideoError(f"no image matches {name}")
        raise VideoError(f"there is no video or folder of images at {name}")


def read_frames(
    source: Any,
    *,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    rate: float | None = None,
    newest: bool | None = None,
) -> FrameReader:
    """Read frames lazily: constant memory, whatever the length.

    Args:
        source: a video file; a folder of images, in natural order (2 before 10); a pattern such as
            "frames/*.jpg"; an address ("rtsp://..."); the number of a camera; an array
            (T, H, W, C) or tensor (T, C, H, W); a list or generator of images (paths, PIL images,
            arrays in RGB, tensors) or of ``Frame``, which keep their index and time.
        start, stop, stride: which frames, by their number in the source, as in ``range``.
        rate: frames a second. For sources without times; it takes the place of a file's own.
        newest: pass over frames that come while one is worked on, so that what is seen is never
            old. Frames keep their numbers and times. The default: for cameras and broadcasts
            (rtsp, rtmp, rtp, udp, srt), which do not wait; what waits is read whole.

    Returns:
        An iterator that also knows the source: ``.info``, ``.expected``, and ``.trouble``, in
        which a file that is cut short or damaged is told of. What decodes is given.

    Raises:
        VideoError: nothing is there, or it is no video.
    """
    if start < 0 or stride < 1 or (stop is not None and stop < start):
        raise VideoError(
            f"frames are counted from 0 and forward: got start {start}, stop {stop}, "
            f"stride {stride}"
        )
    if rate is not None and not 0 < rate < 1e6:
        raise VideoError(f"a rate is a number of frames a second; got {rate}")
    return FrameReader(source, slice(start, stop, stride), rate, newest)


def _items(items: Iterable[Any]) -> Iterator[Waiting]:
    for index, item in enumerate(items):
        if isinstance(item, Frame):
            yield Waiting(item.index, item.time, lambda item=item: item.image)  # type: ignore[misc]
        else:
            yield Waiting(index, None, lambda item=item: _pixels(item))  # type: ignore[misc]


def _pixels(image: Any) -> Pixels:
    """Any image, (H, W, 3) uint8 RGB; a copy: who makes frames may use one buffer for all."""
    array = read_rgb(image).permute(1, 2, 0).numpy()
    mine = isinstance(image, (np.ndarray, Tensor))
    return np.array(array, np.uint8) if mine else np.ascontiguousarray(array)


def _is_still(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _natural(paths: Iterable[Path]) -> list[Path]:
    """Numbers in names count as numbers."""

    def key(path: Path) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", str(path))
        return [(0, int(p)) if p.isdecimal() and p.isascii() else (1, p.casefold()) for p in parts]

    return sorted(paths, key=lambda path: (key(path), str(path)))

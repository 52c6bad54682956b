"""Videos, addresses and cameras by PyAV."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import MissingAbilityError
from .errors import VideoError
from .frames import Pixels, VideoInfo, Waiting

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

Tell = Callable[[str, int], None]
Frames = Generator["VideoFrame", None, None]

Turn = tuple[bool, bool, bool]

PATIENCE = 15.0
"""Seconds without an answer after which an address counts as dead."""
SLACK = 0.25
"""Seconds by which a file may end before the time that it gives, as many do that are whole."""
BROADCASTS = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "udp://", "srt://")
"""Addresses that send whether one reads or not; a server waits where a file is fetched."""
GRABBERS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


def need_av() -> Any:
    """The module, or the sentence on how to get it."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingAbilityError(
            "video files are read and written by PyAV, which is not installed: "
            "pip install 'efficientsam3[video]'. Folders and lists of images work without it."
        ) from error
    return av


def open_video(
    name: str, tell: Tell, *, live: bool = False, start: int = 0
) -> tuple[VideoInfo, Iterator[Waiting]]:
    """A file or an address, opened and its first frame decoded.

    Args:
        start: the first frame that is wanted. A file is decoded from the key frame before it, where
            its packets tell which that is; else from its beginning.

    Raises:
        VideoError: it is no video, or holds none.
    """
    av = need_av()
    try:
        container = av.open(name, timeout=PATIENCE if live else None)
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_no_video(name, error)) from error
    if container.format.name == "tty":  # to FFmpeg, text is a film of a terminal
        container.close()
        raise VideoError(f"{name} cannot be read as a video: it is a text")
    marks = None if live or not start else _marks_before(name, start)
    if marks is not None and not _seek(container, marks):
        container.close()
        container, marks = av.open(name), None
    waits = not (live and name.lower().startswith(BROADCASTS))
    return _start(container, name if live else Path(name).name, tell, live, waits, marks)


def open_camera(number: int, tell: Tell) -> tuple[VideoInfo, Iterator[Waiting]]:
    """The camera of a number, as the system counts them."""
    av = need_av()
    grabber = GRABBERS.get(sys.platform, "v4l2")
    device = {"v4l2": f"/dev/video{number}", "dshow": f"video={number}"}.get(grabber, str(number))
    try:
        container = av.open(device, format=grabber, timeout=PATIENCE)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"camera {number} ({device}) cannot be opened: {_reason(error)}. Is it there, and free?"
        ) from error
    return _start(container, f"camera {number}", tell, live=True, waits=False)


def _no_video(name: str, error: Exception) -> str:
    sentence = f"{name} cannot be read as a video: {_reason(error)}"
    if name.lower().endswith((".mp4", ".mov", ".m4v")) and "moov" not in sentence:
        sentence += (
            ". An MP4 file that was not finished lacks its index, without which its frames "
            "cannot be found"
        )
    return sentence


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _start(
    container: InputContainer,
    name: str,
    tell: Tell,
    live: bool,
    waits: bool,
    marks: Marks | None = None,
) -> tuple[VideoInfo, Iterator[Waiting]]:
    if not container.streams.video:
        contents = _contents(container)
        container.close()
        raise VideoError(f"{name} has no pictures in it: {contents}")
    stream = container.streams.video[0]
    fraction = stream.average_rate or stream.guessed_rate
    rate = float(fraction) if fraction else None
    promised = None if live else _promised(container, stream, rate)
    frames = _decode(container, stream, name, tell, live, marks)
    # The first frame knows how it is turned, which the container does not tell.
    first = next(frames, None)
    info = VideoInfo(
        name,
        frames=promised,
        rate=rate,
        size=None if first is None else _size(first),
        live=live,
        waits=waits,
    )
    return info, _waiting(first, frames, marks, rate if live else None)


def _contents(container: InputContainer) -> str:
    kinds = sorted({stream.type for stream in container.streams})
    return f"only {', '.join(kinds)}" if kinds else "no stream at all"


def _waiting(
    first: VideoFrame | None, frames: Frames, marks: Marks | None, rate: float | None
) -> Iterator[Waiting]:
    """Frames that are not converted yet, with the time that is displayed beside them.

    Args:
        rate: of a live source, whose first frames may come before its clock is known (RTSP): they
            get the time that they should have.
    """
    try:
        zero = None if first is None else first.time
        if marks is not None:
            zero = marks.zero
        turn = None if first is None else _turn(first)
        angle = None if first is None else first.rotation
        frame, index = first, 0
        while frame is not None:
            if marks is not None:
                index = marks.number(frame.pts, index)
            if frame.rotation != angle:
                turn, angle = _turn(frame), frame.rotation
            if zero is None and rate is not None and frame.time is not None:
                zero = frame.time - index / rate
            time = None
            if zero is None and rate is not None:
                time = index / rate
            elif zero is not None and frame.time is not None:
                time = frame.time - zero
            yield Waiting(index, time, partial(_pixels, frame, turn))
            frame, index = next(frames, None), index + 1
    finally:
        frames.close()  # and the file with it


def _decode(
    container: InputContainer,
    stream: VideoStream,
    name: str,
    tell: Tell,
    live: bool,
    marks: Marks | None,
) -> Frames:
    """Frames in order of display. What is damaged is passed over, and told of at the end."""
    errors = need_av().error.FFmpegError
    given, dropped, end, damage = 0, 0, 0.0, list[str]()
    if marks is not None:  # as if what comes before had been given
        given, dropped = bisect_left(marks.shown, marks.key), marks.hidden
    with container:
        for packet in _packets(container, stream, damage):
            # Some frames are in the file to be decoded and not shown: its edit list says so.
            dropped += packet is not None and packet.size > 0 and packet.is_discard
            try:
                frames = stream.decode(packet)
            except errors as error:
                damage.append(_reason(error))
                continue
            for frame in frames:
                if marks is not None and frame.pts is not None and frame.pts < marks.key:
                    continue  # leans on frames before the key frame, which were not decoded
                given, end = given + 1, _end(frame)
                yield frame
        missing = 0 if live else _missing(container, stream, dropped + given, end)
        duration = None if live or stream.frames else _duration(container, stream)
    if missing > 0:
        damage.append(f"{given} of {given + missing} frames decode")
    elif duration is not None and end < duration - max(SLACK, duration / 100):
        damage.append(f"it ends after {end:.1f} of {duration:.1f} seconds")
    if damage:
        causes = "; ".join(dict.fromkeys(damage))
        tell(
            f"{name} is cut short or damaged: {causes}. The {given} frames that decode are kept",
            max(missing, len(damage)),
        )


def _packets(
    container: InputContainer, stream: VideoStream, damage: list[str]
) -> Iterator[Packet[VideoStream] | None]:
    """What the decoder reads, last of all None, for frames that it still holds."""
    errors = need_av().error.FFmpegError
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except errors as error:
            damage.append(_reason(error))
            packet = None
        yield packet
        # An empty packet is PyAV's own sign of the end.
        if packet is None or not packet.size:
            return


def _end(frame: VideoFrame) -> float:
    """When the next frame is due, in seconds."""
    if frame.time is None or frame.time_base is None:
        return 0.0
    return frame.time + float((frame.duration or 0) * frame.time_base)


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds that the pictures should last, None where only the sound's length is known."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6
    return None


def _missing(container: InputContainer, stream: VideoStream, seen: int, end: float) -> int:
    """How many frames more the container has counted than were seen until ``end``, in seconds.

    An AVI file counts ticks, of which some may show the frame before again.
    """
    if container.format.name == "avi" and stream.time_base:
        seen = max(seen, round(end / stream.time_base))
    return stream.frames - seen


def _promised(container: InputContainer, stream: VideoStream, rate: float | None) -> int | None:
    """How many frames the container says it has."""
    if stream.frames:
        return stream.frames
    duration = _duration(container, stream)
    return round(duration * rate) if duration and rate else None


# Where to begin -------------------------------------------------------------------------------


class Marks(NamedTuple):
    """The packets of a file up to some frame.

    shown: times of presentation of its first frames, rising. key: that of the key frame to begin
    at. zero: seconds of the first frame. hidden: packets before the key frame that are not shown.
    """

    shown: list[int]
    key: int
    zero: float
    hidden: int

    def number(self, pts: int | None, expected: int) -> int:
        """The number of a frame; ``expected`` beyond what is marked."""
        if pts is None or pts > self.shown[-1]:
            return expected
        return bisect_left(self.shown, pts)


REORDERED = 64
"""Packets in which a frame may be behind its place in the order of display."""


def _marks_before(name: str, start: int) -> Marks | None:
    """How to reach a frame without decoding all before it; None: by no other way."""
    av = need_av()
    shown, keys = list[int](), list[int]()
    hidden = list[int]()
    with av.open(name) as container:
        if not container.streams.video:
            return None
        stream = container.streams.video[0]
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    break
                if packet.pts is None or packet.is_corrupt:
                    return None
                if packet.is_discard:
                    hidden.append(packet.pts)
                    continue
                shown.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                if len(shown) > start + REORDERED:
                    break
        except av.error.FFmpegError:
            return None
        shown.sort()
        # The last packets that were read may lack some that are shown before them.
        whole = shown[: start + 1]
        if not whole or len(set(shown)) < len(shown) or stream.time_base is None:
            return None
        before = [key for key in keys if key <= whole[-1]]
        if not before or max(before) <= whole[0]:
            return None
        key = max(before)
        zero = float(whole[0] * stream.time_base)
    return Marks(whole, key, zero, sum(pts < key for pts in hidden))


def _seek(container: InputContainer, marks: Marks) -> bool:
    """Go to the key frame; False: the file does not lead there."""
    av = need_av()
    stream = container.streams.video[0]
    try:
        container.seek(marks.key, stream=stream)
        packet = next(container.demux(stream))
        container.seek(marks.key, stream=stream)
    except (av.error.FFmpegError, StopIteration):
        return False
    return bool(packet.pts == marks.key and packet.is_keyframe)


# One frame ------------------------------------------------------------------------------------


def _turn(frame: VideoFrame) -> Turn:
    """Whether to swap rows and columns, and then to flip rows and columns, to show it upright.

    A phone's sensor is fixed; how the phone was held stands in the file as a matrix that takes
    columns and rows of the picture to those of the screen. Asked of every frame, it would tie
    each to itself: frames would stay in memory until Python looks for cycles.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def _size(frame: VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _turn(frame)[0] else (frame.height, frame.width)


def _pixels(frame: VideoFrame, turn: Turn | None) -> Pixels:
    """(H, W, 3) uint8 RGB, upright."""
    image = frame.to_ndarray(format="rgb24")
    swap, rows, columns = turn or (False, False, False)
    if swap:
        image = image.transpose(1, 0, 2)
    if rows or columns:
        image = image[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(image)

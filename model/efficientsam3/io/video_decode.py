"""Decoding of video files, addresses and cameras with PyAV."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import MissingAbilityError, VideoError
from .frame_types import PendingFrame, Pixels, VideoInfo, Warn
from .reopening import ReopenedFrames

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

DecodedFrames = Generator["VideoFrame", None, None]

Orientation = tuple[bool, bool, bool]
"""Whether to transpose a picture, then to flip its rows, and its columns, to show it upright."""

RECONNECT = 30.0
"""Seconds for which cameras and broadcasts that go away are waited for."""
TIMEOUT = 15.0
"""Seconds without an answer after which an address is given up."""
END_TOLERANCE = 0.25
"""Seconds by which the last frame may end before the stated duration; many intact files do so."""
BROADCASTS = ("rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "udp://", "srt://")
"""Addresses that send frames whether they are read or not. Other servers wait."""
CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
"""FFmpeg's input format for cameras, by ``sys.platform``."""


def import_av() -> Any:
    """The module ``av``.

    Raises:
        MissingAbilityError: PyAV is not installed; the message says how to install it.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingAbilityError(
            "video files are read and written by PyAV, which is not installed: "
            "pip install 'efficientsam3[video]'. Folders and lists of images work without it."
        ) from error
    return av


def open_video(
    name: str, warn: Warn, *, live: bool = False, start: int = 0, reconnect: float | None = 0.0
) -> tuple[VideoInfo, Iterator[PendingFrame]]:
    """Open a file or an address, and decode its first frame.

    Args:
        name: Path or address.
        warn: Called with what cannot be read.
        live: Whether it is an address.
        start: Index of the first frame that is needed. A file is decoded from the key frame before
            it where the packets tell which that is, else from its beginning.
        reconnect: Seconds for which an address that goes away is waited for. None: ``RECONNECT``
            for broadcasts; what other servers send has an end.

    Returns:
        What is known of the video, and its frames.

    Raises:
        VideoError: It is not a video, or has no video stream.
    """
    if live:
        waits = not name.lower().startswith(BROADCASTS)
        if reconnect is None:
            reconnect = 0.0 if waits else RECONNECT
        if waits and not reconnect:
            return _open_address(name, warn, waits=True)
        frames = ReopenedFrames(partial(_open_address, name, waits=waits), warn, reconnect)
        return frames.info, frames
    av = import_av()
    container = _open_container(name)
    seek = _find_key_frame(name, start) if start else None
    if seek is not None and not _seek(container, seek):
        container.close()
        container, seek = av.open(name, metadata_errors="replace"), None
    return _open_stream(container, Path(name).name, warn, False, True, seek)


def _open_address(
    name: str, warn: Warn, *, waits: bool
) -> tuple[VideoInfo, Iterator[PendingFrame]]:
    return _open_stream(_open_container(name, TIMEOUT), name, warn, live=True, waits=waits)


def _open_container(name: str, timeout: float | None = None) -> InputContainer:
    av = import_av()
    try:
        container: InputContainer = av.open(name, timeout=timeout, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise VideoError(_not_a_video(name, error)) from error
    if container.format.name == "tty":  # FFmpeg reads any text file as a video of a terminal
        container.close()
        raise VideoError(f"{name} cannot be read as a video: it is a text")
    return container


def open_camera(
    number: int, warn: Warn, reconnect: float | None = 0.0
) -> tuple[VideoInfo, Iterator[PendingFrame]]:
    """Open the camera of a number, as the operating system counts them, and read one frame.

    Args:
        number: Number of the camera, from 0.
        warn: Called with what cannot be read.
        reconnect: Seconds for which a camera that goes away is waited for; None: ``RECONNECT``.

    Raises:
        VideoError: There is no such camera, or another program uses it.
    """
    limit = RECONNECT if reconnect is None else reconnect
    frames = ReopenedFrames(partial(_open_device, number), warn, limit)
    return frames.info, frames


def _open_device(number: int, warn: Warn) -> tuple[VideoInfo, Iterator[PendingFrame]]:
    av = import_av()
    kind = CAMERA_FORMATS.get(sys.platform, "v4l2")
    device = {"v4l2": f"/dev/video{number}", "dshow": f"video={number}"}.get(kind, str(number))
    try:
        container = av.open(device, format=kind, timeout=TIMEOUT)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(
            f"camera {number} ({device}) cannot be opened: {_reason(error)}. Is it there, and free?"
        ) from error
    return _open_stream(container, f"camera {number}", warn, live=True, waits=False)


def _not_a_video(name: str, error: Exception) -> str:
    sentence = f"{name} cannot be read as a video: {_reason(error)}"
    if name.lower().endswith((".mp4", ".mov", ".m4v")) and "moov" not in sentence:
        sentence += (
            ". An MP4 file that was not finished lacks its index, without which its frames "
            "cannot be found"
        )
    return sentence


def _reason(error: Exception) -> str:
    if isinstance(error, import_av().error.ExitError):  # how FFmpeg reports a timeout
        return f"nothing came for {TIMEOUT:g} seconds"
    return getattr(error, "strerror", None) or str(error)


def _open_stream(
    container: InputContainer,
    name: str,
    warn: Warn,
    live: bool,
    waits: bool,
    seek: SeekPoint | None = None,
) -> tuple[VideoInfo, Iterator[PendingFrame]]:
    if not container.streams.video:
        kinds = sorted({stream.type for stream in container.streams})
        container.close()
        contents = f"only {', '.join(kinds)}" if kinds else "no stream at all"
        raise VideoError(f"{name} has no pictures in it: {contents}")
    stream = _best_stream(container)
    fraction = stream.average_rate or stream.guessed_rate
    rate = float(fraction) if fraction else None
    stated = None if live else _stated_frames(container, stream, rate)
    frames = _decode(container, stream, name, warn, live, seek)
    # Only the first frame tells its orientation, and so the upright size.
    first = next(frames, None)
    size = None if first is None else _upright_size(first)
    info = VideoInfo(name, frames=stated, rate=rate, size=size, live=live, waits=waits)
    return info, _pending(first, frames, seek, rate if live else None)


def _best_stream(container: InputContainer) -> VideoStream:
    """The stream that FFmpeg and players show: not a cover picture, the default, the largest."""
    best: Any = container.streams.best("video")
    return container.streams.video[0] if best is None else best


def _pending(
    first: VideoFrame | None, frames: DecodedFrames, seek: SeekPoint | None, rate: float | None
) -> Iterator[PendingFrame]:
    """Decoded frames with their index and time, not yet converted to RGB.

    Args:
        first: The first frame, which is already decoded.
        frames: The frames after it.
        seek: Where decoding starts; None: at the first frame of the file.
        rate: Frames per second of a live source, else None. Its first frames may come before its
            clock is known (RTSP); they get the time that follows from the rate.
    """
    try:
        zero = None if first is None else first.time
        if seek is not None:
            zero = seek.zero
        orientation = None if first is None else _orientation(first)
        rotation = None if first is None else first.rotation
        frame, index = first, 0
        while frame is not None:
            if seek is not None:
                index = seek.index_of(frame.pts, index)
            if frame.rotation != rotation:
                orientation, rotation = _orientation(frame), frame.rotation
            if zero is None and rate is not None and frame.time is not None:
                zero = frame.time - index / rate
            time = None
            if zero is None and rate is not None:
                time = index / rate
            elif zero is not None and frame.time is not None:
                time = frame.time - zero
            yield PendingFrame(index, time, partial(_pixels, frame, orientation))
            frame, index = next(frames, None), index + 1
    finally:
        frames.close()  # closes the file too


def _decode(
    container: InputContainer,
    stream: VideoStream,
    name: str,
    warn: Warn,
    live: bool,
    seek: SeekPoint | None,
) -> DecodedFrames:
    """Frames in order of display. Damaged ones are left out, with one warning at the end."""
    errors = import_av().error.FFmpegError
    given, dropped, end, damage = 0, 0, 0.0, list[str]()
    if seek is not None:  # counted as if the frames before had been decoded
        given, dropped = bisect_left(seek.shown, seek.key), seek.hidden
    with container:
        for packet in _packets(container, stream, damage):
            # A file's edit list can mark frames that are decoded and not shown.
            dropped += packet is not None and packet.size > 0 and packet.is_discard
            try:
                frames = stream.decode(packet)
            except errors as error:
                damage.append(_reason(error))
                continue
            for frame in frames:
                if seek is not None and frame.pts is not None and frame.pts < seek.key:
                    continue  # it refers to frames before the key frame, which were not decoded
                given, end = given + 1, _end(frame)
                yield frame
        missing = 0 if live else _missing(container, stream, dropped + given, end)
        duration = None if live or stream.frames else _duration(container, stream)
    if missing > 0:
        damage.append(f"{given} of {given + missing} frames decode")
    elif duration is not None and end < duration - max(END_TOLERANCE, duration / 100):
        damage.append(f"it ends after {end:.1f} of {duration:.1f} seconds")
    if damage:
        causes = "; ".join(dict.fromkeys(damage))
        warn(
            f"{name} is cut short or damaged: {causes}. The {given} frames that decode are kept",
            max(missing, len(damage)),
        )


def _packets(
    container: InputContainer, stream: VideoStream, damage: list[str]
) -> Iterator[Packet[VideoStream] | None]:
    """Packets for the decoder; the last is None, which flushes the frames that it still holds."""
    errors = import_av().error.FFmpegError
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except errors as error:
            damage.append(_reason(error))
            packet = None
        yield packet
        # PyAV marks the end with an empty packet.
        if packet is None or not packet.size:
            return


def _end(frame: VideoFrame) -> float:
    """When the next frame is due, in seconds."""
    if frame.time is None or frame.time_base is None:
        return 0.0
    return frame.time + float((frame.duration or 0) * frame.time_base)


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Stated seconds of the pictures; None where only the duration with sound is stated."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1e6
    return None


def _missing(container: InputContainer, stream: VideoStream, seen: int, end: float) -> int:
    """How many more frames the container states than were seen until ``end``, in seconds.

    An AVI file counts ticks, some of which repeat the frame before.
    """
    if container.format.name == "avi" and stream.time_base:
        seen = max(seen, round(end / stream.time_base))
    return stream.frames - seen


def _stated_frames(
    container: InputContainer, stream: VideoStream, rate: float | None
) -> int | None:
    if stream.frames:
        return stream.frames
    duration = _duration(container, stream)
    return round(duration * rate) if duration and rate else None


# Seeking ---------------------------------------------------------------------------------------


class SeekPoint(NamedTuple):
    """The key frame from which a file is decoded, and the packets before the wanted frame."""

    shown: list[int]
    """Presentation times of the frames up to the wanted one, rising, in the stream's unit."""
    key: int
    """Presentation time of the key frame."""
    zero: float
    """Seconds of the first frame of the file."""
    hidden: int
    """Number of packets before the key frame that are not shown."""

    def index_of(self, pts: int | None, expected: int) -> int:
        """Index of a frame by its presentation time; ``expected`` after the wanted frame.

        Args:
            pts: Presentation time of the frame.
            expected: Index that follows from the frame before.
        """
        if pts is None or pts > self.shown[-1]:
            return expected
        return bisect_left(self.shown, pts)


REORDERING = 64
"""Number of packets by which decoding order and display order may differ."""


def _find_key_frame(name: str, start: int) -> SeekPoint | None:
    """The key frame before a frame; None where the packets do not tell, or it is the first."""
    av = import_av()
    shown, keys = list[int](), list[int]()
    hidden = list[int]()
    with av.open(name, metadata_errors="replace") as container:
        if not container.streams.video:
            return None
        stream = _best_stream(container)
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
                if len(shown) > start + REORDERING:
                    break
        except av.error.FFmpegError:
            return None
        shown.sort()
        # Frames that are shown between the last packets may not have been read yet.
        complete = shown[: start + 1]
        if not complete or len(set(shown)) < len(shown) or stream.time_base is None:
            return None
        before = [key for key in keys if key <= complete[-1]]
        if not before or max(before) <= complete[0]:
            return None
        key = max(before)
        zero = float(complete[0] * stream.time_base)
    return SeekPoint(complete, key, zero, sum(pts < key for pts in hidden))


def _seek(container: InputContainer, point: SeekPoint) -> bool:
    """Go to the key frame; False where the file's index does not lead there."""
    av = import_av()
    stream = _best_stream(container)
    try:
        container.seek(point.key, stream=stream)
        packet = next(container.demux(stream))
        container.seek(point.key, stream=stream)
    except (av.error.FFmpegError, StopIteration):
        return False
    return bool(packet.pts == point.key and packet.is_keyframe)


# One frame -------------------------------------------------------------------------------------


def _orientation(frame: VideoFrame) -> Orientation:
    """How to turn a frame upright, from the display matrix of its side data.

    The matrix takes columns and rows of the picture to those of the screen. It is read only when
    the rotation changes: side data that is read ties a frame into a reference cycle, which keeps
    it in memory until Python's garbage collector runs.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    (a, b, _), (c, d, _), _ = np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


def _upright_size(frame: VideoFrame) -> tuple[int, int]:
    transpose = _orientation(frame)[0]
    return (frame.width, frame.height) if transpose else (frame.height, frame.width)


def _pixels(frame: VideoFrame, orientation: Orientation | None) -> Pixels:
    """(H, W, 3) uint8 RGB, upright."""
    image = frame.to_ndarray(format="rgb24")
    transpose, rows, columns = orientation or (False, False, False)
    if transpose:
        image = image.transpose(1, 0, 2)
    if rows or columns:
        image = image[:: -1 if rows else 1, :: -1 if columns else 1]
    return np.ascontiguousarray(image)

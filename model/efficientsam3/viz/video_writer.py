"""Writes pictures, such as overlays, to a video file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import VideoError
from ..io.atomic import replacing
from ..io.video_decode import import_av
from ..types import Array

if TYPE_CHECKING:
    from av.container import OutputContainer

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""Encoders in order of preference: H.264, which browsers play, then one of every FFmpeg build."""
OPTIONS = {
    # Without zerolatency x264 holds frames back, and a killed run loses them.
    "libx264": {"preset": "veryfast", "crf": "20", "tune": "zerolatency"},
    "libopenh264": {"b": "6M"},
    "mpeg4": {"qscale": "3"},
}
INDEXED_SUFFIXES = {".mp4", ".mov", ".m4v"}
"""Suffixes of containers that have one index of all frames."""
SUFFIXES = INDEXED_SUFFIXES | {".mkv"}
TICKS = 60_000
"""Units of time per second: a multiple of all common frame rates; MPEG-4 allows 16 bits."""
DEFAULT_RATE = 25.0
"""Frames per second of a source without times."""


def check_suffix(path: Path) -> None:
    """Check that a path has the suffix of a video that can be written.

    Args:
        path: The file to write.

    Raises:
        VideoError: It has another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise VideoError(f"an overlay video ends in {', '.join(sorted(SUFFIXES))}; got {path}")


class OverlayVideo:
    """Writes pictures to a video file, one by one.

    The video is written to ``<name>.partial<suffix>`` in fragments of about two seconds that can
    be played by themselves, so that a killed run loses at most its last fragment. ``close``
    replaces ``path`` by the finished video.

    Args:
        path: The file to write: .mp4, .mov, .m4v or .mkv.
        rate: Frames per second where pictures have no time; 25 if None.

    Raises:
        VideoError: The suffix is not one of these.
    """

    def __init__(self, path: str | Path, rate: float | None = None) -> None:
        self.path = Path(path)
        check_suffix(self.path)
        self.partial = self.path.with_suffix(f".partial{self.path.suffix}")
        self.rate = rate or DEFAULT_RATE
        self._container: OutputContainer | None = None
        self._stream: Any = None
        self._size = (0, 0)
        self._last = -1

    def show(self, picture: Image.Image, index: int, time: float | None) -> None:
        """Add a picture.

        Args:
            picture: RGB; the first one decides the size of the video, others are fitted into it.
            index: The frame's number in its source, used where ``time`` is None.
            time: Seconds from the start.

        Raises:
            VideoError: FFmpeg cannot write it.
        """
        container = self._container or self._open(picture.size)
        picture = _fit(picture, self._size)
        frame = import_av().VideoFrame.from_ndarray(_pad_to_even(np.asarray(picture)), "rgb24")
        ticks = round((index / self.rate if time is None else time) * TICKS)
        self._last = frame.pts = max(ticks, self._last + 1)  # encoders require increasing times
        frame.time_base = Fraction(1, TICKS)
        self._mux(container, frame)

    def _open(self, size: tuple[int, int]) -> OutputContainer:
        av = import_av()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"flush_packets": "1"}
        if self.path.suffix.lower() in INDEXED_SUFFIXES:
            options["movflags"] = "frag_keyframe+empty_moov+default_base_moof"
        self._size = size
        encoder = find_encoder()
        container = av.open(str(self.partial), "w", options=options)
        rate = Fraction(self.rate).limit_denominator(1001)
        stream: Any = container.add_stream(encoder, rate=rate)
        stream.width, stream.height = (side + side % 2 for side in size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, TICKS)
        stream.options = {**OPTIONS[encoder], "g": str(max(1, round(2 * self.rate)))}
        self._container, self._stream = container, stream
        return container

    def _mux(self, container: OutputContainer, frame: Any) -> None:
        try:
            container.mux(self._stream.encode(frame))
        except import_av().error.FFmpegError as error:
            raise VideoError(f"{self.partial} cannot be written: {error}") from error

    def close(self) -> None:
        """Finish the file. Without a picture nothing is written, and an existing file stays."""
        container, self._container = self._container, None
        if container is None:
            return
        self._mux(container, None)
        container.close()
        if self.path.suffix.lower() in INDEXED_SUFFIXES:
            _remux(self.partial)
        # One step, so that a killed run does not leave the unfinished file beside the finished one.
        self.partial.replace(self.path)

    def __enter__(self) -> OverlayVideo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def find_encoder() -> str:
    """The first of ``ENCODERS`` that this build of FFmpeg has.

    Raises:
        VideoError: It has none of them.
    """
    av = import_av()
    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except (av.error.FFmpegError, ValueError):
            continue
        return name
    raise VideoError(f"PyAV's FFmpeg has none of the encoders {', '.join(ENCODERS)}")


def _fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled into the video's size: the frames of some sources change theirs."""
    if picture.size == size:
        return picture
    scale = min(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new("RGB", size)
    corner = ((size[0] - width) // 2, (size[1] - height) // 2)
    canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), corner)
    return canvas


def _pad_to_even(image: Array) -> Array:
    """Repeat the last row or column of an odd side: yuv420p stores color for 2 x 2 pixels."""
    rows, columns = image.shape[0] % 2, image.shape[1] % 2
    return (
        np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows + columns else image
    )


def _remux(file: Path) -> None:
    """Replace a fragmented file by one with one index at its start, which players seek fast."""
    av = import_av()
    kind = {".mov": "mov"}.get(file.suffix.lower(), "mp4")
    with (
        replacing(file) as path,
        av.open(str(file)) as old,
        av.open(str(path), "w", format=kind, options={"movflags": "faststart"}) as new,
    ):
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:  # PyAV marks the end of the stream with None
                packet.stream = copied
                new.mux(packet)

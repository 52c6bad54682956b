"""A video with what was found drawn on it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .decode import need_av
from .errors import VideoError

if TYPE_CHECKING:
    from av.container import OutputContainer

ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first of these that FFmpeg has: H.264, which browsers play, before what all builds have."""
OPTIONS = {
    # An encoder that looks ahead holds frames back, which a killed run then loses.
    "libx264": {"preset": "veryfast", "crf": "20", "tune": "zerolatency"},
    "libopenh264": {"b": "6M"},
    "mpeg4": {"qscale": "3"},
}
INDEXED = {".mp4", ".mov", ".m4v"}
SUFFIXES = INDEXED | {".mkv"}
TICKS = 60_000
"""Units of time a second: whole for every usual rate, and what MPEG-4 still counts in 16 bits."""
RATE = 25.0
"""Frames a second where the source has no times."""


def check_suffix(path: Path) -> None:
    """Refuse what is no file of video.

    Raises:
        VideoError: says which endings are.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise VideoError(
            f"a video with what was found ends in {', '.join(sorted(SUFFIXES))}; got {path}"
        )


class OverlayVideo:
    """Writes pictures to a video as they come; none is kept.

    While it is written it is ``<name>.partial<ending>``, in pieces of about two seconds, each of
    which plays by itself: a run that is killed leaves all but its last piece. ``close`` puts it in
    the place of ``path``.

    Args:
        path: ends in .mp4, .mov, .m4v or .mkv. rate: frames a second where pictures have no time.
    """

    def __init__(self, path: str | Path, rate: float | None = None) -> None:
        self.path = Path(path)
        check_suffix(self.path)
        self.partial = self.path.with_suffix(f".partial{self.path.suffix}")
        self.rate = rate or RATE
        self._container: OutputContainer | None = None
        self._stream: Any = None
        self._size = (0, 0)
        self._last = -1

    def show(self, picture: Image.Image, index: int, time: float | None) -> None:
        """Add a picture: of a frame's index in the source, and its time in seconds."""
        container = self._container or self._begin(picture.size)
        picture = _fitted(picture, self._size)
        frame = need_av().VideoFrame.from_ndarray(_even(np.asarray(picture)), "rgb24")
        ticks = round((index / self.rate if time is None else time) * TICKS)
        self._last = frame.pts = max(ticks, self._last + 1)  # encoders need times that grow
        frame.time_base = Fraction(1, TICKS)
        self._mux(container, frame)

    def _begin(self, size: tuple[int, int]) -> OutputContainer:
        av = need_av()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        options = {"flush_packets": "1"}
        if self.path.suffix.lower() in INDEXED:
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
        except need_av().error.FFmpegError as error:
            raise VideoError(f"{self.partial} cannot be written: {error}") from error

    def close(self) -> None:
        """End the video. Without a picture there is none, and what was there stays."""
        container, self._container = self._container, None
        if container is None:
            return
        self._mux(container, None)
        container.close()
        if self.path.suffix.lower() in INDEXED:
            _index(self.partial, self.path)
            self.partial.unlink()
        else:
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
    """Name of the best encoder that is there.

    Raises:
        VideoError: there is none.
    """
    av = need_av()
    for name in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except (av.error.FFmpegError, ValueError):
            continue
        return name
    raise VideoError(f"PyAV's FFmpeg has none of the encoders {', '.join(ENCODERS)}")


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A picture of the video's size: sources such as a turned screen change theirs."""
    if picture.size == size:
        return picture
    scale = min(size[0] / picture.width, size[1] / picture.height)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    canvas = Image.new("RGB", size)
    place = ((size[0] - width) // 2, (size[1] - height) // 2)
    canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
    return canvas


def _even(image: Any) -> Any:
    """Colours are stored for two pixels by two: an odd side gets its last row or column twice."""
    rows, columns = image.shape[0] % 2, image.shape[1] % 2
    return (
        np.pad(image, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows + columns else image
    )


def _index(source: Path, target: Path) -> None:
    """The same pictures with one index at the start, as players and browsers like it best."""
    from ..weights import replacing

    av = need_av()
    kind = {".mov": "mov"}.get(target.suffix.lower(), "mp4")
    with (
        replacing(target) as path,
        av.open(str(source)) as old,
        av.open(str(path), "w", format=kind, options={"movflags": "faststart"}) as new,
    ):
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is not None:  # else PyAV's own sign of the end
                packet.stream = copied
                new.mux(packet)

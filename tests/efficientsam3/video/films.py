"""Small films for tests, whose frames tell their number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def picture(number: int, size: tuple[int, int] = (48, 64)) -> Pixels:
    """As bright as its number says, with a black corner at the top left."""
    image = np.full((*size, 3), 40 + 6 * (number % 36), np.uint8)
    image[: size[0] // 4, : size[1] // 4] = 0
    return image


def number(image: Pixels) -> int:
    """The number of a picture, also of one that was compressed and turned."""
    return round((float(np.median(image)) - 40) / 6)


def write_film(
    path: Path,
    frames: int = 10,
    *,
    size: tuple[int, int] = (48, 64),
    rate: int = 10,
    ticks: Sequence[int] | None = None,
    codec: str = "libx264",
    turn: int | None = None,
    mirror: bool = False,
    noise: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """A file of pictures 0, 1, ... ; ``ticks``: when each is shown, in units of 1 / rate."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        stream.options = (
            {"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {"qscale": "2"}
        )
        if turn is not None:
            stream.set_display_rotation(turn, hflip=mirror)
        for i in range(frames):
            image = picture(i, size)
            if noise:  # so that the file has a length worth cutting
                image = image + rng.integers(0, noise, image.shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = ticks[i] if ticks else i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path

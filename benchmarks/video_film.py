"""The film of squares that benchmarks/video.py tracks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]

SIZE = (240, 320)
SQUARES = ((20, 60, 3), (100, 50, 5), (170, 56, 7))
"""Top, side and pixels a frame of each; they go to and fro, so that a clip can be endless."""


def squares(t: int, count: int | None = None) -> list[tuple[int, int, int, int]]:
    """Boxes of the first ``count`` squares in frame ``t``, xyxy."""
    out = []
    for top, side, speed in SQUARES[:count]:
        room = SIZE[1] - side
        left = abs((speed * t) % (2 * room) - room)
        out.append((left, top, left + side, top + side))
    return out


def masks(t: int, count: int | None = None) -> torch.Tensor:
    """(squares, H, W) bool."""
    boxes = squares(t, count)
    out = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(out, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return out


def picture(t: int) -> Pixels:
    """What frame ``t`` shows."""
    image = np.full((*SIZE, 3), 90, np.uint8)
    for i, (x0, y0, x1, y1) in enumerate(squares(t)):
        image[y0:y1, x0:x1] = np.roll((230, 60, 30), i)
    return image


def write_film(path: Path, frames: int) -> None:
    """Write the first ``frames`` frames to a video file."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for t in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(t), "rgb24")))
        container.mux(stream.encode())

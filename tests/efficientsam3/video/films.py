"""Small films for tests, whose frames tell their number."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from efficientsam3.types import BitPatch, Instances, Patch

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
    coding: dict[str, str] | None = None,
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
        stream.options = {**stream.options, **(coding or {})}
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


# A film to follow, and a model that sees what is in it -----------------------------------------

SIZE = (96, 128)


def squares(number: int) -> Pixels:
    """Two red squares that move on grey, one to the right and one to the left, and a blue one
    that is there from frame 8 on."""
    image = np.full((*SIZE, 3), 90, np.uint8)
    image[10:26, 4 + 2 * number : 20 + 2 * number] = (230, 30, 30)
    image[40:56, 100 - 2 * number : 116 - 2 * number] = (230, 30, 30)
    if number >= 8:
        image[70:86, 2 * number : 2 * number + 20] = (30, 30, 230)
    return image


def write_squares(path: Path, frames: int = 40) -> Path:
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("libx264", rate=10)
        (stream.height, stream.width), stream.pix_fmt = SIZE, "yuv420p"
        stream.options = {"crf": "8", "preset": "ultrafast", "g": "10"}
        for i in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(squares(i), "rgb24")))
        container.mux(stream.encode())
    return path


class Seer:
    """Stands for a model: "red" and "blue" are what has those colours. asked: images so far."""

    name = "seer"
    abilities = frozenset({"concepts", "exemplars", "masks"})

    def __init__(self, stop_at: int | None = None, pause: float = 0.0) -> None:
        self.asked, self.stop_at, self.pause = 0, stop_at, pause

    def encode(self, image: Any) -> Any:
        time.sleep(self.pause)
        if self.asked == self.stop_at:
            raise KeyboardInterrupt
        self.asked += 1
        return SimpleNamespace(size=image.shape[:2], image=image.astype(int))

    def segment(self, encoded: Any, concepts: Any, **options: Any) -> Instances:
        patches, labels = list[Patch](), []
        names = [concepts] if isinstance(concepts, str) else list(concepts)
        for name in names:
            channel = {"red": 0, "blue": 2}.get(name)
            if channel is None:
                continue
            others = encoded.image.sum(2) - encoded.image[..., channel]
            parts, count = ndimage.label(encoded.image[..., channel] > others)
            masks = [parts == i for i in range(1, count + 1)]
            patches += [BitPatch.cut(mask) for mask in masks if mask.sum() > 40]
            labels += [name] * (len(patches) - len(labels))
        boxes = [patch.crop(encoded.size)[1] for patch in patches]
        scores = np.full(len(labels), 0.9, np.float32)
        return Instances(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=scores,
            presence=scores,
            labels=labels,
            size=encoded.size,
            patches=patches,
            concepts=tuple(names),
            concept_presence=dict.fromkeys(names, 0.9),
        )

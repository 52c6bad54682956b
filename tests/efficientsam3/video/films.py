"""Small videos for tests, whose frames show their number."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from efficientsam3.io.frame_types import Frame
from efficientsam3.types import BitPatch, Instances, Patch

Pixels = npt.NDArray[np.uint8]

FAST = {"movflags": "faststart"}
"""Options of ``write_film``: the index comes first, as in streamed files."""


def picture(number: int, size: tuple[int, int] = (48, 64)) -> Pixels:
    """A picture whose brightness is its number, with a black corner at the top left."""
    image = np.full((*size, 3), 40 + 6 * (number % 36), np.uint8)
    image[: size[0] // 4, : size[1] // 4] = 0
    return image


def number(image: Pixels) -> int:
    """The number of a picture, also after compression and rotation."""
    return round((float(np.median(image)) - 40) / 6)


def numbers(frames: Iterable[Frame]) -> list[int]:
    """The numbers of frames that ``picture`` made."""
    return [number(frame.image) for frame in frames]


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
    """Write pictures 0, 1, ...; ``ticks`` are their times in units of 1 / rate."""
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
            if noise:  # so that a part of the file is worth cutting off
                image = image + rng.integers(0, noise, image.shape, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = ticks[i] if ticks else i, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# A video to track, and a model that detects what is in it ---------------------------------------

SIZE = (96, 128)


def squares(number: int) -> Pixels:
    """Two red squares on grey, one moving right and one left, and a blue one from frame 8 on."""
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
    """A model that detects "red" and "blue" by their color. asked: number of images so far."""

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


# Scenes ----------------------------------------------------------------------------------------


def scene(seed: int, width: int = 3 * SIZE[1]) -> Pixels:
    """A wide landscape of soft colors and some blocks."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SIZE[0], width, 3))
    for scale, weight in ((24, 70), (8, 30), (2, 10)):
        noise = ndimage.gaussian_filter(rng.normal(size=image.shape), (scale, scale, 0))
        image += weight * noise / noise.std()
    image += rng.uniform(70, 180, 3)
    for _ in range(10):
        y, x = rng.integers(0, SIZE[0] - 20), rng.integers(0, width - 30)
        image[y : y + 20, x : x + 30] = rng.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def view(wide: Pixels, x: float = 0.0) -> Pixels:
    left = round(x * SIZE[1])
    return wide[:, left : left + SIZE[1]]


def shot(seed: int, count: int = 8) -> list[Pixels]:
    """A camera that moves a little, noise, and a block that moves."""
    rng, wide = np.random.default_rng(seed), scene(seed)
    frames = []
    for i in range(count):
        image = view(wide, 0.1 + 0.01 * i).astype(int) + rng.normal(0, 4, (*SIZE, 3))
        image[30:60, 5 * i + 10 : 5 * i + 40] = (200, 30, 40)
        frames.append(image.clip(0, 255).astype(np.uint8))
    return frames

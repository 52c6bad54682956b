"""Clips: stickers that move, turn, grow, pass behind each other, leave and come back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from efficientsam3.errors import ArgumentError

from .backgrounds import random_background
from .compositor import (
    Appearance,
    Compositor,
    Pixels,
    Shadow,
    add_camera_effects,
    random_shadow,
    render_sticker,
)
from .concepts import Concept
from .queries import (
    LARGE,
    MAX_UPRIGHT,
    MIN_UPSIDE_DOWN,
    NOT_LARGE,
    NOT_SMALL,
    SMALL,
    Query,
    make_queries,
)
from .scenes import SceneGenerator, SceneObject

if TYPE_CHECKING:
    from .art import StickerArt

CLIP_STREAM = 1
"""Joins the seed, so that a clip and a scene of one seed differ."""

FRAMES_PER_POINT = 7
"""Frames between two random points of a path."""

MIN_PIXELS = 12
"""Visible pixels, in frames of 336 x 336, below which an object counts as out of sight."""

MIN_VISIBLE_SHARE = 0.5
"""Least visible share of an object in its best frame; others are removed from the clip."""

CAMERA_RANGE = 0.12
"""How much larger than a frame the background is, so that the camera can move."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a clip.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool, visible pixels of each object of the clip.
    """

    image: Pixels
    masks: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ClipObject:
    """An object through all frames of a clip.

    Attributes:
        concept: What it is.
        style: Style of its sticker.
        color: Word for the color of most of it, or None.
        centers: (T, 2) float64, x and y as shares of the image's side; outside of [0, 1] where it
            is out of sight.
        appearances: How it is shown in each frame; sides are shares of the image's side.
    """

    concept: Concept
    style: str
    color: str | None
    centers: NDArray[np.float64]
    appearances: tuple[Appearance, ...]


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip, whose frames are drawn on demand and in any order.

    Attributes:
        seed: Seed of the clip.
        size: Side of the frames in pixels.
        objects: The objects from back to front.
        queries: Phrases and the objects that they name; without objects, they are absent from
            every frame.
        stickers: The stickers.
        background: (S, S, 3) uint8 RGB, larger than a frame.
        camera: (T, 2) int64, column and row of each frame's corner in the background.
        shadow: Shadow of the objects, or None.
        camera_seed: Seed of the camera effects, which are the same in all frames.
    """

    seed: int
    size: int
    objects: tuple[ClipObject, ...]
    queries: tuple[Query, ...]
    stickers: StickerArt
    background: Pixels
    camera: NDArray[np.int64]
    shadow: Shadow | None
    camera_seed: int

    def __len__(self) -> int:
        return len(self.camera)

    def __iter__(self) -> Iterator[Frame]:
        return (self.frame(i) for i in range(len(self)))

    def frame(self, index: int) -> Frame:
        """Draw a frame.

        Args:
            index: Its index, from 0.

        Raises:
            IndexError: there is no such frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of a clip of {len(self)} frames")
        left, top = self.camera[index]
        view = self.background[top : top + self.size, left : left + self.size]
        compositor = Compositor(view.copy())
        for obj in self.objects:
            self._draw(compositor, obj, index, self.shadow)
        masks = np.zeros((len(self.objects), self.size, self.size), bool)
        min_pixels = MIN_PIXELS * (self.size / 336) ** 2
        for mask, drawn in zip(masks, compositor.masks, strict=True):
            if np.count_nonzero(drawn) >= min_pixels:
                mask[:] = drawn
        image = add_camera_effects(np.random.default_rng(self.camera_seed), compositor.image)
        return Frame(image, masks)

    def visible_shares(self) -> list[float]:
        """The visible share of each object in its best frame, measured in small frames."""
        size = max(48, self.size // 5)
        best = [0.0] * len(self.objects)
        for index in range(len(self)):
            compositor = Compositor(np.zeros((size, size, 3), np.uint8))
            for obj in self.objects:
                self._draw(compositor, obj, index)
            for i, (mask, area) in enumerate(zip(compositor.masks, compositor.areas, strict=True)):
                best[i] = max(best[i], np.count_nonzero(mask) / max(area, 1))
        return best

    def _draw(
        self, compositor: Compositor, obj: ClipObject, index: int, shadow: Shadow | None = None
    ) -> None:
        size = compositor.image.shape[0]
        appearance = obj.appearances[index]
        patch = render_sticker(
            self.stickers.sticker(obj.concept.name, obj.style),
            replace(appearance, side=appearance.side * size),
        )
        height, width = patch.shape[:2]
        x, y = obj.centers[index] * size
        compositor.draw(patch, round(x - width / 2), round(y - height / 2), shadow)


def make_clip(generator: SceneGenerator, seed: int, frames: int = 16) -> Clip:
    """The clip of a seed, the same on every machine.

    Args:
        generator: Its stickers, split, size and names; tiles and the number of backgrounds do not
            matter.
        seed: The seed, from 0.
        frames: Number of frames, from 2.

    Raises:
        ArgumentError: there are fewer than two frames.
    """
    if frames < 2:
        raise ArgumentError(f"a clip has at least 2 frames; got frames={frames}")
    size, split = generator.size, generator.split
    rng = np.random.default_rng([split.stream, seed, CLIP_STREAM])
    background_size = math.ceil(size * (1 + CAMERA_RANGE))
    background = random_background(rng, background_size, split.backgrounds)
    shadow = random_shadow(rng, size, 0.5)
    names = generator.similar_pair(rng, generator.random_name(rng), 0.4)
    names = generator.fill_names(rng, names, int(rng.integers(2, 5)))
    objects = [obj for name in names for obj in _make_objects(rng, generator, name, frames)]
    objects = [objects[i] for i in rng.permutation(len(objects))]
    clip = Clip(
        seed,
        size,
        tuple(objects),
        (),
        generator.stickers,
        background.image,
        _camera_path(rng, background_size - size, frames),
        shadow,
        int(rng.integers(2**31)),
    )
    shown = tuple(
        obj
        for obj, share in zip(objects, clip.visible_shares(), strict=True)
        if share >= MIN_VISIBLE_SHARE
    )
    queries = make_queries(rng, [_as_scene_object(obj) for obj in shown], generator)
    fair = tuple(query for query in queries if not background.may_show(query.phrase))
    return replace(clip, objects=shown, queries=fair)


def _make_objects(
    rng: np.random.Generator, generator: SceneGenerator, name: str, frames: int
) -> Iterator[ClipObject]:
    """One to three instances of a concept, mostly of one style, which a tracker may confuse."""
    concept = generator.stickers.concepts[name]
    styles = generator.styles(concept)
    main_style = styles[rng.integers(len(styles))]
    side = math.exp(rng.uniform(math.log(0.1), math.log(0.38)))
    for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))):
        style = main_style if rng.random() < 0.8 else styles[rng.integers(len(styles))]
        growth = _interpolate(rng.uniform(-0.3, 0.3, _point_count(frames)), frames)
        sides = side * rng.uniform(0.8, 1.25) * np.exp(growth)
        angles = _random_angles(rng, frames)
        red, green, blue = (rng.uniform(0.85, 1.1) * rng.uniform(0.95, 1.05, 3)).tolist()
        mirrored = bool(rng.random() < 0.5)
        appearances = tuple(
            Appearance(s, a, mirrored, (red, green, blue))
            for s, a in zip(sides.tolist(), angles.tolist(), strict=True)
        )
        color = generator.stickers.color(name, style)
        yield ClipObject(concept, style, color, _random_path(rng, side, frames), appearances)


def _random_path(rng: np.random.Generator, side: float, frames: int) -> NDArray[np.float64]:
    """Centers (frames, 2): a smooth path through random points, some of them out of sight."""
    count = _point_count(frames)
    points = rng.uniform(0.12, 0.88, (count, 2))
    kind = str(rng.choice(["roam", "rest", "visit", "cross"], p=[0.45, 0.15, 0.25, 0.15]))
    if kind == "rest":
        points = points[:1] + rng.normal(0, 0.03, (count, 2))
    elif kind == "visit":  # it leaves and comes back
        axis, beyond = rng.integers(2), rng.integers(2)
        points[count // 2, axis] = (1 + side) if beyond else -side
    elif kind == "cross":
        axis = rng.integers(2)
        line = np.linspace(-side, 1 + side, count)
        points[:, axis] = line if rng.random() < 0.5 else line[::-1]
    return _interpolate(points, frames)


def _random_angles(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Degrees in [-180, 180) of each frame: rocking, or rotation in one direction."""
    start = rng.normal(0, 12) + (180 if rng.random() < 0.1 else 0)
    if rng.random() < 0.25:
        rotation = np.linspace(0, rng.uniform(-270, 270), frames)
    else:
        rotation = _interpolate(rng.normal(0, 14, _point_count(frames)), frames)
    angles: NDArray[np.float64] = (start + rotation + 180) % 360 - 180
    return angles


def _camera_path(rng: np.random.Generator, room: int, frames: int) -> NDArray[np.int64]:
    """Corners (frames, 2) of the frames in the background: at rest, or moving slowly."""
    if rng.random() < 0.4:
        points = np.repeat(rng.uniform(0, 1, (1, 2)), 2, 0)
    else:
        points = rng.uniform(0, 1, (3, 2))
    path = _interpolate(points, frames)
    return np.clip(np.rint(path * room), 0, room).astype(np.int64)


def _point_count(frames: int) -> int:
    return max(3, round(frames / FRAMES_PER_POINT) + 1)


def _interpolate(values: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """Catmull-Rom spline through K values at equal distances: (K, ...) -> (frames, ...)."""
    position = np.linspace(0, len(values) - 1, frames)
    start = np.minimum(position.astype(int), len(values) - 2)
    u = (position - start).reshape(-1, *[1] * (values.ndim - 1))
    padded = np.concatenate([values[:1], values, values[-1:]])
    a, b, c, d = (padded[start + i] for i in range(4))
    spline: NDArray[np.float64] = b + u / 2 * (
        (c - a) + u * ((2 * a - 5 * b + 4 * c - d) + u * (3 * (b - c) + d - a))
    )
    return spline


def _as_scene_object(obj: ClipObject) -> SceneObject:
    """An object for queries, with a size and an orientation only where all frames agree."""
    angles = [abs(appearance.angle) for appearance in obj.appearances]
    angle = (MAX_UPRIGHT + MIN_UPSIDE_DOWN) / 2
    if max(angles) <= MAX_UPRIGHT:
        angle = max(angles)
    elif min(angles) >= MIN_UPSIDE_DOWN:
        angle = min(angles)
    return SceneObject(
        obj.concept,
        obj.style,
        np.zeros((0, 0), bool),
        np.zeros(4, np.float32),
        _common_side([appearance.side for appearance in obj.appearances]),
        obj.color,
        angle,
    )


def _common_side(sides: Sequence[float]) -> float:
    """A side that queries describe as they may describe each of the sides, or not at all."""
    low, high = min(sides), max(sides)
    if high <= SMALL or low >= LARGE or (low >= NOT_SMALL and high <= NOT_LARGE):
        return high
    return (SMALL + NOT_SMALL) / 2 if low < NOT_SMALL else (LARGE + NOT_LARGE) / 2

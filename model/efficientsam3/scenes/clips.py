"""Clips: stickers that move, turn, grow, pass behind each other, leave and come back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .backgrounds import draw
from .canvas import Canvas, Look, Mask, Pixels, finish, render
from .compose import Placed, World
from .concepts import Concept, Split
from .phrases import Query, ask

if TYPE_CHECKING:
    from .art import Art

CLIP = 1
"""Joins the seed, so that clip 7 is not scene 7."""
FRAMES_PER_TURN = 7
"""Of a path, from one point that it goes through to the next."""
LEAST_PIXELS = 12
"""Visible pixels at 336 x 336 below which an object counts as out of sight."""
LEAST_SHOWN = 0.5
"""What share of an object must be in sight in its best frame; else the clip goes without it."""
DRIFT = 0.12
"""How much larger than a frame the background is, so that the camera can move."""


@dataclass(frozen=True, eq=False)
class Frame:
    """image: (H, W, 3) uint8 RGB. masks: (N, H, W) bool, visible parts by object of the clip."""

    image: Pixels
    masks: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Actor:
    """An object of a clip, through all its frames.

    centres: (T, 2) float, x and y over the image's side; outside of [0, 1] where it is away.
    looks: how it is shown in each frame, sides in shares of the image's.
    """

    concept: Concept
    style: str
    colour: str | None
    centres: NDArray[np.float64]
    looks: tuple[Look, ...]


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames that are drawn when asked for, in any order; objects from back to front.

    queries: phrases, and the objects that they name; no objects: absent from every frame.
    """

    seed: int
    size: int
    actors: tuple[Actor, ...]
    queries: tuple[Query, ...]
    art: Art
    scenery: Pixels
    camera: NDArray[np.int64]
    shadow: tuple[int, int, float] | None
    light: int

    def __len__(self) -> int:
        return len(self.camera)

    def __iter__(self) -> Iterator[Frame]:
        return (self.frame(i) for i in range(len(self)))

    def frame(self, index: int) -> Frame:
        """Draw one frame, of index 0 to ``len(clip) - 1``.

        Raises:
            IndexError: there is no such frame.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of a clip of {len(self)} frames")
        left, top = self.camera[index]
        view = self.scenery[top : top + self.size, left : left + self.size]
        canvas = Canvas(view.copy())
        for actor in self.actors:
            _draw(canvas, self.art, actor, index, self.size, self.shadow)
        masks = np.zeros((len(self.actors), self.size, self.size), bool)
        least = LEAST_PIXELS * (self.size / 336) ** 2
        for mask, drawn in zip(masks, canvas.masks, strict=True):
            if np.count_nonzero(drawn) >= least:
                mask[:] = drawn
        image = finish(np.random.default_rng(self.light), canvas.image)
        return Frame(image, masks)


def make_clip(art: Art, seed: int, split: Split, size: int = 336, frames: int = 16) -> Clip:
    """One clip; for many, keep a ``World`` and call ``film``."""
    return film(World(art, split, size), seed, frames)


def film(world: World, seed: int, frames: int = 16) -> Clip:
    """The clip of a seed: the same on every machine and in every process.

    Raises:
        ValueError: fewer than two frames.
    """
    if frames < 2:
        raise ValueError(f"a clip has at least 2 frames; got {frames}")
    size, split = world.size, world.split
    rng = np.random.default_rng([split.stream, seed, CLIP])
    wide = math.ceil(size * (1 + DRIFT))
    scenery = draw(rng, wide, split.backgrounds)
    shadow = None
    if rng.random() < 0.5:
        reach = rng.integers(-size // 60, size // 60 + 1, 2)
        shadow = int(reach[0]), int(abs(reach[1])) + 1, float(rng.uniform(0.2, 0.5))
    actors = [a for name in _cast(rng, world) for a in _actors(rng, world, name, frames)]
    actors = [actors[i] for i in rng.permutation(len(actors))]
    clip = Clip(
        seed,
        size,
        tuple(actors),
        (),
        world.art,
        scenery.image,
        _drift(rng, wide - size, frames),
        shadow,
        int(rng.integers(2**31)),
    )
    shown = tuple(a for a, share in zip(actors, _shares(clip), strict=True) if share >= LEAST_SHOWN)
    asked = ask(rng, [_as_placed(actor) for actor in shown], world)
    queries = tuple(q for q in asked if not scenery.may_show(q.phrase))
    return replace(clip, actors=shown, queries=queries)


def _cast(rng: np.random.Generator, world: World) -> list[str]:
    pool = world.pool
    names = [pool[rng.integers(len(pool))]]
    near = [n for n in world.art.concepts[names[0]].near if n in world.allowed]
    if near and rng.random() < 0.4:
        names.append(near[rng.integers(min(len(near), 4))])
    count = int(rng.integers(2, 5))
    while len(names) < count:
        names.append(pool[rng.integers(len(pool))])
    return list(dict.fromkeys(names))


def _actors(rng: np.random.Generator, world: World, name: str, frames: int) -> Iterator[Actor]:
    """One to three instances of a concept, most often of one style: identities are to be kept."""
    concept = world.art.concepts[name]
    styles = [s for s in world.split.styles if s in concept.styles]
    favourite = styles[rng.integers(len(styles))]
    side = math.exp(rng.uniform(math.log(0.1), math.log(0.38)))
    for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))):
        style = favourite if rng.random() < 0.8 else styles[rng.integers(len(styles))]
        growth = _smooth(rng.uniform(-0.3, 0.3, _turns(frames)), frames)
        sides = side * rng.uniform(0.8, 1.25) * np.exp(growth)
        angles = _angles(rng, frames)
        gain = rng.uniform(0.85, 1.1) * rng.uniform(0.95, 1.05, 3)
        mirrored = bool(rng.random() < 0.5)
        looks = tuple(
            Look(
                float(s), float(a), mirrored, (float(gain[0]), float(gain[1]), float(gain[2])), 0.0
            )
            for s, a in zip(sides, angles, strict=True)
        )
        colour = world.art.colour(name, style)
        yield Actor(concept, style, colour, _path(rng, side, frames), looks)


def _path(rng: np.random.Generator, side: float, frames: int) -> NDArray[np.float64]:
    """Centres (frames, 2): a smooth way through random points, some of them out of sight."""
    turns = _turns(frames)
    points = rng.uniform(0.12, 0.88, (turns, 2))
    kind = str(rng.choice(["roam", "rest", "visit", "cross"], p=[0.45, 0.15, 0.25, 0.15]))
    if kind == "rest":
        points = points[:1] + rng.normal(0, 0.03, (turns, 2))
    elif kind == "visit":  # there, away, and there again
        away = turns // 2
        axis, beyond = rng.integers(2), rng.integers(2)
        points[away, axis] = (1 + side) if beyond else -side
    elif kind == "cross":
        axis = rng.integers(2)
        line = np.linspace(-side, 1 + side, turns)
        points[:, axis] = line if rng.random() < 0.5 else line[::-1]
    return np.stack([_smooth(points[:, i], frames) for i in range(2)], 1)


def _angles(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Degrees in [-180, 180) of each frame: rocking, or turning on and on."""
    start = rng.normal(0, 12) + (180 if rng.random() < 0.1 else 0)
    if rng.random() < 0.25:
        turned = np.linspace(0, rng.uniform(-270, 270), frames)
    else:
        turned = _smooth(rng.normal(0, 14, _turns(frames)), frames)
    angles: NDArray[np.float64] = (start + turned + 180) % 360 - 180
    return angles


def _turns(frames: int) -> int:
    return max(3, round(frames / FRAMES_PER_TURN) + 1)


def _smooth(values: NDArray[np.float64], frames: int) -> NDArray[np.float64]:
    """A cubic through values at equal distances -> (frames,); Catmull and Rom's."""
    at = np.linspace(0, len(values) - 1, frames)
    start = np.minimum(at.astype(int), len(values) - 2)
    u = at - start
    padded = np.concatenate([values[:1], values, values[-1:]])
    a, b, c, d = (padded[start + i] for i in range(4))
    cubic: NDArray[np.float64] = b + u / 2 * (
        (c - a) + u * ((2 * a - 5 * b + 4 * c - d) + u * (3 * (b - c) + d - a))
    )
    return cubic


def _drift(rng: np.random.Generator, room: int, frames: int) -> NDArray[np.int64]:
    """Corners (frames, 2) of the view in the scenery: still, or moving slowly."""
    if rng.random() < 0.4:
        points = np.repeat(rng.uniform(0, 1, (1, 2)), 2, 0)
    else:
        points = rng.uniform(0, 1, (3, 2))
    way = np.stack([_smooth(points[:, i], frames) for i in range(2)], 1)
    return np.clip(np.rint(way * room), 0, room).astype(np.int64)


def _draw(
    canvas: Canvas,
    art: Art,
    actor: Actor,
    index: int,
    size: int,
    shadow: tuple[int, int, float] | None = None,
) -> int:
    """Draw an actor; its opaque pixels, seen or not."""
    look = actor.looks[index]
    patch = render(
        art.sticker(actor.concept.name, actor.style), replace(look, side=look.side * size)
    )
    height, width = patch.shape[:2]
    x, y = actor.centres[index] * size
    canvas.draw(patch, round(x - width / 2), round(y - height / 2), shadow)
    return int(np.count_nonzero(patch[..., 3] > 127))


def _shares(clip: Clip) -> list[float]:
    """How much of each actor is in sight in its best frame; looked up on small frames."""
    size = max(48, clip.size // 5)
    best = [0.0] * len(clip.actors)
    for index in range(len(clip)):
        canvas = Canvas(np.zeros((size, size, 3), np.uint8))
        areas = [_draw(canvas, clip.art, actor, index, size) for actor in clip.actors]
        for i, (mask, area) in enumerate(zip(canvas.masks, areas, strict=True)):
            best[i] = max(best[i], np.count_nonzero(mask) / max(area, 1))
    return best


def _as_placed(actor: Actor) -> Placed:
    """An actor as phrases see it: by a size and an angle only where all frames agree."""
    nothing: Mask = np.zeros((0, 0), bool)
    sides = [look.side for look in actor.looks]
    angles = [abs(look.angle) for look in actor.looks]
    return Placed(
        actor.concept,
        actor.style,
        nothing,
        np.zeros(4, np.float32),
        _agreed(sides),
        actor.colour,
        max(angles) if max(angles) <= 50 else min(angles) if min(angles) >= 150 else 90.0,
    )


def _agreed(sides: Sequence[float]) -> float:
    from .phrases import LARGE, NOT_LARGE, NOT_SMALL, SMALL

    low, high = min(sides), max(sides)
    if high <= SMALL or low >= LARGE or (low >= NOT_SMALL and high <= NOT_LARGE):
        return high
    return (SMALL + NOT_SMALL) / 2 if low < NOT_SMALL else (LARGE + NOT_LARGE) / 2

"""Random instances, and what a format may do to them."""

from __future__ import annotations

import unicodedata
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from efficientsam3.types import BitPatch, Instances

Mask = npt.NDArray[np.bool_]

QUICK = settings(
    max_examples=8,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""The same few examples in every run."""
SLOW = settings(QUICK, max_examples=150)

EIGHT = np.ones((3, 3))
"""Pixels that touch at a corner belong to one part."""


class Scene(NamedTuple):
    """Instances of one image, as they are."""

    names: list[str]
    """All classes."""
    labels: list[str]
    """The class of each instance."""
    masks: Mask
    """(N, H, W)."""

    @property
    def size(self) -> tuple[int, int]:
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def seen(self) -> list[int]:
        """Instances that have a pixel."""
        return [i for i, mask in enumerate(self.masks) if mask.any()]

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """(x0, y0, x1, y1) of those that have a pixel: first and last row and column."""
        out = []
        for i in self.seen:
            y, x = np.nonzero(self.masks[i])
            out.append((int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1))
        return out

    def without_twins(self) -> Scene:
        """Without instances of the same class and box as one before: Ultralytics drops them."""
        keys = dict(zip(self.seen, self.boxes, strict=True))
        first: dict[object, int] = {}
        for i, label in enumerate(self.labels):
            first.setdefault((label, keys.get(i, i)), i)
        kept = list(first.values())
        return Scene(self.names, [self.labels[i] for i in kept], self.masks[kept])

    def instances(self, **more: Any) -> Instances:
        """The instances as a model gives them: its boxes are not exactly around the masks."""
        count = len(self.masks)
        patches = [BitPatch.cut(mask) for mask in self.masks]
        boxes = np.array([p.crop(self.size)[1] for p in patches], np.float32).reshape(count, 4)
        return Instances(
            boxes=boxes + np.array([0.6, 1.5, -0.4, -2], np.float32),
            scores=np.linspace(0.9, 0.6, count, dtype=np.float32),
            presence=np.full(count, 0.75, np.float32),
            labels=self.labels,
            size=self.size,
            patches=list(patches),
            concepts=tuple(self.names),
            **more,
        )


def class_names(printable: bool = False) -> st.SearchStrategy[list[str]]:
    """Classes with any characters that text can hold; ``printable`` ones are words of a prompt."""
    categories = ("L", "N", "So", "Sc", "Pd") if printable else None
    characters = st.characters(
        categories=categories, exclude_categories=None if categories else ("Cs",)
    ).filter(lambda c: c != "\0")
    name = st.text(characters, min_size=1, max_size=6)
    if printable:
        name = name.filter(lambda text: unicodedata.is_normalized("NFKC", text.casefold()))
    awkward = st.sampled_from(["\U0001f98a fox", "na\u00efve", "\u732b", "100 %", "it's", "a b"])
    return st.lists(st.one_of(name, awkward), min_size=1, max_size=12, unique_by=str.casefold)


@st.composite
def mask(draw: st.DrawFn, size: tuple[int, int]) -> Mask:
    """A mask: nothing, one pixel, a line, a ring, all of the image, a block at a border, noise."""
    height, width = size
    out = np.zeros(size, bool)
    kind = draw(st.sampled_from(["nothing", "pixel", "line", "ring", "all", "block", "noise"]))
    y0, y1 = sorted(draw(st.tuples(*[st.integers(0, height - 1)] * 2)))
    x0, x1 = sorted(draw(st.tuples(*[st.integers(0, width - 1)] * 2)))
    if kind == "pixel":
        out[y0, x0] = True
    elif kind == "line":
        out[y0 if draw(st.booleans()) else slice(y0, None), x0:] = True
        out[y0 + 1 :, x0 + 1 :] = False
    elif kind == "ring":
        out[y0 : y1 + 1, x0 : x1 + 1] = True
        out[y0 + 1 : y1, x0 + 1 : x1] = False
    elif kind == "all":
        out[:] = True
    elif kind == "block":
        out[y0:, x0 : x1 + 1] = True
    elif kind == "noise":
        drawn = draw(hnp.arrays(bool, (min(height, 12), min(width, 12))))
        rows, columns = (-(-n // m) for n, m in zip(size, drawn.shape, strict=True))
        out[:] = drawn.repeat(rows, 0).repeat(columns, 1)[:height, :width]
    return out


@st.composite
def scenes(draw: st.DrawFn, *, least: int = 1, printable: bool = False, most: int = 45) -> Scene:
    """Instances of some classes in an image, whose sides are from ``least`` on.

    Args:
        draw: Of hypothesis.
        least: Smallest side in pixels.
        printable: Whether classes are words of a prompt.
        most: Largest side in pixels.
    """
    side = st.integers(least, most)
    size = draw(st.tuples(side, side))
    names = draw(class_names(printable))
    masks = draw(st.lists(mask(size), max_size=5))
    labels = [draw(st.sampled_from(names)) for _ in masks]
    return Scene(names, labels, np.array(masks, bool).reshape(-1, *size))


FILE_NAMES = st.sampled_from(
    ["a", "\U0001f98a", "caf\u00e9 (1)", "a.b", "%d", "#1", "\u732b, hund"]
)
"""Names of image files without their ending."""


def farthest_wrong(mask: Mask, drawn: Mask) -> float:
    """Distance in pixels of the farthest wrong pixel from the border of the mask."""
    wrong = mask ^ drawn
    if not wrong.any():
        return 0.0
    room = np.pad(mask, 1)
    inside, outside = (ndimage.distance_transform_edt(m)[1:-1, 1:-1] for m in (room, ~room))
    return float(np.where(mask, inside, outside)[wrong].max())


def count_parts(mask: Mask) -> int:
    """Number of parts of a mask."""
    return int(ndimage.label(mask, EIGHT)[1])

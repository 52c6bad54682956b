"""Instances, the result of every model call, and the compact masks that they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MissingAbilityError, PromptError, shorten
from .io import rle
from .values import is_share

Array = npt.NDArray[Any]
Box = tuple[int, int, int, int]

NEGATIVE, POSITIVE, TOP_LEFT, BOTTOM_RIGHT, NOT_A_POINT = 0, 1, 2, 3, -1
"""Labels of points: a click off the object or on it, the corners of a box, and padding."""


@dataclass(frozen=True, eq=False)
class LogitPatch:
    """A mask as logits on the model's coarse grid, cut to the part that decides the mask.

    Attributes:
        logits: (h, w) float32, positive inside the mask.
        top: Row of the patch in the grid.
        left: Column of the patch in the grid.
        grid: Rows and columns of the full grid, which spans the image.
    """

    logits: Array
    top: int
    left: int
    grid: tuple[int, int]

    @classmethod
    def cut(cls, logits: Array) -> LogitPatch:
        """Keep the positive cells and one cell around them; beyond, interpolation stays <= 0.

        Args:
            logits: (H, W) float, on the full grid.
        """
        rows = np.flatnonzero((logits > 0).any(1))
        if not len(rows):
            return cls(np.zeros((0, 0), np.float32), 0, 0, logits.shape)
        columns = np.flatnonzero((logits > 0).any(0))
        top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
        patch = logits[top : rows[-1] + 2, left : columns[-1] + 2]
        return cls(patch.astype(np.float32, copy=True), int(top), int(left), logits.shape)

    def crop(self, size: tuple[int, int]) -> tuple[Array, Box]:
        """Enlarge the mask to the image by bilinear interpolation.

        Args:
            size: (height, width) of the image.

        Returns:
            (h, w) bool, the mask in its box, and the box (x0, y0, x1, y1) in pixels.
        """
        if not self.logits.size:
            return _nothing()
        rows, low_y, high_y, part_y = _sampling(self.top, len(self.logits), self.grid[0], size[0])
        columns, low_x, high_x, part_x = _sampling(
            self.left, self.logits.shape[1], self.grid[1], size[1]
        )
        dense = np.empty((len(part_y), len(part_x)), bool)
        # A few rows at a time: the mask of a panorama takes a gigabyte in float32.
        step = max(1, (1 << 22) // max(1, len(part_x)))
        for top in range(0, len(part_y), step):
            some = slice(top, top + step)
            share = part_y[some, None]
            tall = self.logits[low_y[some]] * (1 - share) + self.logits[high_y[some]] * share
            dense[some] = tall[:, low_x] * (1 - part_x) + tall[:, high_x] * part_x > 0
        return _tighten(dense, rows, columns)


@dataclass(frozen=True, eq=False)
class BitPatch:
    """A mask as pixels in its box.

    Attributes:
        pixels: (h, w) bool.
        top: Row of the first pixel in the image.
        left: Column of the first pixel in the image.
    """

    pixels: Array
    top: int
    left: int

    @classmethod
    def cut(cls, mask: Array) -> BitPatch:
        """Cut a mask to its box.

        Args:
            mask: (H, W) bool, of the full image.
        """
        pixels, (left, top, _, _) = _tighten(np.asarray(mask, bool), 0, 0)
        return cls(pixels.copy(), top, left)

    def crop(self, size: tuple[int, int]) -> tuple[Array, Box]:
        """The mask in its box.

        Args:
            size: Not used; the pixels are those of the image.

        Returns:
            (h, w) bool, and the box (x0, y0, x1, y1) in pixels.
        """
        height, width = self.pixels.shape
        return self.pixels, (self.left, self.top, self.left + width, self.top + height)


@dataclass(frozen=True, eq=False)
class RunPatch:
    """A mask as run lengths, for pictures whose pixels are too many to hold.

    Attributes:
        rle: {"size": [H, W], "counts": bytes}, of the full image.
        box: (x0, y0, x1, y1) of the mask in pixels.
    """

    rle: dict[str, Any]
    box: Box

    @property
    def top(self) -> int:
        """Row of the first pixel in the image."""
        return self.box[1]

    @property
    def left(self) -> int:
        """Column of the first pixel in the image."""
        return self.box[0]

    @property
    def pixels(self) -> Array:
        """(h, w) bool in the box, decoded at each access."""
        x0, y0, x1, y1 = self.box
        if x1 <= x0 or y1 <= y0:
            return np.zeros((0, 0), bool)
        return rle.decode(rle.crop(self.rle, self.box))

    def crop(self, size: tuple[int, int]) -> tuple[Array, Box]:
        """The mask in its box.

        Args:
            size: Not used; the pixels are those of the image.

        Returns:
            (h, w) bool, and the box (x0, y0, x1, y1) in pixels.
        """
        return self.pixels, self.box


Patch = LogitPatch | BitPatch | RunPatch


def _nothing() -> tuple[Array, Box]:
    return np.zeros((0, 0), bool), (0, 0, 0, 0)


def _sampling(start: int, count: int, cells: int, pixels: int) -> tuple[int, Array, Array, Array]:
    """Along one axis, the cells of a patch that each pixel interpolates between.

    Args:
        start: First cell of the patch.
        count: Cells of the patch.
        cells: Cells of the full grid.
        pixels: Pixels of the image.

    Returns:
        The first pixel that reads the patch; for it and those that follow, the lower and the higher
        cell within the patch, and the weight of the higher cell.
    """
    scale = cells / pixels
    at = np.maximum((np.arange(pixels, dtype=np.float64) + 0.5) * scale - 0.5, 0)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, cells - 1)
    inside = (low >= start) & (high < start + count)
    # A pixel of which one cell is outside the patch is more than one cell from a positive cell.
    first, last = (np.argmax(inside), pixels - np.argmax(inside[::-1])) if inside.any() else (0, 0)
    span = slice(int(first), int(last))
    share = (at - low)[span].astype(np.float32)
    return int(first), low[span] - start, high[span] - start, share


def _tighten(mask: Array, top: int, left: int) -> tuple[Array, Box]:
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return _nothing()
    columns = np.flatnonzero(mask.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    box = (int(left + x0), int(top + y0), int(left + x1), int(top + y1))
    return mask[y0:y1, x0:x1], box


@dataclass(frozen=True, eq=False)
class Instances:
    """Instances found in one image.

    Attributes:
        boxes: (N, 4) float32, (x0, y0, x1, y1) in pixels, within the image.
        scores: (N,) float32 in [0, 1]; for concepts the score of the query times the presence.
        presence: (N,) float32, probability that the instance's concept is in the image.
        labels: The class of each of the N instances: its concept, where concepts are phrases.
        size: (height, width) of the image in pixels.
        patches: N masks in compact form, or None where the model has no mask head.
        concepts: All classes that were searched for, found or not.
        concept_presence: Probability of each of these classes that it is in the image; for a class
            of several phrases that of the most probable one.
        track_ids: (N,) int64 identities in a video, or None.
        low_res: (N, 1, h, w) float32 mask logits of an interactive prediction, which can be passed
            as ``mask_input`` to the next; None otherwise.
        phrases: The phrase that found each of the N instances; by default the labels.
    """

    boxes: Array
    scores: Array
    presence: Array
    labels: list[str]
    size: tuple[int, int]
    patches: list[Patch] | None = None
    concepts: tuple[str, ...] = ()
    concept_presence: dict[str, float] = field(default_factory=dict)
    track_ids: Array | None = None
    low_res: Array | None = field(default=None, repr=False)
    phrases: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.labels)
        shapes: dict[str, tuple[Array | None, tuple[int, ...]]] = {
            "boxes": (self.boxes, (n, 4)),
            "scores": (self.scores, (n,)),
            "presence": (self.presence, (n,)),
            "track_ids": (self.track_ids, (n,)),
        }
        for name, (value, shape) in shapes.items():
            if value is not None and value.shape != shape:
                raise PromptError(f"{name} has shape {value.shape}; {n} labels need {shape}")
        if self.patches is not None and len(self.patches) != n:
            raise PromptError(f"{len(self.patches)} masks for {n} labels")
        if not self.phrases:
            object.__setattr__(self, "phrases", list(self.labels))  # the class is frozen
        if len(self.phrases) != n:
            raise PromptError(f"{len(self.phrases)} phrases for {n} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Instances]:
        return (self[i : i + 1] for i in range(len(self)))

    def __repr__(self) -> str:
        counts = {c: self.labels.count(c) for c in dict.fromkeys((*self.concepts, *self.labels))}
        found = ", ".join(f"{n} {c!r}" for c, n in counts.items()) or "nothing"
        return f"Instances({found}; image {self.size[1]} x {self.size[0]})"

    def __getitem__(self, index: int | slice | Sequence[int] | Array) -> Instances:
        """Select instances.

        Args:
            index: An index, a slice, indices, or a (N,) bool array.
        """
        if isinstance(index, (int, np.integer)):
            index = [int(index)]
        if not isinstance(index, slice):
            index = np.asarray(index)
            index = index if index.size else index.astype(np.int64)  # [] is float
        rows = np.arange(len(self))[index]
        return Instances(
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            presence=self.presence[rows],
            labels=[self.labels[i] for i in rows],
            size=self.size,
            patches=None if self.patches is None else [self.patches[i] for i in rows],
            concepts=self.concepts,
            concept_presence=self.concept_presence,
            track_ids=None if self.track_ids is None else self.track_ids[rows],
            low_res=None if self.low_res is None else self.low_res[rows],
            phrases=[self.phrases[i] for i in rows],
        )

    def above(self, threshold: float) -> Instances:
        """Select the instances with a higher score; the model is not run again.

        Args:
            threshold: A score in [0, 1].

        Raises:
            PromptError: It is not a number in this range.
        """
        if not is_share(threshold):
            raise PromptError(f"threshold is a score between 0 and 1; got {shorten(threshold)}")
        return self[self.scores > threshold]

    def crop(self, index: int) -> tuple[Array, Box]:
        """Make the mask of one instance, cut to its box.

        Args:
            index: Which instance.

        Returns:
            (h, w) bool, and the box (x0, y0, x1, y1) in pixels. An instance without a pixel has an
            empty mask and the box (0, 0, 0, 0).

        Raises:
            MissingAbilityError: The model has no mask head.
        """
        return self._patch(index).crop(self.size)

    def mask(self, index: int) -> Array:
        """Make the mask of one instance, (H, W) bool.

        Args:
            index: Which instance.

        Raises:
            MissingAbilityError: The model has no mask head.
        """
        out = np.zeros(self.size, bool)
        pixels, (x0, y0, x1, y1) = self.crop(index)
        out[y0:y1, x0:x1] = pixels
        return out

    @property
    def masks(self) -> Array:
        """All masks, (N, H, W) bool; each access makes a new array of N * H * W bytes."""
        out = np.zeros((len(self), *self.size), bool)
        for i in range(len(self)):
            pixels, (x0, y0, x1, y1) = self.crop(i)
            out[i, y0:y1, x0:x1] = pixels
        return out

    @property
    def rles(self) -> list[dict[str, Any]]:
        """All masks as COCO run lengths, {"size": [H, W], "counts": str}."""
        return [self._rle(i) for i in range(len(self))]

    def _rle(self, index: int) -> dict[str, Any]:
        patch = self._patch(index)
        if isinstance(patch, RunPatch):
            return {**patch.rle, "counts": patch.rle["counts"].decode("ascii")}
        return rle.encode_cut(*patch.crop(self.size), self.size)

    def _patch(self, index: int) -> Patch:
        if self.patches is None:
            raise MissingAbilityError(
                "these instances have boxes and no masks: the weights have no mask head"
            )
        return self.patches[index]


def join(parts: Sequence[Instances]) -> Instances:
    """Concatenate instances of one image.

    Args:
        parts: At least one, of images of the same size. Masks are kept if all parts have them.
    """
    first = parts[0]
    patches = None
    if all(p.patches is not None for p in parts):
        patches = [patch for p in parts for patch in p.patches or ()]
    presence: dict[str, float] = {}
    for part in parts:
        for name, value in part.concept_presence.items():
            presence[name] = max(value, presence.get(name, 0.0))
    return Instances(
        boxes=np.concatenate([p.boxes for p in parts]),
        scores=np.concatenate([p.scores for p in parts]),
        presence=np.concatenate([p.presence for p in parts]),
        labels=[label for p in parts for label in p.labels],
        size=first.size,
        patches=patches,
        concepts=tuple(dict.fromkeys(c for p in parts for c in p.concepts)),
        concept_presence=presence,
        phrases=[phrase for p in parts for phrase in p.phrases],
    )

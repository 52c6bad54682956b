"""What goes in and out: the one currency of predictor and adapters. NumPy, frozen, checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PromptError

Array = npt.NDArray[Any]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class LogitPatch:
    """A mask as the model gives it: logits on a coarse grid, cut to where they can matter.

    logits: (h, w) float32, positive is inside. top, left: of the patch in the grid.
    grid: rows and columns of the whole grid.
    """

    logits: Array
    top: int
    left: int
    grid: tuple[int, int]

    @classmethod
    def cut(cls, logits: Array) -> LogitPatch:
        """Keep the positive cells and one more all round: beyond, interpolation stays <= 0."""
        rows = np.flatnonzero((logits > 0).any(1))
        if not len(rows):
            return cls(np.zeros((0, 0), np.float32), 0, 0, logits.shape)
        columns = np.flatnonzero((logits > 0).any(0))
        top, left = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
        patch = logits[top : rows[-1] + 2, left : columns[-1] + 2]
        return cls(patch.astype(np.float32, copy=True), int(top), int(left), logits.shape)

    def crop(self, size: tuple[int, int]) -> tuple[Array, Box]:
        """The mask at image size by bilinear interpolation, cut to its own box."""
        if not self.logits.size:
            return _nothing()
        rows, low_y, high_y, part_y = _sampling(self.top, len(self.logits), self.grid[0], size[0])
        columns, low_x, high_x, part_x = _sampling(
            self.left, self.logits.shape[1], self.grid[1], size[1]
        )
        dense = np.empty((len(part_y), len(part_x)), bool)
        # Some rows at a time: a panorama's mask in float32 is a gigabyte.
        step = max(1, (1 << 22) // max(1, len(part_x)))
        for top in range(0, len(part_y), step):
            some = slice(top, top + step)
            share = part_y[some, None]
            tall = self.logits[low_y[some]] * (1 - share) + self.logits[high_y[some]] * share
            dense[some] = tall[:, low_x] * (1 - part_x) + tall[:, high_x] * part_x > 0
        return _tighten(dense, rows, columns)


@dataclass(frozen=True, eq=False)
class BitPatch:
    """A mask as pixels: ``pixels`` (h, w) bool, at row ``top`` and column ``left``."""

    pixels: Array
    top: int
    left: int

    @classmethod
    def cut(cls, mask: Array) -> BitPatch:
        """Cut a (H, W) mask to its box."""
        pixels, (left, top, _, _) = _tighten(np.asarray(mask, bool), 0, 0)
        return cls(pixels.copy(), top, left)

    def crop(self, size: tuple[int, int]) -> tuple[Array, Box]:
        """The pixels and their box; the image's size is already theirs."""
        height, width = self.pixels.shape
        return self.pixels, (self.left, self.top, self.left + width, self.top + height)


Patch = LogitPatch | BitPatch


def _nothing() -> tuple[Array, Box]:
    return np.zeros((0, 0), bool), (0, 0, 0, 0)


def _sampling(start: int, count: int, cells: int, pixels: int) -> tuple[int, Array, Array, Array]:
    """Where pixels read a patch of ``count`` of ``cells`` cells, as bilinear enlarging does.

    Returns: first pixel, lower and higher cell in the patch, share of the higher.
    """
    scale = cells / pixels
    at = np.maximum((np.arange(pixels, dtype=np.float64) + 0.5) * scale - 0.5, 0)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, cells - 1)
    inside = (low >= start) & (high < start + count)
    # A pixel that reads one cell outside the patch reads a border of the whole grid or is
    # further than one cell from anything positive.
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
        boxes: (N, 4) float32, xyxy in pixels of the image, within it.
        scores: (N,) float32 in [0, 1]; for concepts the query's fit times the presence.
        presence: (N,) float32, probability that the instance's concept is in the image.
        labels: N concepts. concepts: all that were asked, found or not.
        concept_presence: probability of each concept that was asked.
        size: (height, width) of the image.
        patches: N masks in compact form, or None where the model has no mask head.
        track_ids: (N,) int64 identities in a video, or None.
        low_res: (N, 1, h, w) float32 mask logits of an interactive answer, to be given back
            as ``mask_input``; None otherwise.
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

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Instances]:
        return (self[i : i + 1] for i in range(len(self)))

    def __repr__(self) -> str:
        counts = {c: self.labels.count(c) for c in dict.fromkeys((*self.concepts, *self.labels))}
        found = ", ".join(f"{n} {c!r}" for c, n in counts.items()) or "nothing"
        return f"Instances({found}; image {self.size[1]} x {self.size[0]})"

    def __getitem__(self, index: int | slice | Sequence[int] | Array) -> Instances:
        """Some of the instances: an index, a slice, indices, or a (N,) bool array."""
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
        )

    def above(self, threshold: float) -> Instances:
        """The instances that score more than ``threshold``; nothing is computed again."""
        return self[self.scores > threshold]

    def crop(self, index: int) -> tuple[Array, Box]:
        """Mask of one instance cut to its own box: (h, w) bool, and (x0, y0, x1, y1) pixels.

        An instance without a pixel has an empty mask and the box (0, 0, 0, 0).
        """
        return self._patch(index).crop(self.size)

    def mask(self, index: int) -> Array:
        """Mask of one instance, (H, W) bool."""
        out = np.zeros(self.size, bool)
        pixels, (x0, y0, x1, y1) = self.crop(index)
        out[y0:y1, x0:x1] = pixels
        return out

    @property
    def masks(self) -> Array:
        """All masks, (N, H, W) bool, made anew at each access: N * H * W bytes."""
        out = np.zeros((len(self), *self.size), bool)
        for i in range(len(self)):
            pixels, (x0, y0, x1, y1) = self.crop(i)
            out[i, y0:y1, x0:x1] = pixels
        return out

    @property
    def rles(self) -> list[dict[str, Any]]:
        """All masks as COCO run lengths, {"size": [H, W], "counts": str}; one dense at a time."""
        from .rle import encode_cut

        return [encode_cut(*self.crop(i), self.size) for i in range(len(self))]

    def _patch(self, index: int) -> Patch:
        if self.patches is None:
            from .errors import MissingAbilityError

            raise MissingAbilityError(
                "these instances have boxes and no masks: the weights have no mask head"
            )
        return self.patches[index]


def join(parts: Sequence[Instances]) -> Instances:
    """Instances of one image from several answers, in order."""
    first = parts[0]
    patches = None
    if all(p.patches is not None for p in parts):
        patches = [patch for p in parts for patch in p.patches or ()]
    return Instances(
        boxes=np.concatenate([p.boxes for p in parts]),
        scores=np.concatenate([p.scores for p in parts]),
        presence=np.concatenate([p.presence for p in parts]),
        labels=[label for p in parts for label in p.labels],
        size=first.size,
        patches=patches,
        concepts=tuple(c for p in parts for c in p.concepts),
        concept_presence={k: v for p in parts for k, v in p.concept_presence.items()},
    )

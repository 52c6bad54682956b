"""A detector and a memory tracker that follow a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from efficientsam3.io.frame_types import Frame
from efficientsam3.types import Array, BitPatch, Instances, LogitPatch, Patch, join
from efficientsam3.video.types import TrackerOutput

SIZE = (60, 80)


def disc(y: float, x: float, r: float, size: tuple[int, int] = SIZE) -> Array:
    """A mask, (H, W) bool."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= r**2


def block(y: int, x: int, high: int, wide: int, size: tuple[int, int] = SIZE) -> Array:
    mask = np.zeros(size, bool)
    mask[max(y, 0) : max(y + high, 0), max(x, 0) : max(x + wide, 0)] = True
    return mask


def instances(
    masks: Sequence[Array],
    labels: Sequence[str] | str = "thing",
    scores: Sequence[float] | float = 0.9,
    *,
    size: tuple[int, int] | None = None,
    logits: bool = False,
    boxes_only: bool = False,
) -> Instances:
    """Instances of masks (H, W) bool. logits: as logits on a grid, as a model gives them."""
    n = len(masks)
    size = size or (masks[0].shape if n else SIZE)
    patches: list[Patch] = [
        LogitPatch.cut(np.where(m, 4.0, -4.0)) if logits else BitPatch.cut(m) for m in masks
    ]
    names = [labels] * n if isinstance(labels, str) else list(labels)
    values = np.broadcast_to(np.asarray(scores, np.float32), (n,)).copy()
    return Instances(
        boxes=np.array([p.crop(size)[1] for p in patches], np.float32).reshape(n, 4),
        scores=values,
        presence=values,
        labels=names,
        size=size,
        patches=None if boxes_only else patches,
        concepts=tuple(dict.fromkeys(names)),
    )


class ScriptedModel:
    """Detects ``script(index)``; the index of an image is the value of its first pixel.

    asked: (index, concepts, boxes) of each question, in order.
    """

    name = "scripted"
    abilities = frozenset({"concepts", "exemplars", "masks"})

    def __init__(self, script: Callable[[int], Instances]) -> None:
        self.script = script
        self.asked: list[tuple[int, Any, Any]] = []
        self.read: list[int] = []

    def encode(self, image: Array) -> Any:
        index = int(image.reshape(-1)[0]) + 256 * int(image.reshape(-1)[1])
        self.read.append(index)
        return SimpleNamespace(size=image.shape[:2], index=index)

    def segment(
        self,
        image: Any,
        concepts: Any = None,
        *,
        boxes: Any = None,
        box_labels: Any = None,
        threshold: float = 0.5,
        nms: float | None = None,
    ) -> Instances:
        self.asked.append((image.index, concepts, boxes))
        found = self.script(image.index)
        names = [concepts or "visual"] if not isinstance(concepts, list) else concepts
        parts = [found[np.array([n == c for n in found.labels], bool)] for c in names]
        return replace(join(parts).above(threshold), concepts=tuple(names))


def frames(count: int, size: tuple[int, int] = SIZE, first: int = 0) -> list[Frame]:
    """Frames whose first pixel is their index."""
    out = []
    for index in range(first, first + count):
        image = np.zeros((*size, 3), np.uint8)
        image[0, 0, :2] = index % 256, index // 256
        out.append(Frame(index, index / 10, image))
    return out


class ScriptedMemory:
    """A memory tracker that gives ``see(frame, id)``: logits (h, w), and a presence logit."""

    adopt_detection_iou = 0.0

    def __init__(self, see: Callable[[int, int], tuple[Array, float]] | None = None) -> None:
        if see is not None:
            self.see = see
        self._given: dict[int, list[int]] = {}
        self.remembered: list[tuple[int, list[int]]] = []

    @property
    def ids(self) -> list[int]:
        return list(self._given)

    def read(self, image: Any) -> Any:
        return image

    def propagate(self, frame: int, features: Any) -> TrackerOutput:
        results = [self.see(frame, id) for id in self.ids]
        logits = [torch.from_numpy(np.asarray(mask, np.float32).copy()) for mask, _ in results]
        presence = torch.tensor([p for _, p in results], dtype=torch.float32)
        masks = torch.stack(logits) if logits else torch.zeros(0, 8, 8)
        return TrackerOutput(
            self.ids, masks, presence, presence.sigmoid(), torch.zeros(len(results), 1)
        )

    def add_masks(
        self, frame: int, features: Any, ids: list[int], masks: Any, shared: str | None = None
    ) -> TrackerOutput:
        for id in ids:
            self._given.setdefault(id, []).append(frame)
        large = torch.where(masks, 10.0, -10.0)
        ones = torch.ones(len(ids))
        return TrackerOutput(list(ids), large, 10 * ones, ones, torch.zeros(len(ids), 1))

    def add_points(
        self, frame: int, features: Any, id: int, xy: Any, labels: Any, previous: Any = None
    ) -> TrackerOutput:
        self.pointed = xy, labels, previous
        self._given.setdefault(id, []).append(frame)
        mask = torch.full((1, 24, 24), -5.0)
        y, x = (int(v * 24) for v in xy[0].flip(0))
        mask[0, max(y - 3, 0) : y + 3, max(x - 3, 0) : x + 3] = 5
        one = torch.ones(1)
        return TrackerOutput([id], mask, 10 * one, one, torch.zeros(1, 1))

    def remember(self, frame: int, features: Any, tracked: TrackerOutput, **options: Any) -> None:
        self.remembered.append((frame, list(tracked.ids)))

    def remove(self, ids: list[int]) -> None:
        for id in ids:
            del self._given[id]

    def conditioned(self, id: int) -> list[int]:
        return sorted(self._given[id])

    def release(self, frame: int, id: int) -> None:
        self._given[id].remove(frame)

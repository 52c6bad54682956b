"""Instances with awkward masks, and a model that answers in milliseconds."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from efficientsam3.types import BitPatch, Instances

if importlib.util.find_spec("supervision") is None:
    collect_ignore_glob = ["test_*.py"]

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="session")
def photo() -> npt.NDArray[np.uint8]:
    """A few colored rectangles, (48, 64, 3) RGB."""
    rng = np.random.default_rng(0)
    pixels = np.full((HEIGHT, WIDTH, 3), (200, 120, 40), np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, 40), rng.integers(0, 52)
        pixels[y : y + 20, x : x + 24] = rng.integers(0, 255, 3)
    return pixels


def shapes(size: tuple[int, int] = (HEIGHT, WIDTH)) -> npt.NDArray[np.bool_]:
    """(4, H, W): a block to the image's corner, a ring, three parts, one pixel."""
    masks = np.zeros((4, *size), bool)
    masks[0, 36:, 50:] = True
    masks[1, 4:20, 4:20] = True
    masks[1, 9:14, 8:15] = False
    masks[2, 25:31, 2:9] = masks[2, 33:45, 12:15] = masks[2, 27, 20:30] = True
    masks[3, 10, 40] = True
    return masks


def make(
    masks: npt.NDArray[np.bool_],
    labels: list[str] | None = None,
    scores: Any = None,
    concepts: tuple[str, ...] = ("cat", "dog", "bird"),
    **more: Any,
) -> Instances:
    """Instances of dense masks; boxes are wider than the masks, as a model's may be."""
    count = len(masks)
    names = labels or ["dog", "cat", "dog", "cat", "dog", "cat"][:count]
    patches = [BitPatch.cut(mask) for mask in masks]
    boxes = np.array([p.crop(masks.shape[1:])[1] for p in patches], np.float32).reshape(count, 4)
    return Instances(
        boxes=boxes + np.array([2, 1.5, -2, -1.5], np.float32),
        scores=np.linspace(0.9, 0.6, count, dtype=np.float32) if scores is None else scores,
        presence=np.full(count, 0.75, np.float32),
        labels=names,
        size=masks.shape[1:],
        patches=list(patches),
        concepts=concepts,
        **more,
    )


@pytest.fixture
def four() -> Instances:
    return make(shapes())


@pytest.fixture
def nothing() -> Instances:
    return make(shapes()[:0])

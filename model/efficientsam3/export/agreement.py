"""Agreement of an exported model with PyTorch in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..runtime.manifest import Manifest
from ..runtime.pixels import normalize
from ..runtime.sessions import open_sessions
from ..types import Array
from .graphs import Graph


def example_pixels(config: ModelConfig) -> Tensor:
    """Normalized pixels of a picture with large and small shapes, always the same.

    Args:
        config: Configuration of the model that reads them.

    Returns:
        (1, 3, R, R) float32.
    """
    rng = np.random.default_rng(0)
    picture = np.full((256, 256, 3), rng.integers(0, 256, 3), np.uint8)
    for side in (160, 96, 64, 48, 32, 24, 16, 12, 8, 6):
        top, left = rng.integers(0, 256 - side, 2)
        picture[top : top + side, left : left + side] = rng.integers(0, 256, 3)
    noise = rng.integers(-8, 9, picture.shape)
    picture = (picture + noise).clip(0, 255).astype(np.uint8)
    c = config
    return torch.from_numpy(normalize(picture, c.resolution, c.mean, c.std))


def compare(graphs: list[Graph], folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Run each graph on its example inputs, and compare with PyTorch's outputs.

    Args:
        graphs: The graphs, with the outputs of PyTorch in float32.
        folder: The folder with their files.
        manifest: The manifest of these files.

    Returns:
        The largest absolute difference of each output by "graph.output", relative to the largest
        value where this is above 1; the largest of all as "largest difference"; and, with
        masks, "mask IoU", the mean over the masks of the example.
    """
    sessions = open_sessions(folder, manifest)
    differences: dict[str, float] = {}
    out: dict[str, Any] = {}
    for graph in graphs:
        found = sessions.run(graph.name, **{k: v.numpy() for k, v in graph.inputs.items()})
        for name, expected in graph.example.items():
            theirs = expected.numpy()
            scale = max(1.0, float(np.abs(theirs).max(initial=0)))
            difference = float(np.abs(found[name] - theirs).max(initial=0)) / scale
            differences[f"{graph.name}.{name}"] = float(f"{difference:.3g}")
        if graph.name == "masks":
            ours, theirs = found["masks"][0] > 0, graph.example["masks"][0].numpy() > 0
            out["mask IoU"] = round(float(mask_overlaps(ours, theirs).mean()), 4)
    return {"largest difference": max(differences.values()), **out, "differences": differences}


def mask_overlaps(ours: Array, theirs: Array, *, matched: bool = False) -> Array:
    """IoU of each mask with its like; 1 where both are empty.

    Args:
        ours: (K, h, w) bool.
        theirs: (L, h, w) bool, in the same order unless ``matched``.
        matched: Compare each mask of ``theirs`` with all of ``ours``, and take the best.

    Returns:
        (L,) float64.
    """

    def overlap(a: Array, b: Array) -> Array:
        either = (a | b).sum((-2, -1))
        shared = (a & b).sum((-2, -1))
        return np.where(either, shared / np.maximum(either, 1), 1.0)

    if matched:
        return np.array([overlap(ours, mask[None]).max() for mask in theirs])
    return overlap(ours, theirs)

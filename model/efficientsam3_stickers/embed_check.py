"""Comparison of a new packaged model with the one that the package has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.train.validation import score

from .art import StickerArt
from .concepts import SPLITS
from .samples import to_training_sample
from .scenes import SceneGenerator

COMPARED = ("seen", "unseen-style")
"""Splits of the comparison."""
SIDE = 336
"""Side of its scenes in pixels."""
FIRST_SEED = 2_000_000
"""Seed of the first scene, which no training, calibration or benchmark uses."""


def validation_scores(
    folder: Path, scenes: int, stickers: StickerArt | None = None
) -> dict[str, float]:
    """cgF1 of a saved model on scenes that serve this alone.

    Args:
        folder: Folder of the model.
        scenes: Scenes of each split.
        stickers: The stickers; None: those in the user's cache.

    Returns:
        cgF1 in percent by split.

    Raises:
        ArtNotFoundError: There are no stickers on this machine.
        CheckpointError: The model is damaged.
    """
    art = StickerArt.open() if stickers is None else stickers
    _, config, net = load_folder(folder)
    net.eval().requires_grad_(False)
    out = {}
    for name in COMPARED:
        generator = SceneGenerator(art, SPLITS[name], SIDE)
        samples = [to_training_sample(generator.scene(FIRST_SEED + i)) for i in range(scenes)]
        out[name] = score(net, config, samples)["cgF1"]
    return out


def mean_score(scores: Mapping[str, float]) -> float:
    """The figure that is compared: the mean of the splits.

    Args:
        scores: cgF1 in percent by split.
    """
    return sum(scores.values()) / len(scores)

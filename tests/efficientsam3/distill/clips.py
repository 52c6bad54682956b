"""Clips that a tiny tracker can learn: coloured squares that move, and pass out of sight."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from efficientsam3.build import ModelConfig, TextConfig, build, tiny_config
from efficientsam3.distill.data.clip import TrainingClip
from efficientsam3.nn.detector import Detector

from .conftest import rouse

SIZE = (60, 80)
COLOURS = ((250, 40, 40), (40, 250, 40))


class Moving:
    """Two squares on noise, one to the right and one to the left; the same for the same number."""

    def __init__(self, count: int = 2, longest: int = 12) -> None:
        self.count, self.longest = count, longest

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"clip {index}"

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        noise = np.random.default_rng(index)
        images, masks = [], []
        for t in range(min(frames, self.longest)):
            image = noise.integers(0, 60, (*SIZE, 3), np.uint8)
            row = []
            for n, x in enumerate((5 + 6 * t, 60 - 4 * t)):
                mask = np.zeros(SIZE, bool)
                mask[8 + 30 * n : 24 + 30 * n, max(x, 0) : max(x + 16, 0)] = True
                image[mask] = COLOURS[n]
                row.append(mask)
            images.append(image)
            masks.append(tuple(row))
        return TrainingClip(self.key(index), tuple(images), tuple(masks))


def tiny_tracker(**changes: Any) -> tuple[ModelConfig, Detector]:
    """An untrained model of the real architecture that tracks; always the same. Few words."""
    words = TextConfig("mobileclip-mixer", 32, 1, 2, vocabulary=8)
    config = tiny_config(**{"text": words, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config)
        rouse(net)
    return config, net

"""Clips that a tiny tracker can learn: colored_sample squares that move, and pass out of sight."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from efficientsam3.build import build
from efficientsam3.config import ModelConfig, TextConfig, tiny_config
from efficientsam3.data.clip import TrainingClip
from efficientsam3.nn.detector import Detector

from .conftest import scale_matrices

SIZE = (60, 80)
COLORS = ((250, 40, 40), (40, 250, 40))


class Moving:
    """Clips of two squares on noise that move in opposite directions. Each index has its own."""

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
                image[mask] = COLORS[n]
                row.append(mask)
            images.append(image)
            masks.append(tuple(row))
        return TrainingClip(self.key(index), tuple(images), tuple(masks))


def tiny_tracker(**changes: Any) -> tuple[ModelConfig, Detector]:
    """An untrained tracker of the real architecture. It cannot read text."""
    words = TextConfig("mobileclip-mixer", 32, 1, 2, vocabulary=8)
    config = tiny_config(**{"text": words, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config)
        scale_matrices(net)
    return config, net

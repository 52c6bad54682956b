"""Tiny models, and samples that a tiny model can memorize."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from efficientsam3.build import build
from efficientsam3.config import ModelConfig, tiny_config
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.types import PhraseQuery
from efficientsam3.nn.detector import Detector


class TinyTrunk(nn.Module):
    """An image encoder whose map has half the grid of the tiny teacher's.

    It maps (B, 3, R, R) pixels to (B, width, R / 28, R / 28).
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 7, 7),
            nn.BatchNorm2d(32),
            nn.GELU(),
            nn.Conv2d(32, 64, 4, 4),
            nn.GELU(),
            nn.Conv2d(64, width, 3, padding=1),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.body(pixels)
        return out


class Shapes:
    """Samples with two bright rectangles on noise, masks and phrases. Each index has its own."""

    def __init__(self, count: int = 4, size: tuple[int, int] = (60, 80)) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"shape {index}"

    def __getitem__(self, index: int) -> TrainingSample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        random = np.random.default_rng(index)
        height, width = self.size
        image = random.integers(0, 60, (height, width, 3), np.uint8)
        masks, boxes = [], []
        for side in range(2):
            x, y = side * 40 + random.integers(2, 12), random.integers(2, 25)
            w, h = random.integers(12, 24, 2)
            mask = np.zeros(self.size, bool)
            mask[y : y + h, x : x + w] = True
            image[mask] = random.integers(120, 255, 3)
            masks.append(mask)
            boxes.append([x, y, x + w, y + h])
        queries = (PhraseQuery("rectangle", (0, 1)), PhraseQuery("left one", (0,)))
        return TrainingSample(
            self.key(index),
            image,
            np.array(boxes, np.float32),
            tuple(masks),
            (*queries, PhraseQuery("dog")),
        )


COLORS = ("red thing", "green thing", "blue thing")


def colored_sample(number: int) -> TrainingSample:
    """Two rectangles in two of three colors, with phrases of all three colors."""
    sample = Shapes(1 << 60)[number]
    image = np.array(sample.image)
    queries = []
    for index in range(2):
        color = (number + index) % 3
        image[sample.mask(index)] = [255 if c == color else 0 for c in range(3)]
        queries.append(PhraseQuery(COLORS[color], (index,)))
    queries.append(PhraseQuery(COLORS[(number + 2) % 3]))
    return dataclasses.replace(sample, image=image, queries=tuple(queries))


def scale_matrices(net: nn.Module) -> None:
    """Give untrained matrices and biases the scale of trained ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            normal = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(normal * max(0.1, (1.5 / weight[0].numel()) ** 0.5))
            elif name.endswith("bias"):
                weight.copy_(0.1 * normal)


def tiny_net(**changes: Any) -> tuple[ModelConfig, Detector]:
    """An untrained model of the real architecture. Its weights are always the same."""
    config = tiny_config(**{"parts": ("geometry", "masks"), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config)
        scale_matrices(net)
    return config, net


@pytest.fixture
def teacher() -> tuple[ModelConfig, Detector]:
    return tiny_net()


@pytest.fixture
def shapes() -> Shapes:
    return Shapes()


@pytest.fixture(autouse=True)
def fixed_seed() -> Any:
    """Let each test start with the same random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def train_steps(task: Any, steps: int, lr: float = 3e-3) -> tuple[float, float]:
    """Train a task's module without the loop.

    Returns:
        The mean losses of the first three and of the last three steps.
    """
    params = [p for p in task.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr)
    task.start(torch.device("cpu"))
    task.train_mode()
    losses = []
    batches = task.batches(0, 0, 1)
    for _ in range(steps):
        loss = task.loss(task.module, next(batches))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[:3])), float(np.mean(losses[-3:]))


replace = dataclasses.replace

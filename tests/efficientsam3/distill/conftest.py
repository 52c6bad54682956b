"""Tiny models, and samples that a tiny model can learn by heart."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from efficientsam3.build import ModelConfig, build, tiny_config
from efficientsam3.distill.data.sample import PhraseQuery, TrainingSample
from efficientsam3.nn.detector import Detector


class TinyTrunk(nn.Module):
    """(B, 3, R, R) -> (B, width, R / 28, R / 28): half the tiny teacher's grid."""

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
    """Bright rectangles on noise, with masks and phrases; the same for the same number."""

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


COLOURS = ("red thing", "green thing", "blue thing")


def coloured(number: int) -> TrainingSample:
    """Two rectangles in two of three colours, named by them; the third colour is absent."""
    sample = Shapes(1 << 60)[number]
    image = np.array(sample.image)
    queries = []
    for index in range(2):
        colour = (number + index) % 3
        image[sample.mask(index)] = [255 if c == colour else 0 for c in range(3)]
        queries.append(PhraseQuery(COLOURS[colour], (index,)))
    queries.append(PhraseQuery(COLOURS[(number + 2) % 3]))
    return dataclasses.replace(sample, image=image, queries=tuple(queries))


def rouse(net: nn.Module) -> None:
    """Give untrained weights the scale of trained ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            normal = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                weight.copy_(normal * max(0.1, (1.5 / weight[0].numel()) ** 0.5))
            elif name.endswith("bias"):
                weight.copy_(0.1 * normal)


def tiny_net(**changes: Any) -> tuple[ModelConfig, Detector]:
    """An untrained model of the real architecture; always the same."""
    config = tiny_config(**{"parts": ("geometry", "masks"), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config)
        rouse(net)
    return config, net


@pytest.fixture
def teacher() -> tuple[ModelConfig, Detector]:
    return tiny_net()


@pytest.fixture
def shapes() -> Shapes:
    return Shapes()


@pytest.fixture(autouse=True)
def settled() -> Any:
    """The same weights in every run, on one thread: others compute here too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def descend(task: Any, steps: int, lr: float = 3e-3) -> tuple[float, float]:
    """Train a task's module as the loop would: the first and the last steps' mean loss."""
    params = [p for p in task.module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(params, lr)
    task.start(torch.device("cpu"))
    task.train_mode()
    losses = []
    batches = task.batches(0, 0, 1)
    for _ in range(steps):
        loss = task.loss(task.module, next(batches))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return float(np.mean(losses[:3])), float(np.mean(losses[-3:]))


replace = dataclasses.replace

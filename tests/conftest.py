"""Fixtures that all tests share: a tiny model of the real architecture, and a small image."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import efficientsam3 as es3
from efficientsam3.build import build
from efficientsam3.config import tiny_config

# Before anything imports Ultralytics, which looks for the network and writes settings.
home = tempfile.mkdtemp(prefix="efficientsam3-ultralytics-")
atexit.register(shutil.rmtree, home, ignore_errors=True)
os.environ["YOLO_CONFIG_DIR"] = home
os.environ["YOLO_OFFLINE"] = "true"
os.environ["YOLO_VERBOSE"] = "false"


def scale_weights(net: nn.Module) -> None:
    """Give untrained weights the scale of trained ones, else masks are empty and scores equal."""
    generator = torch.Generator().manual_seed(0)

    def normal(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim > 1:
                weight.copy_(normal(weight) * max(0.1, (1.5 / weight[0].numel()) ** 0.5))
            elif name.endswith("bias"):
                weight.copy_(0.1 * normal(weight))
            else:
                weight.copy_(1 + 0.1 * normal(weight))
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * normal(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(1 + 0.3 * normal(buffer).clamp(-2, 2))


def tiny_model(**options: Any) -> es3.ImageModel:
    """Build an untrained model whose masks are not empty. Its weights are always the same."""
    config = options.pop("config", tiny_config())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(config).eval().requires_grad_(False)
    scale_weights(net)
    if config.late is not None:
        # Masks are low outside of their boxes, and would be of a pixel or none. Random weights
        # would lose a tracked object on some frames.
        with torch.no_grad():
            net.masks.query.layers[-1].bias[-1] += 6
            if net.has("interactive"):
                net.interactive.masks.pred_obj_score_head.layers[-1].bias += 6
    return es3.ImageModel(
        "tiny", config, lambda: net, **{"device": "cpu", "dtype": "float32", **options}
    )


@pytest.fixture(scope="session")
def tiny() -> es3.ImageModel:
    """The model of ``tiny_model``, built once."""
    return tiny_model()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute on one thread: a tiny model gains nothing from two, and test workers share cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Seed the global generators, so that no test depends on those that ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photo() -> npt.NDArray[np.uint8]:
    """A few colored rectangles, (48, 64, 3) RGB."""
    rng = np.random.default_rng(0)
    pixels = np.full((48, 64, 3), rng.integers(0, 255, 3), np.uint8)
    for _ in range(6):
        y, x = rng.integers(0, 40), rng.integers(0, 52)
        pixels[y : y + 20, x : x + 24] = rng.integers(0, 255, 3)
    return pixels

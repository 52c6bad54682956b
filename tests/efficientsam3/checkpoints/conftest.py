"""Checkpoints in upstream's layout whose weights are one number each, for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from efficientsam3.checkpoints import assemble, layout
from efficientsam3.config import ModelConfig

from ...parity.upstream import Keys, placeholders, released_keys

VISION, TEXT = "efficientvit-b0", "mobileclip-s0"
NAME = "efficientsam3-efficientvit-b0"


State = dict[str, Tensor]


def released(release: str = "3.0", context: int = 16, text: str = TEXT) -> Keys:
    return released_keys(VISION, text, context, release)


def write(path: Path, state: Any, wrapper: str | None = "model") -> Path:
    torch.save({wrapper: state} if wrapper else state, path)
    return path


def load(path: Path, **options: Any) -> tuple[ModelConfig, nn.Module]:
    return assemble.load_upstream(path, **options)


def numbers(net: nn.Module) -> dict[str, tuple[torch.Size, torch.dtype, float]]:
    """Shape, dtype and value of each learned tensor; placeholders hold one value each."""
    return {
        k: (v.shape, v.dtype, v[(0,) * v.ndim].item())
        for k, v in net.state_dict().items()
        if not layout.DERIVED.search(k)
    }


def each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """Placeholders with changed numbers, still one number each."""
    return {k: change(v[(0,) * v.ndim]).expand(v.shape) for k, v in state.items()}


def value_of(key: str) -> float:
    """What the placeholder of a released key holds."""
    (tensor,) = placeholders({key: ((), torch.float32)}).values()
    return tensor.item()


def spell_bare(key: str) -> str:
    if key.startswith("tracker."):
        return "inst_interactive_predictor.model." + key.removeprefix("tracker.")
    return key.removeprefix("detector.")


@pytest.fixture(scope="module")
def state() -> State:
    """A complete released file: each tensor is one number repeated, different for each key."""
    return placeholders(released())


@pytest.fixture(scope="module")
def plain(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That file in upstream's usual layout."""
    return write(tmp_path_factory.mktemp("plain") / "file.pt", state)


@pytest.fixture(scope="module")
def expected(plain: Path) -> dict[str, Any]:
    return numbers(load(plain)[1])

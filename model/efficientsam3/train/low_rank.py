"""Low-rank changes of weights in training (LoRA).

The changes are parametrizations of torch: a layer computes with W + scale * up @ down, while W is
frozen, and the code of the layers does not know of it. That also covers packed projections and
kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..checkpoints.adapter import change_weight
from ..checkpoints.read import State
from ..nn.detector import Detector
from ..nn.layers import Attention
from .optim import freeze_except


class LowRank(nn.Module):
    """A low-rank change of a weight, which is zero at first.

    Args:
        weight: The weight, a matrix or a kernel.
        rank: Rank of the change.
        scale: Factor on the change.
        generator: Draws the initial values of ``down``, as torch initializes a linear layer.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        bound = 1 / math.sqrt(columns)
        down = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
        self.down = nn.Parameter(down.to(weight.device))
        self.up = nn.Parameter(torch.zeros(rows, rank, device=weight.device))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, in float32 under autocast too, so that merging gives the same.

        Args:
            weight: The original weight.
        """
        with torch.autocast(weight.device.type, enabled=False):
            return change_weight(weight, self.up, self.down, self.scale)


def start_adapting(
    net: Detector,
    adapt: Sequence[str],
    train_whole: Sequence[str],
    *,
    rank: int,
    scale: float,
    seed: int,
) -> None:
    """Prepare a model for fine-tuning: all its other weights are frozen.

    In adapted parts, matrices and dense kernels get low-rank changes where these are smaller than
    the weight; smaller ones, biases and norms train whole. Embeddings and tables, and kernels of
    one channel each, stay as they are.

    Args:
        net: The model, changed in place.
        adapt: Beginnings of the names of weights that get low-rank changes.
        train_whole: Beginnings of the names of weights that train whole.
        rank: Rank of the changes, at least 1.
        scale: Factor on the changes.
        seed: Seed of their initial values.

    Raises:
        SettingsError: A beginning that no weight's name has.
    """
    whole = _beginning(net, train_whole)
    adapted = _beginning(net, adapt) - whole
    net.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    weights = dict(net.named_parameters())
    matrices = dict(_matrices(net))
    for name in sorted(adapted):
        weight = weights[name]
        if name in matrices:
            module, key = matrices[name]
            rows, columns = weight.flatten(1).shape
            if rank * (rows + columns) < rows * columns:
                change = LowRank(weight, rank, scale, generator)
                parametrize.register_parametrization(module, key, change)
                continue
        elif weight.ndim > 1:
            continue
        whole.add(name)
    for name in whole:
        weights[name].requires_grad_(True)


def changed_weights(net: Detector) -> tuple[dict[str, tuple[Tensor, Tensor]], State]:
    """What trains in a model.

    Args:
        net: A model after ``start_adapting``.

    Returns:
        (up, down) of each weight with a low-rank change; and the weights that train whole. Both by
        the names that the weights have in the model as it is saved.
    """
    low_rank: dict[str, tuple[Tensor, Tensor]] = {}
    inside: set[int] = set()
    for name, module in net.named_modules():
        if isinstance(module, LowRank):
            # Torch names it trunk.conv.parametrizations.weight.0
            weight, _, _ = name.rpartition(".")
            low_rank[weight.replace("parametrizations.", "")] = (module.up, module.down)
            inside |= {id(module.up), id(module.down)}
    whole: State = {
        name: weight
        for name, weight in net.named_parameters()
        if weight.requires_grad and id(weight) not in inside
    }
    return low_rank, whole


def _matrices(net: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """The weights that can get a low-rank change: by name, the module and its attribute."""
    for name, module in net.named_modules():
        if isinstance(module, Attention):
            yield f"{name}.in_proj_weight", (module, "in_proj_weight")
        elif isinstance(module, nn.Linear) or (
            isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups == 1
        ):
            yield f"{name}.weight", (module, "weight")


def _beginning(net: nn.Module, beginnings: Sequence[str]) -> set[str]:
    """The names of weights that have one of some beginnings."""
    net.requires_grad_(True)
    freeze_except(net, beginnings)
    return {name for name, weight in net.named_parameters() if weight.requires_grad}

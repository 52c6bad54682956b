"""Parameter groups with their learning rates, and the running average of the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SettingsError
from .muon import MuonAdamW
from .settings import LoopSettings

# A parameter group of torch, with "names" and "scale", the factor on the learning rate.
ParameterGroup = dict[str, Any]

# A layer of an encoder: `blocks.3`, or timm's `stages.2.blocks.1` and `stages.2.downsample`.
_LAYER = re.compile(r"(?:blocks|layers|stages|resblocks)\.(\d+)(?:\.(?:blocks|layers)\.(\d+))?\.")
_BEFORE_LAYERS = (
    "patch_embed",
    "pos_embed",
    "positions",
    "embedding",
    "stem",
    "ln_pre",
    "cls_token",
)


def freeze_except(module: nn.Module, parts: Iterable[str] | None) -> None:
    """Stop the gradients of all parameters but some.

    Args:
        module: The module. Parameters that are frozen already stay so.
        parts: Beginnings of the names of the parameters that go on training; None: all.

    Raises:
        SettingsError: A part that no parameter's name begins with.
    """
    if parts is None:
        return
    parts = tuple(parts)
    _check_prefixes(module, "parts", parts)
    for name, weight in module.named_parameters():
        if not any(_is_under(name, part) for part in parts):
            weight.requires_grad_(False)


def parameter_groups(module: nn.Module, settings: LoopSettings) -> list[ParameterGroup]:
    """The parameters that train, grouped by weight decay and learning-rate factor.

    Args:
        module: The module.
        settings: ``weight_decay``, ``no_decay``, ``scales`` and ``layer_decay`` count.

    Returns:
        The groups for the optimizer, in the module's order.

    Raises:
        SettingsError: ``scales`` or ``layer_decay`` names what no parameter's name begins with.
    """
    _check_prefixes(module, "scales", settings.scales)
    _check_prefixes(module, "layer_decay", settings.layer_decay)
    names = [name for name, _ in module.named_parameters()]
    layer_scales = {}
    for encoder, decay in settings.layer_decay.items():
        layers, last = layer_numbers([n for n in names if _is_under(n, encoder)], encoder)
        layer_scales.update({name: decay ** (last - d) for name, d in layers.items()})
    groups: dict[tuple[float, float], ParameterGroup] = {}
    for name, weight in module.named_parameters():
        if not weight.requires_grad:
            continue
        scale = learning_rate_scale(name, settings.scales) * layer_scales.get(name, 1.0)
        undecayed = weight.ndim <= 1 or any(piece in name for piece in settings.no_decay)
        decay = 0.0 if undecayed else settings.weight_decay
        new: ParameterGroup = {"params": [], "names": [], "weight_decay": decay, "scale": scale}
        group = groups.setdefault((decay, scale), new)
        group["params"].append(weight)
        group["names"].append(name)
    return list(groups.values())


def layer_numbers(names: Iterable[str], encoder: str) -> tuple[dict[str, int], int]:
    """The layer of each parameter of an encoder.

    Args:
        names: Names of its parameters, each beginning with ``encoder``.
        encoder: Name of the encoder.

    Returns:
        Name -> layer, 0 before the first block and highest after the last; and the number of the
        highest layer, whether there are parameters in it or not.
    """
    keys: dict[str, tuple[float, float]] = {}
    for name in names:
        rest = name[len(encoder) :].lstrip(".")
        if found := _LAYER.search(rest):
            # What a stage has beside its blocks (a down-sampling) comes before them.
            keys[name] = (int(found[1]), int(found[2]) if found[2] else -1)
        elif any(piece in rest for piece in _BEFORE_LAYERS):
            keys[name] = (-1, -1)
        else:
            keys[name] = (float("inf"), 0)
    layers = {(-1.0, -1.0), (float("inf"), 0.0), *keys.values()}
    order = {key: i for i, key in enumerate(sorted(layers))}
    return {name: order[key] for name, key in keys.items()}, len(order) - 1


def _is_under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def learning_rate_scale(name: str, scales: Mapping[str, float]) -> float:
    """The factor on the learning rate of a parameter.

    Args:
        name: Name of the parameter.
        scales: Factor by beginning of names; the longest that fits counts.
    """
    fitting = [prefix for prefix in scales if _is_under(name, prefix)]
    return scales[max(fitting, key=len)] if fitting else 1.0


def _check_prefixes(module: nn.Module, setting: str, prefixes: Iterable[str]) -> None:
    names = [name for name, _ in module.named_parameters()]
    for prefix in prefixes:
        if not any(_is_under(name, prefix) for name in names):
            parts = dict.fromkeys(name.split(".", 1)[0] for name in names)
            raise SettingsError(
                f"{setting} names {prefix!r}, but no parameter's name starts with it; "
                f"the module has: {', '.join(parts)}"
            )


def make_optimizer(groups: list[ParameterGroup], settings: LoopSettings) -> torch.optim.Optimizer:
    """The optimizer of the settings.

    Args:
        groups: The parameter groups.
        settings: Settings of the loop.
    """
    if settings.optimizer == "muon":
        return MuonAdamW(groups, settings.lr, settings.betas)
    fused = settings.precision != "16-mixed"  # its scaler clips before a fused step only
    return torch.optim.AdamW(groups, settings.lr, settings.betas, fused=fused)


def named_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state of each parameter, by the parameter's name.

    Args:
        module: The module that trains.
        optimizer: Its optimizer.
    """
    state = optimizer.state
    return {n: dict(state[p]) for n, p in module.named_parameters() if p in state}


def load_named_state(
    module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Put what ``named_state`` returned into an optimizer.

    Args:
        module: The module that trains.
        optimizer: Its optimizer; its parameter groups stay as they are.
        state: State by name. Parameters without one start with none.
    """
    names = {id(p): n for n, p in module.named_parameters()}
    order = [names[id(p)] for g in optimizer.param_groups for p in g["params"]]
    numbered = {i: state[name] for i, name in enumerate(order) if name in state}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


# Running average ----------------------------------------------------------------------------


class Ema:
    """Exponential moving average of trained weights and of the statistics of norms.

    Args:
        tensors: The tensors to follow, by name; training changes them in place.
        decay: Decay of the average. At step n it is at most (1 + n) / (10 + n), so that the
            untrained weights of the start lose their influence.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach() for k, v in tensors.items() if v.is_floating_point()}
        self.average = {k: v.clone() for k, v in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the present weights.

        Args:
            step: Number of steps taken.
        """
        if self.average:
            decay = min(self.decay, (1 + step) / (10 + step))
            averages, weights = list(self.average.values()), list(self.weights.values())
            torch._foreach_lerp_(averages, weights, 1 - decay)

    @torch.no_grad()
    def copy_to_weights(self) -> None:
        """Replace the weights by the average."""
        _copy(self.weights.values(), self.average.values())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average in place of the weights until the block ends."""
        with torch.no_grad():
            kept = [v.clone() for v in self.weights.values()]
        self.copy_to_weights()
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(self.weights.values(), kept)


def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    targets, sources = list(targets), list(sources)
    if targets:
        torch._foreach_copy_(targets, sources)

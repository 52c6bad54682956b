"""Which parameters learn how fast; their running average."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .settings import LoopSettings, SettingsError

Group = dict[str, Any]
"""torch's parameter group, with "names" and "scale", the factor on the learning rate."""

# A layer of an encoder: `blocks.3`, or timm's `stages.2.blocks.1` and `stages.2.downsample`.
_LAYER = re.compile(r"(?:blocks|layers|stages|resblocks)\.(\d+)(?:\.(?:blocks|layers)\.(\d+))?\.")
_FIRST = ("patch_embed", "pos_embed", "positions", "embedding", "stem", "ln_pre", "cls_token")


def freeze(module: nn.Module, parts: Iterable[str] | None) -> None:
    """Stop gradients of all parameters but those whose names start with one of ``parts``.

    Parameters that had none before stay so. None: nothing changes.

    Raises:
        SettingsError: a part that names no parameter.
    """
    if parts is None:
        return
    parts = tuple(parts)
    names = dict(module.named_parameters())
    _known(module, "parts", parts)
    for name, weight in names.items():
        if not any(_under(name, part) for part in parts):
            weight.requires_grad_(False)


def parameter_groups(module: nn.Module, settings: LoopSettings) -> list[Group]:
    """Trainable parameters by weight decay and learning-rate factor, in the module's order."""
    _known(module, "scales", settings.scales)
    _known(module, "layer_decay", settings.layer_decay)
    names = [name for name, _ in module.named_parameters()]
    decays = {}
    for encoder, decay in settings.layer_decay.items():
        depth, last = depths([n for n in names if _under(n, encoder)], encoder)
        decays.update({name: decay ** (last - d) for name, d in depth.items()})
    groups: dict[tuple[float, float], Group] = {}
    for name, weight in module.named_parameters():
        if not weight.requires_grad:
            continue
        scale = _scale(name, settings.scales) * decays.get(name, 1.0)
        plain = weight.ndim <= 1 or any(piece in name for piece in settings.no_decay)
        decay = 0.0 if plain else settings.weight_decay
        new: Group = {"params": [], "names": [], "weight_decay": decay, "scale": scale}
        group = groups.setdefault((decay, scale), new)
        group["params"].append(weight)
        group["names"].append(name)
    return list(groups.values())


def depths(names: Iterable[str], encoder: str) -> tuple[dict[str, int], int]:
    """Layer of each parameter of an encoder: 0 before its first block, highest after its last.

    Args:
        names: of the parameters of ``encoder``, each beginning with it.

    Returns:
        Name -> layer; and the number of the highest, be there parameters in it or not.
    """
    keys: dict[str, tuple[float, float]] = {}
    for name in names:
        rest = name[len(encoder) :].lstrip(".")
        if found := _LAYER.search(rest):
            # What a stage has beside its blocks (a down-sampling) comes before them.
            keys[name] = (int(found[1]), int(found[2]) if found[2] else -1)
        elif any(piece in rest for piece in _FIRST):
            keys[name] = (-1, -1)
        else:
            keys[name] = (float("inf"), 0)
    layers = {(-1.0, -1.0), (float("inf"), 0.0), *keys.values()}
    order = {key: i for i, key in enumerate(sorted(layers))}
    return {name: order[key] for name, key in keys.items()}, len(order) - 1


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix.rstrip(".") + ".")


def _scale(name: str, scales: Mapping[str, float]) -> float:
    fitting = [prefix for prefix in scales if _under(name, prefix)]
    return scales[max(fitting, key=len)] if fitting else 1.0


def _known(module: nn.Module, setting: str, prefixes: Iterable[str]) -> None:
    names = [name for name, _ in module.named_parameters()]
    for prefix in prefixes:
        if not any(_under(name, prefix) for name in names):
            parts = dict.fromkeys(name.split(".", 1)[0] for name in names)
            raise SettingsError(
                f"{setting} names {prefix!r}, but no parameter's name starts with it; "
                f"the module has: {', '.join(parts)}"
            )


def named_state(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """What an optimiser remembers of each parameter, by its name; groups are the settings'."""
    return {n: dict(optimiser.state[p]) for n, p in _trained(module, optimiser).items()}


def load_state(
    module: nn.Module, optimiser: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """The inverse of ``named_state``; parameters that it does not know begin anew."""
    names = {id(p): n for n, p in module.named_parameters()}
    order = [names[id(p)] for g in optimiser.param_groups for p in g["params"]]
    numbered = {i: state[name] for i, name in enumerate(order) if name in state}
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": numbered, "param_groups": groups})


def _trained(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module.named_parameters() if p in optimiser.state}


# Running average ----------------------------------------------------------------------------


class Ema:
    """Exponential running average of trained weights and of the norms' statistics.

    Args:
        tensors: name -> the tensors to follow, which training changes in place.
        decay: of the average in the long run; at step n at most (1 + n) / (10 + n), so that
            the start is forgotten.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.live = {k: v.detach() for k, v in tensors.items() if v.is_floating_point()}
        self.average = {k: v.clone() for k, v in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take up the weights after ``step`` steps."""
        if self.average:
            decay = min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.average.values()), list(self.live.values()), 1 - decay)

    @torch.no_grad()
    def store(self) -> None:
        """Put the average in the place of the weights, for good."""
        _copy(self.live.values(), self.average.values())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the place of the weights, for a while."""
        with torch.no_grad():
            kept = [v.clone() for v in self.live.values()]
        self.store()
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(self.live.values(), kept)


def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    targets, sources = list(targets), list(sources)
    if targets:
        torch._foreach_copy_(targets, sources)

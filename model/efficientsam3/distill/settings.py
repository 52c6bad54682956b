"""What a training run is told: numbers only, so that it can be compared, written and read."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import EfficientSam3Error

SCHEDULES = ("cosine", "inverse-sqrt", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")

T = TypeVar("T")


class SettingsError(EfficientSam3Error, ValueError):
    """A setting that does not exist, or a value that it cannot have."""


@dataclass(frozen=True)
class LoopSettings:
    """How to train; a run is resumed only with the same numbers (see ``deciding``).

    Args:
        steps: of the optimiser, in all.
        accumulate: batches of one step; their gradients are averaged.
        lr: highest learning rate, of parameters whose scale is 1.
        schedule: what follows the warm-up: "cosine" falls to ``min_lr`` at the last step,
            "inverse-sqrt" goes with 1 / sqrt(1 + steps since the warm-up / ``timescale``),
            "constant" stays.
        warmup, cooldown: steps in which the rate rises from and falls to zero, linearly.
        weight_decay: of matrices and kernels; vectors (biases, norms) have none.
        no_decay: pieces of names of further parameters without it, as "embedding".
        clip: norm of all gradients at most; None: as they are.
        ema: decay of the running average of the weights, which is what validation, pictures
            and the result use; shorter at the start. None: the last weights are the result.
        parts: beginnings of the names of what trains, as "trunk"; None: all that may.
        scales: beginnings of names -> factor on the learning rate; the longest that fits.
        layer_decay: encoder (beginning of names, as "trunk") -> factor between its layers.
        precision: of ``PRECISIONS``.
        accelerator, strategy: as Lightning Fabric calls them. A module of which some steps use
            only parts needs "ddp_find_unused_parameters_true" on several devices.
        devices: of this machine; None: what torchrun started, else one.
        log_every, validate_every, picture_every, save_every: steps; 0: never (but the last step
            is always logged, validated and saved).
        save_minutes: saves this often too; 0: never.
        keep: checkpoints of the run, the newest ones.
        seed: of dropout and what else the module draws.
        tensorboard: write event files beside the CSV.
    """

    steps: int
    accumulate: int = 1
    lr: float = 1e-3
    min_lr: float = 0.0
    schedule: str = "cosine"
    warmup: int = 0
    cooldown: int = 0
    timescale: float = 1000.0
    weight_decay: float = 0.01
    no_decay: tuple[str, ...] = ()
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    ema: float | None = None
    parts: tuple[str, ...] | None = None
    scales: Mapping[str, float] = field(default_factory=dict)
    layer_decay: Mapping[str, float] = field(default_factory=dict)
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int | None = None
    strategy: str = "auto"
    log_every: int = 20
    validate_every: int = 0
    picture_every: int = 0
    save_every: int = 1000
    save_minutes: float = 10.0
    keep: int = 2
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "keep", "log_every"):
            _check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "cooldown", "validate_every", "picture_every", "save_every"):
            _check(self, name, getattr(self, name) >= 0, "0 or more")
        _check(self, "lr", 0 < self.lr < math.inf, "more than 0")
        _check(self, "min_lr", 0 <= self.min_lr <= self.lr, f"from 0 to lr, {self.lr:g}")
        _check(self, "timescale", self.timescale > 0, "more than 0")
        _check(self, "weight_decay", self.weight_decay >= 0, "0 or more")
        _check(self, "clip", self.clip is None or self.clip > 0, "more than 0, or None")
        _check(self, "ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1, or None")
        _check(self, "schedule", self.schedule in SCHEDULES, f"of {', '.join(SCHEDULES)}")
        _check(self, "precision", self.precision in PRECISIONS, f"of {', '.join(PRECISIONS)}")
        _check(self, "devices", self.devices is None or self.devices >= 1, "at least 1, or None")
        whole = self.warmup + self.cooldown <= self.steps
        _check(self, "warmup", whole, f"with cooldown {self.cooldown} within steps {self.steps}")
        for name in ("scales", "layer_decay"):
            values = getattr(self, name).values()
            _check(self, name, all(v >= 0 for v in values), "factors of 0 or more")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, from 0 to ``steps`` - 1."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        since = step - self.warmup
        rate = self.lr
        if self.schedule == "cosine":
            turn = since / max(1, self.steps - 1 - self.warmup)
            rate = self.min_lr + (self.lr - self.min_lr) * (1 + math.cos(math.pi * turn)) / 2
        elif self.schedule == "inverse-sqrt":
            rate = max(self.min_lr, self.lr / math.sqrt(1 + since / self.timescale))
        if self.cooldown:
            rate *= min(1.0, (self.steps - step) / self.cooldown)
        return rate

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run, as plain values."""
        free = {"log_every", "validate_every", "picture_every", "save_every", "save_minutes"}
        free |= {"keep", "tensorboard", "accelerator", "devices", "strategy"}
        return {k: v for k, v in plain(self).items() if k not in free}


def _check(settings: LoopSettings, name: str, good: bool, rule: str) -> None:
    if not good:
        raise SettingsError(f"{name} is {getattr(settings, name)!r}; it must be {rule}")


def plain(settings: Any) -> dict[str, Any]:
    """A dataclass as values that JSON and checkpoints hold."""

    def simple(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): simple(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [simple(v) for v in value]
        return value

    return {f.name: simple(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


def with_steps(settings: LoopSettings, steps: int) -> LoopSettings:
    """The same in another number of steps; warm-up and cool-down in proportion."""
    factor = min(1.0, steps / settings.steps)
    return dataclasses.replace(
        settings,
        steps=steps,
        warmup=int(settings.warmup * factor),
        cooldown=int(settings.cooldown * factor),
    )


# From words ---------------------------------------------------------------------------------


def changed(settings: T, words: Mapping[str, str]) -> T:
    """A copy of a settings dataclass with values given as text, each read as its field's type.

    Args:
        words: field -> text; lists with commas, ``field.key`` for one entry of a mapping,
            "none" where a field may be None.

    Raises:
        SettingsError: an unknown field, or text that is not a value of it.
    """
    hints = get_type_hints(type(settings))
    values: dict[str, Any] = {}
    for key, text in words.items():
        name, _, entry = key.partition(".")
        if name not in hints:
            raise SettingsError(f"unknown setting {name!r}; known: {', '.join(hints)}")
        try:
            if entry:
                old = values.get(name, getattr(settings, name))
                if not isinstance(old, Mapping):
                    raise SettingsError(f"{name} has no entries; write {name}=VALUE")
                values[name] = {**old, entry: float(text)}
            else:
                values[name] = _read(hints[name], text)
        except ValueError as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"{key}={text} is not a value of it: {error}") from error
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]


def _read(kind: Any, text: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        (kind,) = (k for k in inner if k is not type(None))
        return _read(kind, text)
    if origin is tuple:
        words = [w.strip() for w in text.split(",") if w.strip()]
        if Ellipsis not in inner and len(words) != len(inner):
            raise ValueError(f"it takes {len(inner)} values with commas")
        return tuple(_read(inner[0], w) for w in words)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("it is true or false")
        return text.lower() == "true"
    if kind is int:
        return int(text.replace("_", ""))
    if kind is float:
        return float(text)
    if kind is str:
        return text
    raise ValueError("it cannot be given as text")

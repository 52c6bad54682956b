"""Settings of the training loop, and settings from text."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import SettingsError

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "inverse-sqrt", "constant")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true")

T = TypeVar("T")


@dataclass(frozen=True)
class LoopSettings:
    """How to train. A run is continued only with the same numbers, see ``identity``.

    Attributes:
        steps: Steps of the optimizer in the whole run, at least 1.
        accumulate: Batches of one step, at least 1; their gradients are averaged.
        optimizer: "adamw", or "muon": Muon for matrices and kernels, AdamW for the rest.
        lr: Highest learning rate, of parameters whose scale is 1; more than 0.
        min_lr: Learning rate at the end of the schedule, from 0 to ``lr``.
        schedule: Learning rate after the warm-up: "cosine" falls to ``min_lr`` at the last step,
            "inverse-sqrt" falls with 1 / sqrt(1 + steps since the warm-up / ``timescale``),
            "constant" stays.
        warmup: Steps in which the rate rises linearly from zero.
        cooldown: Last steps, in which the rate falls linearly to zero.
        timescale: Time scale of "inverse-sqrt" in steps, more than 0.
        weight_decay: Decay of matrices and kernels, 0 or more; vectors (biases, norms) have none.
        no_decay: Parts of the names of further parameters without decay, such as "embedding".
        betas: Decay rates of AdamW's two running averages, each from 0 to below 1.
        clip: Largest norm of all gradients together, more than 0; None: no clipping.
        ema: Decay of the running average of the weights, between 0 and 1. The average is what
            validation, pictures and the result use; it is shorter at the start. None: the last
            weights are the result.
        parts: Beginnings of the names of the parameters that train, such as "trunk"; None: all that
            may.
        scales: Beginning of parameter names -> factor on the learning rate, 0 or more; the longest
            beginning that fits counts.
        layer_decay: Encoder, as a beginning of names such as "trunk" -> factor on the learning rate
            between one layer and the next deeper one, 0 or more.
        precision: Precision of Lightning Fabric: "32-true", "bf16-mixed", "16-mixed" or
            "bf16-true".
        accelerator: Accelerator of Lightning Fabric: "auto", "cpu", "cuda" or "mps".
        devices: Devices of this machine, at least 1; None: as many as processes that torchrun
            started.
        strategy: Strategy of Lightning Fabric: "auto", or one of its ddp strategies. "auto" on
            several devices is "ddp_find_unused_parameters_true", as steps of many tasks use only
            parts of the module; "ddp" is a little faster where each step uses all.
        log_every: Steps between rows of the log, at least 1. The last step is logged in any case.
        validate_every: Steps between validations; 0: only after the last step.
        validate_first: Whether to validate before the first step, too.
        picture_every: Steps between pictures, and after the last step; 0: none.
        save_every: Steps between checkpoints; 0: only after the last step.
        save_minutes: A checkpoint is also saved when the last one is this old, in minutes; 0: not.
        keep: Number of checkpoints to keep, the newest ones, at least 1.
        seed: Seed of dropout and whatever else the module draws, 0 or more.
        tensorboard: Whether to write TensorBoard event files beside the CSV files.
    """

    steps: int
    accumulate: int = 1
    optimizer: str = "adamw"
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
    validate_first: bool = False
    picture_every: int = 0
    save_every: int = 1000
    save_minutes: float = 10.0
    keep: int = 2
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "keep", "log_every"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        counts = ("warmup", "cooldown", "validate_every", "picture_every", "save_every")
        for name in (*counts, "save_minutes", "weight_decay", "seed"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("lr", "timescale"):
            check(self, name, 0 < getattr(self, name) < math.inf, "more than 0, and finite")
        check(self, "min_lr", 0 <= self.min_lr <= self.lr, f"from 0 to lr, which is {self.lr:g}")
        check(self, "clip", self.clip is None or self.clip > 0, "more than 0, or none")
        check(self, "ema", self.ema is None or 0 < self.ema < 1, "between 0 and 1, or none")
        check(self, "betas", all(0 <= b < 1 for b in self.betas), "two values from 0 to below 1")
        check(self, "devices", self.devices is None or self.devices >= 1, "at least 1, or none")
        choices = (("schedule", SCHEDULES), ("precision", PRECISIONS), ("optimizer", OPTIMIZERS))
        for name, known in choices:
            check(self, name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name in ("scales", "layer_decay"):
            factors = getattr(self, name).values()
            check(self, name, all(v >= 0 for v in factors), "factors of 0 or more")
        check(
            self,
            "warmup",
            self.warmup + self.cooldown <= self.steps,
            f"at most steps - cooldown, which is {self.steps} - {self.cooldown}",
        )

    def lr_at(self, step: int) -> float:
        """The learning rate of a step.

        Args:
            step: Number of the step, from 0 to ``steps`` - 1.
        """
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

    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run, as plain values."""
        free = {
            "log_every",
            "validate_every",
            "validate_first",
            "picture_every",
            "save_every",
            "save_minutes",
        }
        free |= {"keep", "tensorboard", "accelerator", "devices", "strategy"}
        if self.schedule == "constant" and not self.cooldown:
            free.add("steps")  # a step's rate does not depend on it: a run may be longer or shorter
        return {k: v for k, v in to_plain(self).items() if k not in free}


def check(settings: Any, name: str, valid: bool, rule: str) -> None:
    """Check a field of a settings dataclass.

    Args:
        settings: The dataclass.
        name: Name of the field.
        valid: Whether its value follows the rule.
        rule: The rule, as the end of the sentence "it must be ...".

    Raises:
        SettingsError: It does not; the message states the value and the rule.
    """
    if not valid:
        raise SettingsError(f"{name} is {getattr(settings, name)!r}; it must be {rule}")


def with_steps(settings: LoopSettings, steps: int) -> LoopSettings:
    """The same settings for another number of steps.

    Args:
        settings: The settings.
        steps: The new number of steps; a shorter run has a shorter warm-up and cool-down.
    """
    factor = min(1.0, steps / settings.steps)
    return dataclasses.replace(
        settings,
        steps=steps,
        warmup=int(settings.warmup * factor),
        cooldown=int(settings.cooldown * factor),
    )


def to_plain(settings: Any) -> dict[str, Any]:
    """A settings dataclass as values that JSON and checkpoints can hold.

    Args:
        settings: An instance of a dataclass.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return value

    return {f.name: plain(getattr(settings, f.name)) for f in dataclasses.fields(settings)}


# From text ----------------------------------------------------------------------------------


def with_overrides(settings: T, overrides: Mapping[str, str]) -> T:
    """A copy of a settings dataclass with values given as text.

    Args:
        settings: An instance of a dataclass.
        overrides: Field -> text, which is read as the field's type: lists with commas, "none"
            where a field may be None. ``field.key`` sets one entry of a mapping.

    Raises:
        SettingsError: An unknown field, or text that is not a value of it.
    """
    hints = get_type_hints(type(settings))
    values: dict[str, Any] = {}
    for key, text in overrides.items():
        name, _, entry = key.partition(".")
        if name not in hints:
            raise SettingsError(f"unknown setting {name!r}; known: {', '.join(hints)}")
        old = values.get(name, getattr(settings, name))
        if entry and not isinstance(old, Mapping):
            raise SettingsError(f"{name} has no entries; write {name}=VALUE")
        try:
            values[name] = {**old, entry: float(text)} if entry else _parse(hints[name], text)
        except ValueError as error:
            raise SettingsError(f"{key}={text} is not a value of it: {error}") from error
    return dataclasses.replace(settings, **values)  # type: ignore[type-var]


def _parse(kind: Any, text: str) -> Any:
    """Read a text as a value of a type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        (kind,) = (k for k in inner if k is not type(None))
        return _parse(kind, text)
    if origin is tuple:
        words = [w.strip() for w in text.split(",") if w.strip()]
        if Ellipsis not in inner and len(words) != len(inner):
            raise ValueError(f"it takes {len(inner)} values with commas")
        return tuple(_parse(inner[0], w) for w in words)
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

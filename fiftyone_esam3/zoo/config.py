"""What the configurations of the image model and the video model share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import fiftyone.core.models as fom
import fiftyone.utils.torch as fout
import fiftyone.zoo.models as fozm

import efficientsam3 as es3
from efficientsam3.concepts import plain_concepts, read_classes, read_concepts
from efficientsam3.errors import ArgumentError
from efficientsam3.masks.nms import OVERLAP_METRICS
from efficientsam3.prompts import PRESENCE

from ..model_cache import load_core
from ..ownership.merge import EXISTING, OVERLAP, REFUSE
from ..prompts import PROMPT_KEYS
from ..runs.run import digest_settings
from .apply_target import AppliedLabels, find_target

LOAD_OPTIONS = ("checkpoint", "base", "text", "context", "device", "dtype", "speed", "adapter")
"""The arguments of a zoo model that ``efficientsam3.load`` takes."""

MODES = ("concept", "visual")

Number = (int, float)


class ZooConfig(fout.TorchImageModelConfig, fozm.HasZooModel):
    """Base class of the configurations.

    FiftyOne builds a configuration from one dictionary, so arguments are checked here once.

    Args:
        d: the arguments of ``load_zoo_model``, by name.

    Raises:
        ArgumentError: an unknown argument, or a value of a wrong type.
        PromptError: a concept is not a phrase.
    """

    OPTIONS: ClassVar[Mapping[str, tuple[Any, Any]]] = {
        "variant": (None, None),
        "operation_mode": ("concept", MODES),
        "prompt_field": (None, str),
        "threshold": (None, Number),
        "presence": ("multiply", PRESENCE),
        "nms": (None, Number),
        "class_agnostic": (False, (False, True)),
        "overlap_metric": ("iou", OVERLAP_METRICS),
        "checkpoint": (None, None),
        "base": (None, None),
        "text": (None, str),
        "context": (None, int),
        "dtype": (None, None),
        "speed": ("exact", str),
        "adapter": (None, (str, os.PathLike)),
        "existing": (REFUSE, EXISTING),
        "overlap": (OVERLAP, Number),
    }
    """The default of each argument, and what it can be: a type, a tuple of values, or anything."""

    def __init__(self, d: dict[str, Any]) -> None:
        d = dict(self.init(d))
        classes = read_classes(d.get("classes"))
        d["classes"] = None if classes is None else list(classes)
        super().__init__(d)
        self._phrases = classes or {}
        inherited = set(vars(self))
        for name, (default, kind) in self.OPTIONS.items():
            value = d.get(name, default)
            check_option(name, value, kind)
            # Records of runs hold paths as texts.
            setattr(self, name, str(value) if isinstance(value, os.PathLike) else value)
        unknown = sorted(set(d) - set(vars(self)))
        if unknown:
            own = ["classes", "confidence_thresh", *(n for n in vars(self) if n not in inherited)]
            raise ArgumentError(f"unknown arguments {unknown}; known are {', '.join(own)}")

    def settings(self) -> dict[str, Any]:
        """What labels depend on beside the question."""
        left_out = {"existing", "overlap", "variant", "get_item_cls", *PROMPT_KEYS}
        left_out |= {"adapter"} if self.adapter is None else set()
        chosen = {n: getattr(self, n) for n in self.OPTIONS if n not in left_out}
        return {**chosen, "confidence_thresh": self.confidence_thresh}

    def load(self) -> es3.ImageModel:
        """Load the model, or take it from memory."""
        return load_core(self.variant, **{name: getattr(self, name) for name in LOAD_OPTIONS})

    def concepts(self) -> list[str]:
        """What to look for in samples without concepts of their own.

        In FiftyOne ``apply_model(classes=...)`` is a filter. Searching for just these classes
        gives the labels that the filter would leave, and also finds classes that were not named
        when the model was loaded.
        """
        loaded = self.classes or []
        if self.filter_classes is None:
            return list(loaded)
        more = read_concepts(sorted(set(self.filter_classes) - set(loaded)) or None)
        return [*(c for c in loaded if c in self.filter_classes), *(more or ())]

    def phrases(self) -> dict[str, list[str]]:
        """The phrases of each class of :meth:`concepts`."""
        return {name: self._phrases.get(name, [name]) for name in self.concepts()}

    def min_score(self, default: float) -> float:
        """The lowest score in concept mode: ``confidence_thresh``, or else ``threshold``.

        Args:
            default: what it is where neither is set.
        """
        chosen = self.threshold if self.confidence_thresh is None else self.confidence_thresh
        return float(default if chosen is None else chosen)


def check_option(name: str, value: Any, kind: Any) -> None:
    """Check the value of one argument; None means that it is not set.

    Args:
        name: the argument.
        value: its value.
        kind: a type or types; a tuple of allowed values; None for anything.

    Raises:
        ArgumentError: the value is not allowed.
    """
    if value is None or kind is None:
        return
    if isinstance(kind, tuple) and not isinstance(kind[0], type):
        if value not in kind:
            allowed = ", ".join(map(repr, kind[:-1])) + f" or {kind[-1]!r}"
            raise ArgumentError(f"{name} is {value!r}; it can be {allowed}")
    elif not isinstance(value, kind):
        found = type(value).__name__
        raise ArgumentError(f"{name} is {value!r}, a {found}; another type is needed")


class PromptedModel(fom.SamplesMixin):
    """The attributes of both zoo models that FiftyOne and users read and set."""

    FIELDS: ClassVar[tuple[str, ...]] = ()
    """The arguments that name a field with prompts."""

    config: ZooConfig

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the arguments; another process reads the weights again."""
        return _rebuild, (type(self), self.config, self._loaded_fields, self._fields)

    def _read_fields(self) -> None:
        """Take the prompt fields that were named when the model was loaded."""
        named = {name: getattr(self.config, name) for name in self.FIELDS}
        self._loaded_fields = {name: field for name, field in named.items() if field is not None}
        self._fields = self._loaded_fields
        self._writing: dict[str, Any] = {}
        self._applied: AppliedLabels | None = None

    @property
    def operation_mode(self) -> str:
        """``"concept"`` or ``"visual"``; can be set."""
        return str(self.config.operation_mode)

    @operation_mode.setter
    def operation_mode(self, mode: str) -> None:
        check_option("operation_mode", mode, MODES)
        self.config.operation_mode = mode

    @property
    def needs_fields(self) -> dict[str, str]:
        """The fields that hold prompts, by argument name. ``apply_model`` sets them."""
        return self._fields

    @needs_fields.setter
    def needs_fields(self, fields: dict[str, str]) -> None:
        if fields is self._loaded_fields:  # apply_model restores the value that it read
            self._fields, self._writing = fields, {}
            return
        self._writing = {k: v for k, v in fields.items() if k in ("existing", "overlap")}
        fields = {k: v for k, v in fields.items() if k not in self._writing}
        unknown = sorted(set(fields) - set(self.FIELDS))
        if unknown:
            raise ArgumentError(
                f"unknown arguments {unknown}; the arguments for prompts are "
                f"{', '.join(self.FIELDS)}, those for labels that are there are existing and "
                "overlap, and all others belong to load_zoo_model"
            )
        kept = dict(self._loaded_fields)
        if set(fields) - {"text_prompt_field"}:  # boxes and points replace those named earlier
            kept = {k: v for k, v in kept.items() if k == "text_prompt_field"}
        self._fields = {**kept, **fields}

    def _begin(self) -> None:
        """Find the field that ``apply_model`` writes to, and refuse where labels are at stake."""
        target = find_target(self)
        if target is None:
            return
        config = self.config
        phrases = config.phrases()
        words = None if self._fields else list(phrases)
        settings = config.settings()
        writing = {"existing": config.existing, "overlap": config.overlap, **self._writing}
        self._applied = AppliedLabels(
            target,
            {
                "model": config.variant,
                "concepts": None if words is None else plain_concepts(phrases),
                **settings,
                **self._fields,
            },
            digest_settings(config.variant, settings),
            words,
            phrases,
            **writing,
        )

    def _end(self) -> None:
        if self._applied is not None:
            self._applied.close()
        self._applied = None


def _rebuild(
    kind: Any, config: ZooConfig, loaded: dict[str, str], fields: dict[str, str]
) -> PromptedModel:
    model: PromptedModel = kind(config)
    model._loaded_fields = loaded
    model._fields = fields
    return model

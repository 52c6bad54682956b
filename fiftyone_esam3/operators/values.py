"""Check the values of a form before a run sees them.

The App sends values of the right types. Other programs that execute operators may not.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from efficientsam3.errors import shorten

from ..runs.steps import RunError

EMPTY: tuple[Any, ...] = (None, "", [])
"""Values of a field that is empty."""

FIELDS: dict[str, Any] = {
    "concepts": str | list[str],
    "dataset_classes": list[str],
    "class_phrases": str,
    "frame_numbers": str | list[Any],
    "only_selected": bool,
}
"""Types of fields that differ from the type of the run's argument, or that are no argument."""

NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def check_values(run: Callable[..., Any], params: Mapping[str, Any]) -> None:
    """Check the type of each field that is filled in.

    Args:
        run: the run that the form is for.
        params: the values of the form.

    Raises:
        RunError: a value has another type; the message names the field.
    """
    hints = {**get_type_hints(run), **FIELDS}
    for name, value in params.items():
        if name not in hints or value in EMPTY:
            continue
        if name == "selected":
            _check_selected(value)
        elif not _fits(value, hints[name]):
            raise RunError(f"{name} is {_describe(hints[name])}; got {shorten(value)}")


def check_complete(run: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check that each argument without a default is there.

    Args:
        run: the run.
        arguments: the arguments but the samples, by name.

    Raises:
        RunError: one is missing.
    """
    for name, parameter in list(inspect.signature(run).parameters.items())[1:]:
        is_needed = parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD
        if is_needed and name not in arguments:
            raise RunError(f"{name} is empty: fill in this field of the form")


def _check_selected(value: Any) -> None:
    keys = ("sample_id", "field", "label_id")
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(one, Mapping) and all(isinstance(one.get(key), str) for key in keys)
        for one in value
    ):
        raise RunError(
            "selected is a list of labels, each with the texts sample_id, field and label_id; got "
            f"{shorten(value)}"
        )


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin in (list, Sequence):
        return isinstance(value, (list, tuple)) and all(_fits(one, inner[0]) for one in value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _describe(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_describe(one) for one in inner if one is not type(None))
    if origin in (list, Sequence):
        name = NAMES.get(inner[0], "a value")
        return f"a list of {name.removeprefix('a ')}s"
    return NAMES.get(hint, "of another type")

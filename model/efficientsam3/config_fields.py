"""Values of configurations that are read from files: their types and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from .errors import ArgumentError

MAX_LAYERS = 512
MAX_SIZE = 1 << 16
MAX_VOCABULARY = 1 << 24
"""The largest numbers of a configuration that is read from a file."""


def plain_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check values that a file has for the fields of a configuration.

    Args:
        kind: The dataclass of the configuration.
        values: Plain values by field.

    Returns:
        The values; lists become tuples.

    Raises:
        ArgumentError: A value is of another type, or a number is not finite or too large.
    """
    hints = get_type_hints(kind)
    out = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        limit = MAX_LAYERS if "depth" in name or "layers" in name else MAX_SIZE
        limit = MAX_VOCABULARY if name == "vocabulary" else limit
        if name in hints and not _fits(value, hints[name], limit):
            raise ArgumentError(
                f"{name} of a model configuration is {value!r:.80}; it is of type "
                f"{getattr(hints[name], '__name__', hints[name])}, and numbers are at most {limit}"
            )
        out[name] = value
    return out


def _fits(value: Any, hint: Any, limit: int) -> bool:
    """Whether a value is of a field's type, and its numbers are finite and within the limit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(v, arguments[0], limit) for v in value)
    if origin is Mapping:
        return isinstance(value, Mapping)
    if arguments:  # a union
        return any(_fits(value, argument, limit) for argument in arguments)
    if isinstance(value, bool) or hint not in (int, float):
        return isinstance(value, hint)
    allowed = (int, float) if hint is float else int
    return isinstance(value, allowed) and abs(value) <= limit  # also false for NaN

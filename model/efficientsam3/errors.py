"""Errors and warnings of the package. Each message states the value, the rule and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def shorten(value: Any, length: int = 80) -> str:
    """Quote a value for a message.

    Args:
        value: What a user passed.
        length: Largest number of characters; the middle of a longer text is left out.

    Returns:
        Its ``repr``.
    """
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a message must not fail on the value it is about
        text = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
    return _cut(text, length)


def format_numbers(values: Any, length: int = 80) -> str:
    """Write an array for a message, each number with the digits that its own type tells apart.

    ``tolist`` makes Python's 64-bit floats: 0.1 in 32 bits becomes 0.10000000149011612.

    Args:
        values: An array, of any number of axes.
        length: Largest number of characters; the middle of a longer text is left out.

    Returns:
        Nested lists, such as "[0.1, 0.5]"; of an array without axes its number.
    """
    return _cut(_nested(values), length)


def _nested(values: Any) -> str:
    if getattr(values, "ndim", 0):
        return f"[{', '.join(map(_nested, values))}]"
    return str(values)


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    half = (length - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def join_names(names: Iterable[str], count: int = 5) -> str:
    """Join the first of some names for a message, in their order.

    Args:
        names: The names.
        count: How many are shown.
    """
    shown = [name if len(name) <= 40 else shorten(name, 40) for name in names]
    rest = f" and {len(shown) - count:,} more" if len(shown) > count else ""
    return ", ".join(shown[:count]) + rest


class EfficientSam3Error(Exception):
    """Base class of all errors of this package."""


class EfficientSam3Warning(UserWarning):
    """Base class of the warnings about what a user asks."""


class PromptWarning(EfficientSam3Warning):
    """A prompt is accepted and is probably not what was meant."""


class ImageWarning(EfficientSam3Warning):
    """An image file holds more than is read."""


class ArgumentError(EfficientSam3Error, ValueError):
    """An argument has a value that the function does not accept."""


class ImageError(EfficientSam3Error, ValueError):
    """An image cannot be read, or the value passed is not an image."""


class PromptError(EfficientSam3Error, ValueError):
    """A prompt is invalid: an empty concept, a wrong shape, or labels that do not match."""


class VideoError(EfficientSam3Error, ValueError):
    """A video cannot be read or written, or the value passed is not a source of frames."""


class TrackError(EfficientSam3Error, ValueError):
    """A tracking setting is out of its range, a frame is out of order, or an object is unknown."""


class MaskError(EfficientSam3Error, ValueError):
    """A mask is damaged, or its size does not match."""


class DataError(EfficientSam3Error, ValueError):
    """A data set is missing, empty, damaged, or contradicts itself."""


class AnnotationError(DataError):
    """An annotation file, or one record of it, cannot be read."""


class RunFileError(EfficientSam3Error, ValueError):
    """A file of earlier work cannot be continued: it is not ours, of another kind, or damaged."""


class CheckpointError(EfficientSam3Error, ValueError):
    """A weight file is damaged, unsafe, or belongs to another model."""


class MissingAbilityError(EfficientSam3Error, RuntimeError):
    """The loaded weights lack the part that this call needs."""


class MissingPartError(MissingAbilityError):
    """The model lacks a part of the network that this call needs."""


class MissingPackageError(EfficientSam3Error, ImportError):
    """An optional package is not installed."""


class WeightsNotFoundError(EfficientSam3Error, FileNotFoundError):
    """The weights are not on this machine and cannot be downloaded.

    Args:
        reason: Why, and how to get them.
        with_file: How to load them from a file; it follows the reason.

    Attributes:
        reason: The same, for callers that take files in another way.
    """

    def __init__(self, reason: str, with_file: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}{with_file}")

"""One rule for pixel values of every type and depth: which value is black, and which is white.

8-bit values are taken as they are, and False and True are black and white. All other types are
scaled from a range of values. The range is, in this order: the one that the caller gives; the one
that the file states; or the one that the values themselves suggest (``suggest_range``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ImageError

Array = npt.NDArray[Any]

WHITE = (255, 1023, 4095, 16383, 32767, 65535)
"""Usual values of white: the largest of 8, 10, 12, 14, 15 and 16 bits."""
OUTLIERS = 1000
"""One of this number of pixels, and at least one of 64, may lie beyond the range of values."""
SEEN_PIXELS = 1 << 22
"""Of larger images only every n-th row and column is looked at to find the range of values."""


class ValueRange(NamedTuple):
    """The values that are shown as black and as white."""

    low: float
    """Black."""
    high: float
    """White."""


@dataclass(frozen=True, eq=False)
class Samples:
    """An image before its values are scaled."""

    values: Array
    """(H, W, C) with 1, 3 or 4 channels, the fourth of which is not used, of any real type."""
    stated: ValueRange | None = None
    """The range of values that the file states."""
    white_is_low: bool = False
    """Whether low values are bright (TIFF's photometric interpretation WhiteIsZero)."""

    @property
    def is_deep(self) -> bool:
        """Whether values are scaled: they are neither 8-bit nor bool."""
        return self.values.dtype != np.uint8 and self.values.dtype != np.bool_


def check_value_range(value: Any) -> ValueRange | None:
    """Check a range that a caller gives.

    Args:
        value: Two numbers, the values of black and white; or None.

    Raises:
        ImageError: It is neither.
    """
    if value is None:
        return None
    try:
        low, high = map(float, value)
    except (TypeError, ValueError) as error:
        rule = "a range of values is two numbers, of black and of white"
        raise ImageError(f"{rule}; got {value!r}") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise ImageError(f"in a range of values black is less than white; got {low:g} and {high:g}")
    return ValueRange(low, high)


class SourceRange:
    """The range of values of all pictures of one source, so that none is darker than another.

    Pictures that are noted before the first is scaled widen the range. From the first scaled
    picture on it stays. Integers and floats have ranges of their own.

    Args:
        given: The range that the caller gives; None: that of the pictures.
    """

    def __init__(self, given: ValueRange | None = None) -> None:
        self._given = given
        self._found: dict[tuple[str, bool], _Found] = {}

    def note(self, samples: Samples) -> None:
        """Widen the range to that of a picture.

        Args:
            samples: The picture.
        """
        if samples.is_deep and self._given is None:
            found = self._found.setdefault(_key(samples), _Found())
            if not found.fixed:
                found.add(samples)

    def of(self, samples: Samples) -> ValueRange:
        """The range by which a picture is scaled.

        Args:
            samples: The picture, which is of a type that is scaled.
        """
        if self._given is not None:
            return self._given
        found = self._found.setdefault(_key(samples), _Found())
        if not found.fixed:
            found.add(samples)
            # A black picture tells nothing: the next one decides.
            found.fixed = found.range is not None and any(found.range)
        return found.scale()

    def exceeded_by(self, samples: Samples) -> ValueRange | None:
        """The range of a picture that is far outside of the range of the source.

        Args:
            samples: The picture.

        Returns:
            Its own range; None where at most a hundredth of its pixels lies outside.
        """
        if not samples.is_deep:
            return None
        low, high = self.of(samples)
        values = _seen(_clean(samples.values))
        outside = (values < low) | (values > high)
        if outside.mean() <= 0.01:
            return None
        return ValueRange(float(values.min()), float(values.max()))


@dataclass
class _Found:
    """What is known of the values of one type in a source."""

    range: ValueRange | None = None
    is_stated: bool = False
    dtype: np.dtype[Any] | None = None
    fixed: bool = False

    def add(self, samples: Samples) -> None:
        self.is_stated, self.dtype = samples.stated is not None, samples.values.dtype
        new = samples.stated or find_bounds(samples.values)
        if self.range is not None:
            new = ValueRange(min(self.range.low, new.low), max(self.range.high, new.high))
        self.range = new

    def scale(self) -> ValueRange:
        bounds = self.range or ValueRange(0, 0)
        if self.is_stated or self.dtype is None:
            return bounds
        return suggest_range(bounds, self.dtype)


def _key(samples: Samples) -> tuple[str, bool]:
    return samples.values.dtype.str.lstrip("<>=|"), samples.stated is not None


def find_bounds(values: Array) -> ValueRange:
    """The lowest and the highest value, but for outliers; the lowest is at most 0.

    Args:
        values: (H, W, C) of an integer or float type. NaN and infinite values count as 0.
    """
    seen = _seen(_clean(values))
    count = seen.shape[0] * seen.shape[1]
    if not count:
        return ValueRange(0, 0)
    spared = max(count // OUTLIERS, int(count >= 64))
    top = seen.max(-1).ravel()
    low, high = 0.0, float(np.partition(top, count - 1 - spared)[count - 1 - spared])
    if seen.dtype.kind != "u" and seen.min() < 0:
        low = min(0.0, float(np.partition(seen.min(-1).ravel(), spared)[spared]))
    return ValueRange(low, high)


def suggest_range(bounds: ValueRange, dtype: np.dtype[Any]) -> ValueRange:
    """The range of values for an image whose file states none.

    Without negative values, black is 0, and white is the smallest value of ``WHITE`` that no value
    exceeds; where all are exceeded, it is the highest value. For floats up to 1 white is 1, and
    where floats reach less than a quarter of 255, it is the highest value. With negative values,
    black is -1 and white is 1 for floats between them; else they are the lowest and the highest
    value.

    Args:
        bounds: The lowest and the highest value, but for outliers, from ``find_bounds``.
        dtype: The type of the values.
    """
    low, high = bounds
    is_float = dtype.kind == "f"
    if low < 0:
        return ValueRange(-1, 1) if is_float and low >= -1 and high <= 1 else bounds
    if is_float and high <= 1:
        return ValueRange(0, 1)
    white = next((white for white in WHITE if high <= white), high)
    return ValueRange(0, high if is_float and high < WHITE[0] / 4 else white)


def to_uint8(samples: Samples, source: SourceRange | None = None) -> Array:
    """Scale the values of an image to 0 to 255.

    Args:
        samples: The image.
        source: The range of its source; None: the image is a source of its own.

    Returns:
        (H, W, C) uint8.

    Raises:
        ImageError: The type of the values is not that of an image.
    """
    values = samples.values
    if values.dtype == np.bool_:
        out = values.astype(np.uint8) * 255
    elif values.dtype == np.uint8:
        out = values
    else:
        check_type(values.dtype)
        low, high = (source or SourceRange()).of(samples)
        clean = _clean(values)
        wide = np.float32 if clean.dtype.itemsize <= 2 or clean.dtype == np.float32 else np.float64
        scaled: Array = clean.astype(wide)
        np.subtract(scaled, low, out=scaled)
        np.multiply(scaled, 255 / (high - low) if high > low else 0, out=scaled)
        np.rint(scaled, out=scaled)
        out = np.clip(scaled, 0, 255, out=scaled).astype(np.uint8)
    return 255 - out if samples.white_is_low else out


def check_type(dtype: np.dtype[Any]) -> None:
    """Check that values of a type can be those of an image.

    Args:
        dtype: The type.

    Raises:
        ImageError: It is neither bool, nor an integer, nor a float.
    """
    if dtype.kind not in "biuf":
        raise ImageError(
            f"values of an image are bool, integers or floats; got {dtype}. Convert them, for "
            "example by image.astype(np.float32)"
        )


def _clean(values: Array) -> Array:
    """Values in the machine's byte order, without NaN and infinite ones, which become 0."""
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    elif values.dtype.byteorder not in "=|":
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return values


def _seen(values: Array) -> Array:
    """Every n-th row and column of a large image, without its fourth channel."""
    step = int(np.ceil((values.shape[0] * values.shape[1] / SEEN_PIXELS) ** 0.5)) or 1
    return values[::step, ::step, :3]

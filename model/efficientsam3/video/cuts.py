"""Cuts: frames at which another scene begins, so that no object continues.

A frame is compared with the one before on thumbnails: their colors moved onto each other, which
bears pans, shaking and changes of brightness, and their color histograms. A frame that a flash or
a black picture hides is passed over, and the next one is compared with the frame before it. Fades
and dissolves change little from frame to frame and are no cuts. A cut stands out from frames that
change little: where all frames differ, as in a slide show, none is found.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..types import Array
from .settings import CutSettings

ROWS, COLUMNS = 24, 32
"""Size of a thumbnail."""
LARGEST_MOVE = 0.4
"""Largest move of the picture from frame to frame that is compared, in shares of its size."""
HISTORY = 8
"""Frames whose median change is the usual one."""
MIN_CONTRAST = 8.0
"""Standard deviation of the values of a thumbnail below which it shows no scene."""
HIDDEN_FRAMES = 5
"""Frames that a flash lasts at most."""
COLORS = 6
"""Levels of a channel in histograms."""


class _Thumbnail(NamedTuple):
    """A frame, reduced."""

    values: Array  # (ROWS, COLUMNS, 3) float32, 0 to 255
    contrast: float
    histogram: Array  # (COLORS ** 3,) shares


class CutDetector:
    """Tells for frames of one stream, given in order, which of them begin another scene.

    Args:
        settings: Thresholds.

    Attributes:
        settings: As given.
    """

    def __init__(self, settings: CutSettings | None = None) -> None:
        self.settings = settings or CutSettings()
        self.reset()

    def reset(self) -> None:
        """Forget all frames; the next one is no cut."""
        self._last: _Thumbnail | None = None  # the last frame that shows a scene
        self._changes: deque[float] = deque(maxlen=HISTORY)
        self._hidden = 0  # frames since then
        self._most_contrast = 0.0  # of the scene

    def is_cut(self, image: Array) -> bool:
        """Take the next frame.

        Args:
            image: (H, W, 3) uint8.

        Returns:
            Whether the frame begins another scene than that of the frames before.
        """
        new, last = _reduce(image), self._last
        if last is None:
            self._last = new if new.contrast >= MIN_CONTRAST else None
            self._most_contrast = new.contrast
            return False
        flat = new.contrast < MIN_CONTRAST
        if flat or (self._hidden < HIDDEN_FRAMES and _is_hidden(new, last)):
            self._hidden += 1
            return False
        hidden, self._hidden = self._hidden, 0
        self._last = new
        change = 1 - similarity(last.values, new.values)
        usual = float(np.median(self._changes)) if self._changes else 1.0
        s = self.settings
        shared = float(np.minimum(last.histogram, new.histogram).sum())
        cut = change > max(1 - s.min_similarity, s.times_usual * usual) and (
            shared < s.min_shared_colors or change > 1 - s.min_similarity / 2
        )
        if cut and hidden and new.contrast < self._most_contrast / 2:
            cut = False  # it fades in
        self._most_contrast = new.contrast if cut else max(self._most_contrast, new.contrast)
        if cut:
            self._changes.clear()
        else:
            self._changes.append(change)
        return cut


def _reduce(image: Array) -> _Thumbnail:
    """A thumbnail of a frame, of which only some pixels of large ones are read."""
    height, width = image.shape[:2]
    step = max(1, min(height // (4 * ROWS), width // (4 * COLUMNS)))
    some = Image.fromarray(np.ascontiguousarray(image[::step, ::step])).convert("RGB")
    values = np.asarray(some.resize((COLUMNS, ROWS), Image.Resampling.BOX), np.float32)
    levels = (values * (COLORS / 256)).astype(int)
    places = (levels[..., 0] * COLORS + levels[..., 1]) * COLORS + levels[..., 2]
    histogram = np.bincount(places.ravel(), minlength=COLORS**3) / places.size
    return _Thumbnail(values, float(values.std()), histogram)


def _is_hidden(new: _Thumbnail, last: _Thumbnail) -> bool:
    """Whether a flash or a black picture hides most of a frame."""
    for new_values, old_values in (
        (new.values, last.values),
        (255 - new.values, 255 - last.values),
    ):
        white, before = ((v.min(-1) >= 245).mean() for v in (new_values, old_values))
        if white >= before + 0.3 and (new_values >= old_values - 12).mean() >= 0.95:
            return True
    return False


def similarity(old: Array, new: Array) -> float:
    """The correlation of two thumbnails, moved onto each other as they fit best.

    Args:
        old: (ROWS, COLUMNS, 3) float32.
        new: (ROWS, COLUMNS, 3) float32.

    Returns:
        At most 1, which says that they differ at most in position, brightness and contrast.
    """
    old, new = old - old.mean(), new - new.mean()
    still = float((old * new).sum() / np.sqrt((old**2).sum() * (new**2).sum() + 1e-6))
    if still > 0.8:  # as in most frames
        return still
    a, b, a2, b2 = (np.fft.rfft2(v, _SHAPE, axes=(0, 1)) for v in (old, new, old**2, new**2))
    sum_a, sum_b = _correlate(a, _ONES), _correlate(_ONES, b)
    sum_a2, sum_b2 = _correlate(a2, _ONES), _correlate(_ONES, b2)
    variances = (sum_a2 - sum_a**2 / _COUNTS).clip(0) * (sum_b2 - sum_b**2 / _COUNTS).clip(0)
    products = _correlate(a, b) - sum_a * sum_b / _COUNTS
    seen = _ALLOWED & (variances > _COUNTS**2)
    fits = np.where(seen, products / np.sqrt(variances.clip(1e-3)), -1)
    return max(still, float(fits.max()))


def _correlate(a: Array, b: Array) -> Array:
    """Sums of products over the overlap, for each move, of transformed thumbnails."""
    return np.fft.irfft2((a * np.conj(b)).sum(-1), _SHAPE)


_SHAPE = (2 * ROWS, 2 * COLUMNS)
_ONES = np.fft.rfft2(np.ones((ROWS, COLUMNS, 3)), _SHAPE, axes=(0, 1))
_COUNTS = _correlate(_ONES, _ONES).clip(1)
_MOVES = [np.abs(np.fft.fftfreq(n, 1 / n)) <= LARGEST_MOVE * n / 2 for n in _SHAPE]
_ALLOWED = _MOVES[0][:, None] & _MOVES[1][None] & (_COUNTS >= ROWS * COLUMNS * 3 / 2)

"""Stickers are transformed and composited into images, with the exact visible mask of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Shadow = tuple[int, int, float]
"""Pixels to the right, pixels down, and darkness from 0 to 1."""

MIN_VISIBLE_SHARE = 0.35
"""Least share of an object's pixels that stays visible; what would hide more goes elsewhere."""

OPAQUE = 127
"""Alpha above which a pixel belongs to the mask."""


@dataclass(frozen=True)
class Appearance:
    """How a sticker is shown.

    Attributes:
        side: Longer side before rotation, in pixels.
        angle: Rotation in degrees, counter-clockwise.
        mirrored: Whether left and right are exchanged.
        gain: Factors of red, green and blue.
        blur: Radius of a Gaussian blur in pixels.
    """

    side: float
    angle: float = 0.0
    mirrored: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0


def render_sticker(sticker: Pixels, appearance: Appearance) -> Pixels:
    """Scale, rotate and color a sticker.

    Args:
        sticker: (S, S, 4) RGBA, straight alpha, with a margin of 2 pixels.
        appearance: How it is shown.

    Returns:
        A patch (h, w, 4) RGBA with premultiplied alpha.
    """
    # With premultiplied alpha, resampling does not mix in the color of transparent pixels.
    image = Image.fromarray(sticker).convert("RGBa")
    if appearance.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = max(4, round(appearance.side * sticker.shape[0] / (sticker.shape[0] - 4)))
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    if appearance.angle:
        image = image.rotate(appearance.angle, Image.Resampling.BILINEAR, expand=True)
    if appearance.blur:
        image = image.filter(ImageFilter.GaussianBlur(appearance.blur))
    patch = np.array(image)
    if appearance.gain != (1.0, 1.0, 1.0):
        color = patch[..., :3] * np.asarray(appearance.gain, np.float32)
        patch[..., :3] = np.minimum(color, patch[..., 3:])  # at most white, premultiplied
    return patch


class Compositor:
    """Draws patches onto an image, later ones in front, and keeps the visible mask of each.

    Args:
        image: (H, W, 3) uint8 RGB, which is drawn on in place.

    Attributes:
        image: The image.
        masks: Visible pixels of each patch, (H, W) bool.
        areas: Opaque pixels of each patch, visible or not.
    """

    def __init__(self, image: Pixels) -> None:
        self.image = image
        self.masks: list[Mask] = []
        self.areas: list[int] = []

    def fits(self, patch: Pixels, left: int, top: int, min_pixels: int) -> bool:
        """Whether a patch would be visible here and would leave all earlier ones visible.

        Args:
            patch: (h, w, 4) RGBA.
            left: Column of its left edge.
            top: Row of its upper edge.
            min_pixels: Least visible pixels of any object.
        """
        rows, columns, inside = self._clip(patch, left, top)
        opaque = inside[..., 3] > OPAQUE
        own = np.count_nonzero(opaque)
        if own < max(min_pixels, MIN_VISIBLE_SHARE * np.count_nonzero(patch[..., 3] > OPAQUE)):
            return False
        for mask, area in zip(self.masks, self.areas, strict=True):
            hidden = np.count_nonzero(mask[rows, columns] & opaque)
            least = max(min_pixels, MIN_VISIBLE_SHARE * area)
            if hidden and np.count_nonzero(mask) - hidden < least:
                return False
        return True

    def draw(self, patch: Pixels, left: int, top: int, shadow: Shadow | None = None) -> None:
        """Draw a patch in front of all others.

        Args:
            patch: (h, w, 4) RGBA with premultiplied alpha.
            left: Column of its left edge; it may lie outside of the image.
            top: Row of its upper edge; it may lie outside of the image.
            shadow: Shadow below the patch; None: no shadow.
        """
        if shadow is not None:
            self._draw_shadow(patch, left, top, *shadow)
        rows, columns, inside = self._clip(patch, left, top)
        below = self.image[rows, columns]
        clear = 255 - inside[..., 3:].astype(np.uint16)
        self.image[rows, columns] = inside[..., :3] + ((below * clear + 127) // 255).astype(
            np.uint8
        )
        opaque = inside[..., 3] > OPAQUE
        for mask in self.masks:
            mask[rows, columns] &= ~opaque
        own = np.zeros(self.image.shape[:2], bool)
        own[rows, columns] = opaque
        self.masks.append(own)
        self.areas.append(int(np.count_nonzero(patch[..., 3] > OPAQUE)))

    def _draw_shadow(
        self, patch: Pixels, left: int, top: int, right: int, down: int, darkness: float
    ) -> None:
        soft = max(1, patch.shape[0] // 24)
        alpha = Image.fromarray(np.pad(patch[..., 3], 2 * soft))
        blurred = np.array(alpha.filter(ImageFilter.BoxBlur(soft)))[..., None]
        rows, columns, inside = self._clip(blurred, left + right - 2 * soft, top + down - 2 * soft)
        light = 255 - (inside * darkness).astype(np.uint16)
        self.image[rows, columns] = (self.image[rows, columns] * light // 255).astype(np.uint8)

    def _clip(self, patch: Pixels, left: int, top: int) -> tuple[slice, slice, Pixels]:
        """Rows and columns of the image that a patch covers, and the part of it that does."""
        height, width = self.image.shape[:2]
        h, w = patch.shape[:2]
        y0, y1, x0, x1 = max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)
        inside = patch[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)]
        return slice(y0, max(y0, y1)), slice(x0, max(x0, x1)), inside


def random_shadow(rng: np.random.Generator, size: int, probability: float) -> Shadow | None:
    """The shadow of a scene's objects, or None for a scene without shadows.

    Args:
        rng: Source of random numbers.
        size: Side of the image in pixels.
        probability: Share of scenes with shadows.
    """
    if rng.random() >= probability:
        return None
    offset = rng.integers(-size // 60, size // 60 + 1, 2)
    return int(offset[0]), int(abs(offset[1])) + 1, float(rng.uniform(0.2, 0.5))


def mask_to_box(mask: Mask) -> NDArray[np.float32]:
    """The box around a mask: (4,) float32, xyxy in pixels; zeros for an empty mask.

    Args:
        mask: (H, W) bool.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def add_camera_effects(rng: np.random.Generator, image: Pixels) -> Pixels:
    """Add random blur, change of light, and noise to an image, each with a probability.

    Args:
        rng: Source of random numbers.
        image: (H, W, 3) uint8 RGB; it is not changed.
    """
    if rng.random() < 0.15:
        radius = float(rng.uniform(0.4, 1.0))
        image = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if rng.random() < 0.4:
        colored = rng.random() < 0.5
        gains = rng.uniform(0.85, 1.12, 3) if colored else np.full(3, rng.uniform(0.8, 1.15))
        image = apply_gains(Image.fromarray(image), gains)
    if rng.random() < 0.3:
        amplitude = int(rng.integers(3, 12))
        noise = rng.integers(-amplitude, amplitude + 1, image.shape, dtype=np.int8)
        image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return image


def apply_gains(image: Image.Image, gains: NDArray[np.float64]) -> Pixels:
    """Multiply the channels of an RGB image.

    Args:
        image: The image.
        gains: Factors of red, green and blue.
    """
    table = np.clip(gains[:, None] * np.arange(256), 0, 255).astype(np.uint8)
    return np.array(image.point(table.ravel().tolist()))

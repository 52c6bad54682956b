"""What a scene is drawn with: stickers as they are shown, and what of each stays in sight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

LEAST_VISIBLE = 0.35
"""Of an object's own pixels, what must stay in sight; what would hide more is put elsewhere."""


@dataclass(frozen=True)
class Look:
    """How a sticker is shown: side in pixels, angle in degrees, colour gains, blur in pixels."""

    side: float
    angle: float = 0.0
    mirrored: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0


def render(sticker: Pixels, look: Look) -> Pixels:
    """A sticker (S, S, 4) with straight alpha -> a patch (h, w, 4), premultiplied."""
    # Premultiplied, so that resampling does not pull in the colour of what is transparent.
    image = Image.fromarray(sticker).convert("RGBa")
    if look.mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = max(4, round(look.side * sticker.shape[0] / (sticker.shape[0] - 4)))
    image = image.resize((side, side), Image.Resampling.BILINEAR)
    if look.angle:
        image = image.rotate(look.angle, Image.Resampling.BILINEAR, expand=True)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur))
    patch = np.array(image)
    if look.gain != (1.0, 1.0, 1.0):
        colour = patch[..., :3] * np.asarray(look.gain, np.float32)
        patch[..., :3] = np.minimum(colour, patch[..., 3:])  # never brighter than opaque white
    return patch


class Canvas:
    """An image that objects are drawn on, front after back, and what of each can be seen."""

    def __init__(self, image: Pixels) -> None:
        self.image = image
        self.masks: list[Mask] = []
        self.areas: list[int] = []

    def region(self, patch: Pixels, left: int, top: int) -> tuple[slice, slice, Pixels]:
        """Rows and columns of the image that a patch covers, and the part of it that does."""
        height, width = self.image.shape[:2]
        h, w = patch.shape[:2]
        y0, y1, x0, x1 = max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)
        inside = patch[max(y0 - top, 0) : max(y1 - top, 0), max(x0 - left, 0) : max(x1 - left, 0)]
        return slice(y0, max(y0, y1)), slice(x0, max(x0, x1)), inside

    def fits(self, patch: Pixels, left: int, top: int, least: int) -> bool:
        """Whether the patch, drawn here, would be in sight and leave all others in sight."""
        rows, columns, inside = self.region(patch, left, top)
        opaque = inside[..., 3] > 127
        own = int(opaque.sum())
        if own < max(least, LEAST_VISIBLE * int((patch[..., 3] > 127).sum())):
            return False
        for mask, area in zip(self.masks, self.areas, strict=True):
            under = mask[rows, columns]
            lost = int((under & opaque).sum())
            if lost and int(mask.sum()) - lost < max(least, LEAST_VISIBLE * area):
                return False
        return True

    def draw(
        self, patch: Pixels, left: int, top: int, shadow: tuple[int, int, float] | None = None
    ) -> None:
        """Draw a premultiplied patch with its corner at (left, top).

        Args:
            shadow: pixels right and down, and darkness from 0 to 1.
        """
        if shadow is not None:
            self._shade(patch, left, top, *shadow)
        rows, columns, inside = self.region(patch, left, top)
        under = self.image[rows, columns]
        clear = 255 - inside[..., 3:].astype(np.uint16)
        self.image[rows, columns] = inside[..., :3] + ((under * clear + 127) // 255).astype(
            np.uint8
        )
        opaque = inside[..., 3] > 127
        for mask in self.masks:
            mask[rows, columns] &= ~opaque
        own = np.zeros(self.image.shape[:2], bool)
        own[rows, columns] = opaque
        self.masks.append(own)
        self.areas.append(int((patch[..., 3] > 127).sum()))

    def _shade(
        self, patch: Pixels, left: int, top: int, right: int, down: int, dark: float
    ) -> None:
        soft = max(1, patch.shape[0] // 24)
        alpha = Image.fromarray(np.pad(patch[..., 3], 2 * soft))
        blurred = np.array(alpha.filter(ImageFilter.BoxBlur(soft)))[..., None]
        rows, columns, inside = self.region(blurred, left + right - 2 * soft, top + down - 2 * soft)
        light = 255 - (inside * dark).astype(np.uint16)
        self.image[rows, columns] = (self.image[rows, columns] * light // 255).astype(np.uint8)


def tight_box(mask: Mask) -> NDArray[np.float32]:
    """xyxy in pixels around a mask, (4,) float32."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def finish(rng: np.random.Generator, image: Pixels) -> Pixels:
    """What a camera adds: some blur, some noise, some light."""
    if rng.random() < 0.15:
        radius = float(rng.uniform(0.4, 1.0))
        image = np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))
    if rng.random() < 0.4:
        light = (
            rng.uniform(0.85, 1.12, 3) if rng.random() < 0.5 else np.full(3, rng.uniform(0.8, 1.15))
        )
        table = np.clip(light[:, None] * np.arange(256), 0, 255).astype(np.uint8)
        image = np.array(Image.fromarray(image).point(table.ravel().tolist()))
    if rng.random() < 0.3:
        reach = int(rng.integers(3, 12))
        noise = rng.integers(-reach, reach + 1, image.shape, dtype=np.int8)
        image = np.clip(image.astype(np.int16) + noise, 0, 255).astype(np.uint8)
    return image

"""Overlay pictures: instances drawn on their image with contours and labels."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from ..errors import ImageError
from ..types import Array, Instances, LogitPatch

Color = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

PIXELS, LONGEST = 1920 * 1440, 4096
"""Most pixels of an overlay, and of its longer side: a panorama is drawn smaller."""

_SMALL, _ENLARGED = 480, 640  # longer side below which an image is enlarged, and to what
_NARROWEST = 160  # a narrow image gets margins up to this side, so that a label has room
_FILL = 0.42  # opacity of a mask's interior
_INK, _MARGIN = (18, 18, 20), (38, 38, 42)

# Far apart in hue, and bright enough for photographs. Neighbors in the list differ most.
COLORS: tuple[Color, ...] = (
    (255, 75, 62),
    (30, 144, 255),
    (52, 199, 89),
    (255, 180, 0),
    (180, 90, 255),
    (0, 200, 200),
    (255, 102, 178),
    (160, 220, 0),
    (255, 125, 26),
    (110, 120, 255),
    (0, 160, 120),
    (210, 70, 125),
)


def overlay(image: Any, instances: Instances, *, pixels: int = PIXELS) -> Image.Image:
    """Draw instances on their image: colored masks with contours, concepts and scores.

    Args:
        image: (H, W, 3) uint8 RGB, or a PIL image, upright as the model read it.
        instances: Instances of this image. Their boxes are drawn if they have no masks.
        pixels: Most pixels of the picture; larger images are drawn smaller. Small images are
            enlarged and narrow ones get margins, so that labels can be read.

    Returns:
        A new RGB picture.

    Raises:
        ImageError: The image is not RGB, or has another size than that of the instances.
    """
    picture = _to_pil(image)
    height, width = instances.size
    if picture.size != (width, height):
        raise ImageError(
            f"the instances are of an image of {width} x {height} pixels, but this one has "
            f"{picture.width} x {picture.height}: pass the same image, upright"
        )
    picture, placement = _canvas(picture, pixels)
    line = max(1, round(math.sqrt(picture.width * picture.height) / 480))
    colors = instance_colors(instances)
    boxes = [placement.box(box) for box in instances.boxes]
    # Large ones first, so that smaller ones on top of them stay visible.
    order = sorted(range(len(boxes)), key=lambda i: -_area(boxes[i]))
    masks = {}
    for i in order:
        mask = None if instances.patches is None else placement.mask(instances, i)
        if mask is not None:
            masks[i] = mask
            picture.paste(colors[i], mask.corner, mask.image.point(lambda v: v * _FILL))
    for i, mask in masks.items():
        edge, shadow, corner = _contour(mask, line)
        picture.paste(_INK, corner, shadow)
        picture.paste(colors[i], corner, edge)
    draw = ImageDraw.Draw(picture)
    for i in order:
        if i not in masks:
            _draw_box(draw, boxes[i], colors[i], line)
    _draw_labels(draw, picture.size, instances, boxes, masks, colors)
    return picture


def instance_colors(instances: Instances) -> list[Color]:
    """A color for each instance, the same in every image of a run.

    Several concepts have a hue each, and their instances shades of it; the instances of a single
    concept have hues of their own. A tracked instance keeps its color through the video.

    Args:
        instances: N instances; their ``concepts`` decide the hues, found or not.

    Returns:
        N colors, RGB.
    """
    names = list(dict.fromkeys((*instances.concepts, *instances.labels)))
    counts = dict.fromkeys(names, 0)
    colors = []
    for i, label in enumerate(instances.labels):
        number = counts[label]
        counts[label] += 1
        if instances.track_ids is not None:
            number = int(instances.track_ids[i])
        if len(names) == 1:
            cycle, place = divmod(number, len(COLORS))
            colors.append(_shade(COLORS[place], cycle))
        else:
            cycle, place = divmod(names.index(label), len(COLORS))
            colors.append(_shade(_shade(COLORS[place], cycle), number))
    return colors


def draw_masks(
    image: Array,
    masks: Sequence[Array],
    colors: Sequence[Color],
    *,
    fill: float = 0.25,
    outline: bool = True,
) -> Array:
    """Draw masks on an image of their size, without labels.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: N masks, (H, W) bool each; later ones are drawn over earlier ones.
        colors: N colors, RGB.
        fill: Opacity of a mask's interior, 0 to 1.
        outline: Whether the inner edge of a mask has its full color.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    canvas = np.asarray(image, np.float32).copy()
    for mask, color in zip(masks, colors, strict=True):
        canvas[mask] = canvas[mask] * (1 - fill) + fill * np.array(color, np.float32)
        if outline:
            padded = np.pad(mask, 1)
            inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
            canvas[mask & ~inner] = color
    return canvas.astype(np.uint8)


def _shade(color: Color, number: int) -> Color:
    """The color itself for 0, then neighbors in hue and lightness; repeats after nine."""
    turn = (0, 0.045, -0.045)[number % 3]
    light = (1, 0.76, 1.2)[number // 3 % 3]
    h, lightness, s = colorsys.rgb_to_hls(*(c / 255 for c in color))
    r, g, b = colorsys.hls_to_rgb((h + turn) % 1, min(lightness * light, 0.82), s)
    return round(r * 255), round(g * 255), round(b * 255)


# Scaling --------------------------------------------------------------------------------------


class _ScaledMask(NamedTuple):
    """A mask at the picture's scale.

    image: 8-bit grey, 0 to 255 by the share of each pixel that the mask covers.
    corner: (x, y) of the image's top left pixel in the picture.
    """

    image: Image.Image
    corner: tuple[int, int]

    def anchors(self) -> list[tuple[float, float]]:
        """(x, y) in the picture of the mask's highest point, lowest point and center of mass."""
        inside = np.asarray(self.image) > 127
        rows, columns = np.nonzero(inside if inside.any() else np.asarray(self.image))
        top, bottom = columns[rows == rows[0]].mean(), columns[rows == rows[-1]].mean()
        points = (top, rows[0]), (bottom, rows[-1] + 1), (columns.mean(), rows.mean())
        return [(float(x) + self.corner[0], float(y) + self.corner[1]) for x, y in points]


class _Placement(NamedTuple):
    """Where the image lies in the picture, and its (height, width) there and originally."""

    left: int
    top: int
    drawn: tuple[int, int]
    size: tuple[int, int]

    @property
    def scale_x(self) -> float:
        return self.drawn[1] / self.size[1]

    @property
    def scale_y(self) -> float:
        return self.drawn[0] / self.size[0]

    def box(self, box: Array) -> Rectangle:
        """A box of the image in pixels of the picture."""
        x0, y0, x1, y1 = (float(v) for v in box)
        return (
            self.left + x0 * self.scale_x,
            self.top + y0 * self.scale_y,
            self.left + x1 * self.scale_x,
            self.top + y1 * self.scale_y,
        )

    def mask(self, instances: Instances, i: int) -> _ScaledMask | None:
        """The mask of an instance in the picture; None if it has no pixel there."""
        patch = instances.patches[i] if instances.patches is not None else None
        if isinstance(patch, LogitPatch) and self.scale_y <= 1:
            # Logits are interpolated to the picture's size directly, so that the mask of a
            # panorama is never made at full size.
            pixels, (left, top, _, _) = patch.crop(self.drawn)
            image = Image.fromarray(pixels.astype(np.uint8) * 255)
            return _ScaledMask(image, (self.left + left, self.top + top)) if pixels.size else None
        pixels, box = instances.crop(i)
        if not pixels.size:
            return None
        x0, y0, x1, y1 = box
        left, top = math.floor(x0 * self.scale_x), math.floor(y0 * self.scale_y)
        right, bottom = math.ceil(x1 * self.scale_x), math.ceil(y1 * self.scale_y)
        # Edges of the picture's pixels lie between those of the image: pad by that much.
        pad_x, pad_y = math.ceil(1 / self.scale_x), math.ceil(1 / self.scale_y)
        padded = np.pad(pixels, ((pad_y, pad_y), (pad_x, pad_x)))
        source = (
            max(left / self.scale_x - x0 + pad_x, 0),
            max(top / self.scale_y - y0 + pad_y, 0),
            min(right / self.scale_x - x0 + pad_x, padded.shape[1]),
            min(bottom / self.scale_y - y0 + pad_y, padded.shape[0]),
        )
        full = Image.fromarray(padded.astype(np.uint8) * 255)
        small = full.resize((right - left, bottom - top), Image.Resampling.BOX, source)
        return _ScaledMask(small, (self.left + left, self.top + top)) if small.getbbox() else None


def _to_pil(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ImageError(
            f"an overlay needs an image of (H, W, 3) uint8 RGB; got {array.shape} {array.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _canvas(image: Image.Image, pixels: int) -> tuple[Image.Image, _Placement]:
    """A copy of the image at the size to draw on, and where it lies there."""
    longer = max(image.size)
    scale = min(math.sqrt(pixels / (image.width * image.height)), LONGEST / longer, 1.0)
    if longer <= _SMALL and scale == 1:
        scale = math.ceil(_ENLARGED / longer)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Enlarged pixels stay squares: a picture of 5 x 5 pixels should look like one.
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    scaled = image.resize((width, height), kind, reducing_gap=2.0 if scale < 1 else None)
    full_width, full_height = max(width, _NARROWEST), max(height, _NARROWEST)
    left, top = (full_width - width) // 2, (full_height - height) // 2
    canvas = Image.new("RGB", (full_width, full_height), _MARGIN)
    canvas.paste(scaled, (left, top))
    return canvas, _Placement(left, top, (height, width), (image.height, image.width))


# Contours and boxes ---------------------------------------------------------------------------


def _contour(mask: _ScaledMask, line: int) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """The inner edge of a mask, ``line`` pixels wide, a shadow around it, and their corner."""
    margin = line + 1
    # A slight blur smooths the staircase of masks that are drawn pixel by pixel.
    soft = ImageOps.expand(mask.image, margin, 0).filter(ImageFilter.GaussianBlur(0.6))
    values = np.asarray(soft)
    edge = values - _morph(values, line, np.minimum)
    shadow = (_morph(values, 1, np.maximum) - values) * 0.6
    corner = mask.corner[0] - margin, mask.corner[1] - margin
    return Image.fromarray(edge), Image.fromarray(shadow.astype(np.uint8)), corner


def _morph(values: Array, steps: int, choose: np.ufunc) -> Array:
    """Erode (np.minimum) or dilate (np.maximum) with a cross, ``steps`` times.

    Many times faster than Pillow's MinFilter and MaxFilter.
    """
    for _ in range(steps):
        padded = np.pad(values, 1, mode="edge")
        rows = choose(choose(padded[:-2, 1:-1], padded[2:, 1:-1]), values)
        values = choose(choose(padded[1:-1, :-2], padded[1:-1, 2:]), rows)
    return values


def _draw_box(draw: ImageDraw.ImageDraw, box: Rectangle, color: Color, line: int) -> None:
    x0, y0, x1, y1 = box
    x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_INK, width=line + 2)
    draw.rectangle((x0, y0, x1, y1), outline=color, width=line)


# Labels ---------------------------------------------------------------------------------------


def _draw_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    instances: Instances,
    boxes: list[Rectangle],
    masks: dict[int, _ScaledMask],
    colors: list[Color],
) -> None:
    """Draw concept and score at each instance, best score first, where there is room for them."""
    shrink = 0.8 if len(instances) > 40 else 1.0
    text_height = max(12, round(shrink * math.sqrt(size[0] * size[1]) / 60))
    font, pad = ImageFont.load_default(text_height), max(2, round(text_height / 5))
    all_boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.zeros((0, 4), np.float32)
    for i in (int(i) for i in np.argsort(-instances.scores, kind="stable")):
        text = f"{_label(instances, i)} {instances.scores[i]:.2f}"
        x0, _, x1, _ = draw.textbbox((0, 0), text, font=font)
        width, height = x1 - x0 + 2 * pad, text_height + 2 * pad
        places = _label_places(boxes[i], masks.get(i), width, height, size)
        # A label hides nothing of instances that are much larger than it.
        is_small = _area(all_boxes.T) < 4 * width * height
        others = all_boxes[is_small & (np.arange(len(all_boxes)) != i)]
        costs = [
            rank / 8 + (_shared_area(place, others) / np.maximum(_area(others.T), 1)).sum()
            if not _shared_area(place, labels).any()
            else math.inf
            for rank, place in enumerate(places)
        ]
        if min(costs, default=math.inf) == math.inf:
            continue
        place = places[int(np.argmin(costs))]
        labels = np.vstack([labels, place])
        draw.rounded_rectangle(place, pad, fill=colors[i], outline=_INK, width=1)
        r, g, b = colors[i]
        is_dark = 0.299 * r + 0.587 * g + 0.114 * b < 118
        center = (place[0] + width / 2, place[1] + height / 2)
        draw.text(center, text, (255, 255, 255) if is_dark else _INK, font, anchor="mm")


def _label(instances: Instances, i: int) -> str:
    if instances.track_ids is None or instances.track_ids[i] < 0:
        return instances.labels[i]
    return f"{instances.labels[i]} #{instances.track_ids[i]}"


def _label_places(
    box: Rectangle, mask: _ScaledMask | None, width: float, height: float, size: tuple[int, int]
) -> list[Rectangle]:
    """Places for a label within the picture, the best first: above, below, on the instance."""
    x0, y0, x1, y1 = box
    corners = [
        (x0, y0 - height),
        (x0, y0),
        (x1 - width, y0 - height),
        (x1 - width, y0),
        (x0, y1),
        (x0, y1 - height),
        (x1 - width, y1),
        (x1 - width, y1 - height),
    ]
    if mask is not None:
        # The corner of a box can be far from the object in it, so the mask's points come first.
        highest, lowest, middle = mask.anchors()
        corners = [
            (highest[0] - width / 2, highest[1] - height - 2),
            (highest[0] - width / 2, highest[1] + 2),
            (lowest[0] - width / 2, lowest[1] + 2),
            (middle[0] - width / 2, middle[1] - height / 2),
            (lowest[0] - width / 2, lowest[1] - height - 2),
            *corners,
        ]
    inside = ((min(max(x, 0.0), size[0] - 1 - width), y) for x, y in corners)
    return [(x, y, x + width, y + height) for x, y in inside if 0 <= y <= size[1] - 1 - height]


def _area(box: Rectangle | Array) -> Any:
    """The area of one box, or of N boxes as the columns of a (4, N) array."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared_area(box: Rectangle, others: Array) -> Array:
    """Pixels that a box shares with each of (N, 4) others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return np.clip(high - low, 0, None).prod(1)

"""Overlay pictures: what was found, drawn on the image, for people to look at."""

from __future__ import annotations

import colorsys
import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from .errors import ImageError
from .types import Array, Instances, LogitPatch

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

PIXELS, LONGEST = 1920 * 1440, 4096
"""Size of a drawn picture and of its longer side, at most: a panorama is drawn smaller."""

_SMALL, _ENLARGED = 480, 640  # smaller images are enlarged, so that there is something to see
_NARROWEST = 160  # a strip gets margins up to this, so that a label has room
_FILL = 0.42
_INK, _MARGIN = (18, 18, 20), (38, 38, 42)

# Far apart in hue, and bright enough for photographs. Neighbours in the list differ most.
COLOURS: tuple[Colour, ...] = (
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
    """Draw instances on their image: coloured masks with contours, concepts and scores.

    Args:
        image: (H, W, 3) uint8 RGB array, or a PIL image, upright as the model saw it.
        instances: of this image. Without masks their boxes are drawn.
        pixels: of the picture, at most; larger images are drawn smaller. Small ones are
            enlarged, thin strips get margins, so that labels can be read.

    Returns:
        A new RGB picture; the image is not touched.
    """
    picture = _pil(image)
    height, width = instances.size
    if picture.size != (width, height):
        raise ImageError(
            f"the instances are of an image of {width} x {height} pixels, but this one has "
            f"{picture.width} x {picture.height}: pass the same image, upright"
        )
    picture, place = _canvas(picture, pixels)
    line = max(1, round(math.sqrt(picture.width * picture.height) / 480))
    paints = colours(instances)
    frames = [place.box(box) for box in instances.boxes]
    # Large ones first, so that what lies on them stays visible.
    order = sorted(range(len(frames)), key=lambda i: -_area(frames[i]))
    covers = {}
    for i in order:
        cover = None if instances.patches is None else place.cover(instances, i)
        if cover is not None:
            covers[i] = cover
            picture.paste(paints[i], cover.corner, cover.image.point(lambda v: v * _FILL))
    for i, cover in covers.items():
        edge, shadow, corner = _contour(cover, line)
        picture.paste(_INK, corner, shadow)
        picture.paste(paints[i], corner, edge)
    draw = ImageDraw.Draw(picture)
    for i in order:
        if i not in covers:
            _frame(draw, frames[i], paints[i], line)
    _write_labels(draw, picture.size, instances, frames, covers, paints)
    return picture


def colours(instances: Instances) -> list[Colour]:
    """A colour for each instance, the same in every image of a run.

    Several concepts have a hue each, and their instances shades of it; the instances of a single
    concept have hues of their own. Tracked instances keep theirs through the video.
    """
    names = list(dict.fromkeys((*instances.concepts, *instances.labels)))
    counts = dict.fromkeys(names, 0)
    out = []
    for i, label in enumerate(instances.labels):
        number = counts[label]
        counts[label] += 1
        if instances.track_ids is not None:
            number = int(instances.track_ids[i])
        out.append(_hue(number) if len(names) == 1 else _shade(_hue(names.index(label)), number))
    return out


def _hue(number: int) -> Colour:
    turn, place = divmod(number, len(COLOURS))
    return _shade(COLOURS[place], turn)


def _shade(colour: Colour, number: int) -> Colour:
    """The colour itself, then neighbours in hue and lightness; repeats after nine."""
    turn = (0, 0.045, -0.045)[number % 3]
    light = (1, 0.76, 1.2)[number // 3 % 3]
    h, lightness, s = colorsys.rgb_to_hls(*(c / 255 for c in colour))
    r, g, b = colorsys.hls_to_rgb((h + turn) % 1, min(lightness * light, 0.82), s)
    return round(r * 255), round(g * 255), round(b * 255)


# The picture ---------------------------------------------------------------------------------


class _Cover(NamedTuple):
    """A mask at the picture's scale: 0 to 255 by how much of a pixel it covers."""

    image: Image.Image
    corner: tuple[int, int]

    def spots(self) -> list[tuple[float, float]]:
        """Where it is highest and lowest, and its middle: xy in the picture."""
        inside = np.asarray(self.image) > 127
        rows, columns = np.nonzero(inside if inside.any() else np.asarray(self.image))
        top, bottom = columns[rows == rows[0]].mean(), columns[rows == rows[-1]].mean()
        ends = (top, rows[0]), (bottom, rows[-1] + 1), (columns.mean(), rows.mean())
        return [(float(x) + self.corner[0], float(y) + self.corner[1]) for x, y in ends]


class _Place(NamedTuple):
    """Where the image lies in the picture, and its (height, width) there and by itself."""

    left: int
    top: int
    drawn: tuple[int, int]
    size: tuple[int, int]

    @property
    def across(self) -> float:
        return self.drawn[1] / self.size[1]

    @property
    def down(self) -> float:
        return self.drawn[0] / self.size[0]

    def box(self, box: Array) -> Rectangle:
        x0, y0, x1, y1 = (float(v) for v in box)
        return (
            self.left + x0 * self.across,
            self.top + y0 * self.down,
            self.left + x1 * self.across,
            self.top + y1 * self.down,
        )

    def cover(self, instances: Instances, i: int) -> _Cover | None:
        """The mask of an instance; None if it has no pixel in the picture."""
        patch = instances.patches[i] if instances.patches is not None else None
        if isinstance(patch, LogitPatch) and self.down <= 1:
            # It has no size of its own: a panorama's mask is never made in full.
            pixels, (left, top, _, _) = patch.crop(self.drawn)
            image = Image.fromarray(pixels.astype(np.uint8) * 255)
            return _Cover(image, (self.left + left, self.top + top)) if pixels.size else None
        pixels, box = instances.crop(i)
        if not pixels.size:
            return None
        x0, y0, x1, y1 = box
        left, top = math.floor(x0 * self.across), math.floor(y0 * self.down)
        right, bottom = math.ceil(x1 * self.across), math.ceil(y1 * self.down)
        # Pixels of the picture begin and end between those of the image: leave room around.
        more_x, more_y = math.ceil(1 / self.across), math.ceil(1 / self.down)
        padded = np.pad(pixels, ((more_y, more_y), (more_x, more_x)))
        source = (
            max(left / self.across - x0 + more_x, 0),
            max(top / self.down - y0 + more_y, 0),
            min(right / self.across - x0 + more_x, padded.shape[1]),
            min(bottom / self.down - y0 + more_y, padded.shape[0]),
        )
        full = Image.fromarray(padded.astype(np.uint8) * 255)
        small = full.resize((right - left, bottom - top), Image.Resampling.BOX, source)
        return _Cover(small, (self.left + left, self.top + top)) if small.getbbox() else None


def _pil(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise ImageError(
            f"a picture is drawn on (H, W, 3) uint8 RGB; got {array.shape} {array.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _canvas(image: Image.Image, pixels: int) -> tuple[Image.Image, _Place]:
    """A copy of the image at the size to draw on, and where it lies there."""
    longer = max(image.size)
    scale = min(math.sqrt(pixels / (image.width * image.height)), LONGEST / longer, 1.0)
    if longer <= _SMALL and scale == 1:
        scale = math.ceil(_ENLARGED / longer)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Enlarged pixels stay squares: a picture of 5 x 5 pixels should look like one.
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    small = image.resize((width, height), kind, reducing_gap=2.0 if scale < 1 else None)
    wide, tall = max(width, _NARROWEST), max(height, _NARROWEST)
    left, top = (wide - width) // 2, (tall - height) // 2
    canvas = Image.new("RGB", (wide, tall), _MARGIN)
    canvas.paste(small, (left, top))
    return canvas, _Place(left, top, (height, width), (image.height, image.width))


def _contour(cover: _Cover, line: int) -> tuple[Image.Image, Image.Image, tuple[int, int]]:
    """Inner edge of a mask, a shadow that sets it off from any ground, and their corner."""
    more = line + 1
    # A little blur takes the stairs off masks that are drawn pixel by pixel.
    soft = ImageOps.expand(cover.image, more, 0).filter(ImageFilter.GaussianBlur(0.6))
    room = np.asarray(soft)
    edge = room - _spread(room, line, np.minimum)
    shadow = (_spread(room, 1, np.maximum) - room) * 0.6
    corner = cover.corner[0] - more, cover.corner[1] - more
    return Image.fromarray(edge), Image.fromarray(shadow.astype(np.uint8)), corner


def _spread(values: Array, steps: int, choose: np.ufunc) -> Array:
    """The least or greatest of the neighbours, ``steps`` times; many times Pillow's speed."""
    for _ in range(steps):
        wide = np.pad(values, 1, mode="edge")
        rows = choose(choose(wide[:-2, 1:-1], wide[2:, 1:-1]), values)
        values = choose(choose(wide[1:-1, :-2], wide[1:-1, 2:]), rows)
    return values


def _frame(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, line: int) -> None:
    x0, y0, x1, y1 = box
    x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_INK, width=line + 2)
    draw.rectangle((x0, y0, x1, y1), outline=colour, width=line)


# Labels --------------------------------------------------------------------------------------


def _write_labels(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    instances: Instances,
    frames: list[Rectangle],
    covers: dict[int, _Cover],
    paints: list[Colour],
) -> None:
    """Concept and score at each instance, the best first; one without a free place has none."""
    crowd = 0.8 if len(instances) > 40 else 1.0
    height = max(12, round(crowd * math.sqrt(size[0] * size[1]) / 60))
    font, pad = ImageFont.load_default(height), max(2, round(height / 5))
    things = np.array(frames, np.float32).reshape(-1, 4)
    labels = np.zeros((0, 4), np.float32)
    for i in (int(i) for i in np.argsort(-instances.scores, kind="stable")):
        text = f"{_name(instances, i)} {instances.scores[i]:.2f}"
        x0, _, x1, _ = draw.textbbox((0, 0), text, font=font)
        wide, tall = x1 - x0 + 2 * pad, height + 2 * pad
        spots = _spots(frames[i], covers.get(i), wide, tall, size)
        # What is much larger than the label is not hidden by it.
        others = things[(_area(things.T) < 4 * wide * tall) & (np.arange(len(things)) != i)]
        costs = [
            rank / 8 + (_shared(spot, others) / np.maximum(_area(others.T), 1)).sum()
            if not _shared(spot, labels).any()
            else math.inf
            for rank, spot in enumerate(spots)
        ]
        if min(costs, default=math.inf) == math.inf:
            continue
        spot = spots[int(np.argmin(costs))]
        labels = np.vstack([labels, spot])
        draw.rounded_rectangle(spot, pad, fill=paints[i], outline=_INK, width=1)
        r, g, b = paints[i]
        dark = 0.299 * r + 0.587 * g + 0.114 * b < 118
        middle = (spot[0] + wide / 2, spot[1] + tall / 2)
        draw.text(middle, text, (255, 255, 255) if dark else _INK, font, anchor="mm")


def _name(instances: Instances, i: int) -> str:
    if instances.track_ids is None or instances.track_ids[i] < 0:
        return instances.labels[i]
    return f"{instances.labels[i]} #{instances.track_ids[i]}"


def _spots(
    box: Rectangle, cover: _Cover | None, wide: float, tall: float, size: tuple[int, int]
) -> list[Rectangle]:
    """Places for a label within the picture, the best first: above it, below it, on it."""
    x0, y0, x1, y1 = box
    corners = [
        (x0, y0 - tall),
        (x0, y0),
        (x1 - wide, y0 - tall),
        (x1 - wide, y0),
        (x0, y1),
        (x0, y1 - tall),
        (x1 - wide, y1),
        (x1 - wide, y1 - tall),
    ]
    if cover is not None:
        # A box's corner can be far from what is in it.
        high, low, middle = cover.spots()
        corners = [
            (high[0] - wide / 2, high[1] - tall - 2),
            (high[0] - wide / 2, high[1] + 2),
            (low[0] - wide / 2, low[1] + 2),
            (middle[0] - wide / 2, middle[1] - tall / 2),
            (low[0] - wide / 2, low[1] - tall - 2),
            *corners,
        ]
    inside = ((min(max(x, 0.0), size[0] - 1 - wide), y) for x, y in corners)
    return [(x, y, x + wide, y + tall) for x, y in inside if 0 <= y <= size[1] - 1 - tall]


def _area(box: Rectangle | Array) -> Any:
    """Of one box, or of boxes as the columns of a (4, N) array."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(box: Rectangle, others: Array) -> Array:
    """Pixels that a box shares with each of (N, 4) others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return np.clip(high - low, 0, None).prod(1)

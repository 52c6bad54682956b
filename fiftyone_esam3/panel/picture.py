"""The panel's picture: the image with what was found, at the size of a screen."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from efficientsam3.draw import colours
from efficientsam3.types import Instances

from .bench import Prompts

SIDE = 520
"""Pixels of the longer side; small images are enlarged to it, so that one can point well."""

FILL = 0.45
ON, OFF = (60, 220, 90), (240, 60, 50)

Pixels = npt.NDArray[np.uint8]


def screen_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) on the screen of an image of (height, width)."""
    scale = SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def to_image(x: float, y: float, size: tuple[int, int]) -> tuple[float, float]:
    """A pixel of the screen's picture as a point of the image, at the pixel's centre."""
    height, width = screen_size(size)
    inside = np.clip([(x + 0.5) / width, (y + 0.5) / height], 0, 1)
    return float(inside[0] * size[1]), float(inside[1] * size[0])


def draw(image: Pixels, found: Instances | None, prompts: Prompts) -> Image.Image:
    """The image at the screen's size with masks, boxes where there are no masks, and prompts."""
    size = (image.shape[0], image.shape[1])
    height, width = screen_size(size)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    canvas = np.asarray(small, np.float32).copy()
    scale = np.array([width / size[1], height / size[0]] * 2)
    tints = [] if found is None else colours(found)
    if found is not None and found.patches is not None:
        rows = ((np.arange(height) + 0.5) * size[0] / height).astype(int)
        columns = ((np.arange(width) + 0.5) * size[1] / width).astype(int)
        for i, tint in enumerate(tints):
            mask, (x0, y0, x1, y1) = found.crop(i)
            r, c = (
                np.flatnonzero((rows >= y0) & (rows < y1)),
                np.flatnonzero((columns >= x0) & (columns < x1)),
            )
            if not (len(r) and len(c)):
                continue
            part = mask[np.ix_(rows[r] - y0, columns[c] - x0)]
            here = canvas[r[0] : r[-1] + 1, c[0] : c[-1] + 1]
            here[part] = here[part] * (1 - FILL) + np.array(tint, np.float32) * FILL
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    if found is not None and found.patches is None:
        for tint, box in zip(tints, found.boxes, strict=True):
            pen.rectangle((box * scale).tolist(), outline=tint, width=2)
    shapes = [(*prompts.box, 1)] if prompts.box is not None else []
    for *corners, sign in (*shapes, *prompts.examples):
        pen.rectangle((np.array(corners) * scale).tolist(), outline=ON if sign else OFF, width=3)
    for x, y, sign in prompts.points:
        px, py = x * scale[0], y * scale[1]
        pen.ellipse([px - 5, py - 5, px + 5, py + 5], fill=ON if sign else OFF, outline=(0, 0, 0))
    return picture


def data_uri(picture: Image.Image) -> str:
    """The picture as an address that holds it."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


STEP = 8
"""Pixels of the screen between the points by which boxes are selected."""


def traces(picture: Image.Image) -> list[dict[str, Any]]:
    """Plotly's data: the picture, which can be clicked on, and unseen points for drawing a box."""
    ys, xs = np.mgrid[0 : picture.height : STEP, 0 : picture.width : STEP]
    return [
        {"type": "image", "source": data_uri(picture), "name": "picture", "hoverinfo": "none"},
        {
            "type": "scatter",
            "mode": "markers",
            "name": "grid",
            "x": xs.ravel().tolist(),
            "y": ys.ravel().tolist(),
            "marker": {"opacity": 0, "size": 1},
            "hoverinfo": "skip",
            "showlegend": False,
        },
    ]


def layout(width: int, height: int) -> dict[str, Any]:
    """Plotly's layout: the picture alone, in its own pixels."""
    plain = {"visible": False, "showgrid": False, "zeroline": False}
    return {
        "width": width,
        "height": height,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0, "pad": 0},
        "xaxis": {**plain, "range": [-0.5, width - 0.5]},
        "yaxis": {**plain, "range": [height - 0.5, -0.5], "scaleanchor": "x"},
        "dragmode": "select",
        "showlegend": False,
    }

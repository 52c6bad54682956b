"""Windows of maps around the boxes of objects, and layers by which objects read them.

late_objects.py describes the whole. Objects are found among tokens of stride 16, which are too
coarse for exact boxes and for small things. A ``WindowLayer`` lets each object read finer features
in a window around its box, as the heads of R-CNNs do.

Windows are read and written by matrices of interpolation weights, which every runtime multiplies,
and not by RoIAlign or grid sampling, which some of them lack.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Mlp, as_weights, layer_norm, linear

CELLS = 8
"""Cells a side of the window of an object that a ``WindowLayer`` reads."""
WIDEN = 1.4
"""Sides of this window in sides of the box."""
LEAST = 1.0
"""Cells of the map by which a window is wider still."""
LARGEST = 0.7
"""Largest change of a box in one layer: in its sides, and in the logarithm of its sides."""


class WindowMap(nn.Module):
    """The features of stride 8 that windows show.

    Args:
        width: Channels C of the tokens.
        fine: Channels of the encoder's map of stride 8.
        channels: Channels D of the result.
    """

    def __init__(self, width: int, fine: int, channels: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(fine, channels, 1)
        self.context = nn.Conv2d(width, channels, 1)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, tokens: Tensor, grid: tuple[int, int], fine: Tensor) -> Tensor:
        """Compute the features.

        Args:
            tokens: (B, N, C).
            grid: Rows and columns of the N cells.
            fine: The encoder's map of stride 8.

        Returns:
            (B, D, 2 * rows, 2 * columns).
        """
        seen = as_weights(as_map(tokens, grid), self.context.weight)
        seen = upsample(self.context(seen), fine.shape[-2:])
        x = seen + self.lateral(as_weights(fine, self.lateral.weight))
        out: Tensor = self.smooth(x.relu()).relu()
        return out


class WindowLayer(nn.Module):
    """Each object reads the window of its box, and corrects query and box. Untrained, it does not.

    Args:
        width: Channels C of the queries.
        channels: Channels D of the map.
        hidden: Width of the feed-forward layer.
    """

    def __init__(self, width: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.window = nn.Linear(channels * CELLS**2, hidden)
        self.query = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)
        self.box = Mlp(width, width, 4)
        for last in (self.out, self.box.layers[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, boxes: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Update the objects.

        Args:
            x: (B, Q, C) queries.
            boxes: (B, Q, 4) cxcywh in [0, 1].
            features: (B, D, H, W) from ``WindowMap``.

        Returns:
            (B, Q, C) queries and (B, Q, 4) float32 boxes.
        """
        read = read_weights(boxes, (features.shape[-2], features.shape[-1]), CELLS, WIDEN)
        seen = read_windows(features, *read).flatten(2)
        hidden = linear(self.window, seen) + linear(self.query, layer_norm(self.norm, x))
        x = x + linear(self.out, hidden.relu())
        change = LARGEST * torch.tanh(self.box(layer_norm(self.norm2, x)).float())
        middle, size = boxes.split(2, -1)
        moved = torch.cat([middle + change[..., :2] * size, size * change[..., 2:].exp()], -1)
        return x, moved.clamp(1e-3, 1.0)


def window_places(
    boxes: Tensor, size: tuple[int, int], window: int, widen: float
) -> tuple[Tensor, Tensor]:
    """Where the cells of windows lie along either axis.

    Args:
        boxes: (B, Q, 4) cxcywh in [0, 1].
        size: Rows H and columns W of the map.
        window: Cells S a side of a window.
        widen: Sides of a window in sides of the box.

    Returns:
        (B, Q, S, 2) of rows and (B, Q, S, 2) of columns: middle of each cell and its side, in cells
        of the map.
    """
    x, y, w, h = boxes.float().unbind(-1)
    return _places_along(y, h, size[0], window, widen), _places_along(x, w, size[1], window, widen)


def _places_along(middle: Tensor, size: Tensor, cells: int, window: int, widen: float) -> Tensor:
    side = (size * (cells * widen) + LEAST)[..., None] / window
    steps = torch.arange(window, device=middle.device, dtype=middle.dtype) + (0.5 - window / 2)
    place = middle[..., None] * cells + steps * side
    return torch.stack([place, side + torch.zeros_like(place)], -1)


def read_weights(
    boxes: Tensor, size: tuple[int, int], window: int, widen: float
) -> tuple[Tensor, Tensor]:
    """Weights that read a map in windows: the mean over a cell, or else linear interpolation.

    Beyond the map, its edge goes on.

    Args:
        boxes: (B, Q, 4) cxcywh in [0, 1].
        size: Rows H and columns W of the map.
        window: Cells S a side of a window.
        widen: Sides of a window in sides of the box.

    Returns:
        (B, Q, S, H) of rows and (B, Q, S, W) of columns.
    """
    rows, columns = window_places(boxes, size, window, widen)
    return _read_along(rows, size[0]), _read_along(columns, size[1])


def _read_along(places: Tensor, cells: int) -> Tensor:
    at = torch.arange(cells, device=places.device, dtype=places.dtype) + 0.5
    middle, side = places[..., :1].clamp(0.5, cells - 0.5), places[..., 1:].clamp(min=1)
    weights = F.relu(1 - (at - middle).abs() / side)
    return weights / weights.sum(-1, keepdim=True)


def read_windows(features: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read windows of a map.

    Args:
        features: (B, D, H, W).
        rows: (B, Q, S, H) from ``read_weights``.
        columns: (B, Q, S, W) from ``read_weights``.

    Returns:
        (B, Q, D, S, S).
    """
    batch, objects, window = rows.shape[:3]
    channels, width = features.shape[1], features.shape[3]
    flat = features.transpose(1, 2).flatten(2).to(rows.dtype)  # (B, H, D * W)
    seen = torch.bmm(rows.flatten(1, 2), flat)  # (B, Q * S, D * W)
    seen = seen.reshape(batch * objects, window * channels, width)
    seen = torch.bmm(seen, columns.flatten(0, 1).transpose(1, 2))
    return seen.reshape(batch, objects, window, channels, window).transpose(2, 3)


def write_weights(
    boxes: Tensor, size: tuple[int, int], window: int, widen: float
) -> tuple[Tensor, Tensor]:
    """Weights that write windows to a map by linear interpolation, and 0 outside of them.

    Args:
        boxes: (B, Q, 4) cxcywh in [0, 1].
        size: Rows H and columns W of the map.
        window: Cells S a side of a window.
        widen: Sides of a window in sides of the box.

    Returns:
        (B, Q, H, S) of rows and (B, Q, W, S) of columns.
    """
    rows, columns = window_places(boxes, size, window, widen)
    return _write_along(rows, size[0]), _write_along(columns, size[1])


def _write_along(places: Tensor, cells: int) -> Tensor:
    at = torch.arange(cells, device=places.device, dtype=places.dtype) + 0.5
    middle, side = places[..., None, :, 0], places[..., None, :, 1]
    return F.relu(1 - ((at[:, None] - middle) / side).abs())


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens as a map.

    Args:
        tokens: (B, N, C).
        grid: Rows and columns of the N cells.

    Returns:
        (B, C, rows, columns), channels last.
    """
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def upsample(x: Tensor, size: torch.Size) -> Tensor:
    """Enlarge a map to a size by bilinear interpolation.

    Args:
        x: (B, C, h, w).
        size: Rows and columns of the result.

    Returns:
        (B, C, rows, columns).
    """
    return F.interpolate(x, size, mode="bilinear", align_corners=False)

"""Masks of late fusion, corrected in the box of each object.

late_objects.py describes the whole. A mask that is the product of a query and a map decides about
each pixel by itself. Here a small U-Net sees the box of the object as a whole: what the image
shows there, the mask drawn so far, and the query.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .late_windows import read_weights, read_windows, write_weights

CELLS = 28
"""Cells a side of the window of an object."""
WIDEN = 1.3
"""Sides of the window in sides of the object's box."""
SQUASHED = 4.0
"""Logits of the mask are divided by this before the network reads their hyperbolic tangent."""


class MaskRefiner(nn.Module):
    """Adds to the logits of masks within the windows of their objects. Untrained, it adds nothing.

    Args:
        width: Channels C of the queries.
        channels: Channels D of the map it reads, and of its finest level.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        one, two, three = channels, 2 * channels, 3 * channels
        self.channels = channels
        self.shape = nn.Conv2d(5, one, 1)
        self.query = nn.Linear(width, 2 * one + three)
        self.fine = nn.Conv2d(one, one, 3, padding=1)
        self.down = nn.Conv2d(one, two, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(two, two, 3, padding=1)
        self.down2 = nn.Conv2d(two, three, 3, stride=2, padding=1)
        self.coarse = nn.Conv2d(three, three, 3, padding=1)
        self.up = nn.Conv2d(three, two, 1)
        self.middle2 = nn.Conv2d(two, two, 3, padding=1)
        self.up2 = nn.Conv2d(two, one, 1)
        self.fine2 = nn.Conv2d(one, one, 3, padding=1)
        self.last = nn.Conv2d(one, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.zeros_(self.query.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, queries: Tensor, boxes: Tensor, pixels: Tensor, logits: Tensor) -> Tensor:
        """Correct masks.

        Args:
            queries: (B, Q, C).
            boxes: (B, Q, 4) cxcywh in [0, 1].
            pixels: (B, D, H, W) map of the images.
            logits: (B, Q, H, W) masks so far.

        Returns:
            (B, Q, H, W) logits.
        """
        window = boxes, (logits.shape[-2], logits.shape[-1]), CELLS, WIDEN
        rows, columns = read_weights(*window)
        seen = read_windows(pixels, rows, columns).flatten(0, 1)
        drawn = (rows @ logits @ columns.transpose(-1, -2)).flatten(0, 1)[:, None]
        added = self.read(queries.flatten(0, 1), seen, torch.tanh(drawn / SQUASHED))
        rows, columns = write_weights(*window)
        return logits + rows @ added[:, 0].unflatten(0, logits.shape[:2]) @ columns.transpose(
            -1, -2
        )

    def read(self, queries: Tensor, seen: Tensor, drawn: Tensor) -> Tensor:
        """Look at windows.

        Args:
            queries: (N, C).
            seen: (N, D, S, S) what the windows show.
            drawn: (N, 1, S, S) the masks so far, from -1 to 1.

        Returns:
            (N, 1, S, S) logits to add.
        """
        d = self.channels
        scale, shift, whole = self.query(queries)[..., None, None].split([d, d, 3 * d], 1)
        places = places_in_window(drawn.device).to(drawn.dtype)
        shape = torch.cat([drawn, places + torch.zeros_like(drawn)], 1)
        x = F.relu((seen + self.shape(shape)) * (1 + scale) + shift)
        fine = F.relu(self.fine(x))
        middle = F.relu(self.middle(F.relu(self.down(fine))))
        coarse = F.relu(self.down2(middle) + whole)
        coarse = coarse + F.relu(self.coarse(coarse))
        middle = F.relu(self.middle2(middle + enlarge(self.up(coarse))))
        fine = F.relu(self.fine2(fine + enlarge(self.up2(middle))))
        out: Tensor = self.last(fine)
        return out.float()


def places_in_window(device: torch.device) -> Tensor:
    """Where the cells of a window lie: (1, 4, S, S), x and y from -1 to 1, and their squares.

    Args:
        device: Device of the result.
    """
    at = (torch.arange(CELLS, device=device) + 0.5) * (2 / CELLS) - 1
    y, x = at[:, None].expand(-1, CELLS), at.expand(CELLS, -1)
    return torch.stack([x, y, x.square(), y.square()])[None]


def enlarge(x: Tensor) -> Tensor:
    """Double the sides of a map by bilinear interpolation.

    Args:
        x: (N, C, h, w).

    Returns:
        (N, C, 2 * h, 2 * w).
    """
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)

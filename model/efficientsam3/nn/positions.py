"""Sine, rotary and random Fourier encodings of positions, computed in float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TEMPERATURE = 10000.0


def _waves(position: Tensor, width: int) -> Tensor:
    """Encode (...,) positions in radians as (..., width) interleaved sines and cosines."""
    index = torch.arange(width, dtype=torch.float32, device=position.device)
    scale = TEMPERATURE ** (2 * (index // 2) / width)
    angle = position[..., None] / scale
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


def encode_points(xy: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Encode points.

    Args:
        xy: (..., 2) in [0, 1].
        width: Channels of both encodings together.

    Returns:
        Encodings of x and of y, each (..., width / 2).
    """
    x, y = (2 * math.pi * xy).unbind(-1)
    return _waves(x, width // 2), _waves(y, width // 2)


def encode_boxes(boxes: Tensor, width: int) -> Tensor:
    """Encode boxes.

    Args:
        boxes: (..., 4) cxcywh in [0, 1].
        width: Half of the channels of the result.

    Returns:
        (..., 2 * width): encodings of cy, cx, w, h.
    """
    cx, cy, w, h = (2 * math.pi * boxes).unbind(-1)
    return torch.cat([_waves(v, width // 2) for v in (cy, cx, w, h)], -1)


def encode_grid(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Encode the cells of a grid.

    Args:
        height: Rows.
        width: Columns.
        channels: Channels of the result.
        device: Device of the result.

    Returns:
        (height * width, channels): the encoding of y, then of x.
    """

    def axis(n: int) -> Tensor:
        steps = torch.arange(1, n + 1, dtype=torch.float32, device=device)
        return _waves(steps / (n + 1e-6) * 2 * math.pi, channels // 2)

    y = axis(height)[:, None].expand(-1, width, -1)
    x = axis(width)[None].expand(height, -1, -1)
    return torch.cat((y, x), -1).flatten(0, 1)


def encode_ages(ages: Tensor, width: int) -> Tensor:
    """Encode the ages of object pointers.

    Args:
        ages: (...,) ages; the oldest pointer has 1.
        width: Channels of the result.

    Returns:
        (..., width): sines, then cosines.
    """
    index = torch.arange(width // 2, dtype=torch.float32, device=ages.device)
    angle = ages[..., None] / TEMPERATURE ** (2 * (index // 2) / (width // 2))
    return torch.cat((angle.sin(), angle.cos()), -1)


def rotary_grid(
    height: int, width: int, channels: int, scale: float = 1.0, offset: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute the tables of the axial rotary encoding.

    The first half of the channel pairs rotates with x, the second half with y.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        channels: Channels of an attention head.
        scale: Factor of cell indices: trained grid / used grid.
        offset: Added to the scaled indices.

    Returns:
        Cosines and sines, each (height * width, channels / 2).
    """
    frequency = 1.0 / TEMPERATURE ** (torch.arange(0, channels, 4).float() / channels)
    index = torch.arange(height * width, dtype=torch.float32)
    x = (index % width) * scale + offset
    y = torch.div(index, width, rounding_mode="floor") * scale + offset
    angle = torch.cat([torch.outer(x, frequency), torch.outer(y, frequency)], -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate neighboring channel pairs.

    Args:
        x: (..., N, D).
        cos: (N, D / 2) cosines.
        sin: (N, D / 2) sines.

    Returns:
        (..., N, D) in the dtype of ``x``.
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if x.device.type == "cpu" and not tracing and not torch.compiler.is_compiling():
        # One product of complex numbers, which ONNX and OpenVINO do not have. On a CPU the other
        # form takes three to ten times as long.
        wide = x.float()
        pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
        turn = torch.complex(cos.float(), sin.float())
        if wide is x:
            return torch.view_as_real(pairs * turn).flatten(-2)
        pairs.mul_(turn)
        return wide.to(x.dtype)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)


class FourierPositions(nn.Module):
    """Encodes places by random Fourier features.

    Args:
        width: Number of channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, width // 2))
        self.frequencies: Tensor

    def encode(self, xy: Tensor) -> Tensor:
        """Compute random Fourier features.

        Args:
            xy: (..., 2) points in [0, 1].

        Returns:
            (..., C).
        """
        angle = 2 * math.pi * ((2 * xy.float() - 1) @ self.frequencies.float())
        return torch.cat([angle.sin(), angle.cos()], -1)

    def encode_grid(self, height: int, width: int) -> Tensor:
        """Compute the features of each cell's center.

        Args:
            height: Rows.
            width: Columns.

        Returns:
            (height * width, C).
        """
        device = self.frequencies.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width)], -1)
        return self.encode(grid).flatten(0, 1)

"""Preparing an image for the image encoder with numpy, to the same pixels as torchvision."""

from __future__ import annotations

import numpy as np

from ..types import Array

ROWS = 1 << 24
"""Values of an image that are resized at a time, to bound the memory of large photographs."""


def normalize(rgb: Array, resolution: int, mean: float, std: float) -> Array:
    """Prepare an image for the encoder, as ``io.images.normalize`` does.

    Args:
        rgb: (H, W, 3) uint8.
        resolution: Rows and columns of the result.
        mean: Subtracted from values in [0, 1].
        std: Divides what is left.

    Returns:
        (1, 3, resolution, resolution) float32.
    """
    small = resize(rgb, resolution).transpose(2, 0, 1)[None].astype(np.float32)
    return (small / np.float32(255) - np.float32(mean)) / np.float32(std)


def resize(rgb: Array, side: int) -> Array:
    """Resize an image bilinearly with antialiasing, by the fixed-point arithmetic of torch.

    Args:
        rgb: (H, W, C) uint8.
        side: Rows and columns of the result.

    Returns:
        (side, side, C) uint8.
    """
    turned = _resize_rows(rgb.transpose(1, 0, 2), side)  # columns first, as torch does
    return _resize_rows(turned.transpose(1, 0, 2), side)


def _resize_rows(image: Array, rows: int) -> Array:
    """Resize the first axis of (N, M, C) uint8 to ``rows``."""
    if image.shape[0] == rows:
        return image
    from scipy import sparse

    weights, bits = _fixed_point(*_weights(image.shape[0], rows))
    weights = sparse.csr_array(weights)
    out = np.empty((rows, *image.shape[1:]), np.uint8)
    step = max(1, ROWS // max(1, image.shape[0] * image.shape[2]))
    for first in range(0, image.shape[1], step):
        part = image[:, first : first + step]
        sums = weights @ part.reshape(len(part), -1).astype(np.int32)
        sums = (sums + (1 << (bits - 1))) >> bits
        out[:, first : first + step] = np.clip(sums, 0, 255).reshape(rows, *part.shape[1:])
    return out


def _weights(size: int, rows: int) -> tuple[Array, Array, Array]:
    """Weights of the triangle filter: values (rows, K) float64, their columns, and which exist."""
    scale = size / rows
    support = max(scale, 1.0)
    center = scale * (np.arange(rows) + 0.5)
    first = np.maximum((center - support + 0.5).astype(np.int64), 0)
    last = np.minimum((center + support + 0.5).astype(np.int64), size)
    at = first[:, None] + np.arange(int((last - first).max()))
    there = at < last[:, None]
    values = np.maximum(1 - np.abs((at - center[:, None] + 0.5) / support), 0) * there
    return values / values.sum(1, keepdims=True), at, there


def _fixed_point(values: Array, at: Array, there: Array) -> tuple[tuple[Array, ...], int]:
    """Round weights to 16 bits, as torch does, and pack them as CSR; and the bits of the point."""
    bits = 0
    while bits < 22 and int(0.5 + values.max() * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    whole = (0.5 + values * (1 << bits)).astype(np.int32)
    starts = np.concatenate([[0], there.sum(1).cumsum()])
    return (whole[there], at[there], starts), bits

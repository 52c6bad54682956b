"""Weights as files of Hugging Face transformers have them, without the released ones.

Names and shapes (``transformers_keys.json.gz``) are those of transformers 5.23.0, of its own
modules on the meta device. Values come from a generator seeded by each name.
"""

from __future__ import annotations

import functools
import gzip
import json
import zlib

import torch
from torch import Tensor

from .upstream import HERE, Keys


@functools.cache
def groups() -> dict[str, Keys]:
    """Keys by group.

    ``video``: the whole ``Sam3VideoModel``. ``text/<text encoder>``: what ``Sam3LiteTextModel``
    has instead of SAM3's text encoder. ``tiny`` and ``tiny/text``: the same of ``tiny()``.
    """
    packed = json.loads(gzip.decompress((HERE / "transformers_keys.json.gz").read_bytes()))
    return {
        name: {k: (tuple(shape), getattr(torch, dtype)) for k, (shape, dtype) in keys.items()}
        for name, keys in packed.items()
    }


def detector_keys(text: str | None = None, *, tiny: bool = False) -> Keys:
    """Keys of ``Sam3Model``, or of ``Sam3LiteTextModel`` with that text encoder."""
    prefix = "detector_model."
    whole = groups()["tiny" if tiny else "video"]
    keys = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    if text is None:
        return keys
    own = groups()["tiny/text" if tiny else f"text/{text}"]
    return {k: v for k, v in keys.items() if not k.startswith("text_")} | own


def values(keys: Keys) -> dict[str, Tensor]:
    """A state dict with seeded values at scales that keep activations sane."""
    return {key: _value(key, shape, dtype) for key, (shape, dtype) in keys.items()}


_TABLES = tuple(
    f"{end}.weight" for end in ("_embed", "_embedding", "_token", "_tokens", "reference_points")
)
"""Ends of the names of rows that are looked up; other weights are matrices and kernels."""


def _value(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    name = key.removeprefix("detector_model.")
    # A copy, as in released files: see the converter of transformers.
    name = name.replace("shared_image_embedding", "prompt_encoder.shared_embedding")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    if name.endswith("running_var"):
        return 1 + 0.5 * noise.tanh()
    if len(shape) < 2 or "layer_scale" in name:
        return 0.1 * noise + (not name.endswith(("bias", "running_mean")))
    if name.endswith(_TABLES) or not name.endswith("weight"):
        return noise
    return noise / (noise.numel() / shape[0]) ** 0.5

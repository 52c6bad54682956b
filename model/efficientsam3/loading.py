"""`load`: a name of the table, a saved folder or a checkpoint becomes a model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import weights
from .build import ModelConfig
from .errors import CheckpointError
from .image import ImageModel
from .nn.detector import Detector
from .variants import CONFIG_FILE, WEIGHTS_FILE, Packaged, find_variant


def load(
    name: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    text: str | None = None,
    context: int | None = None,
    base: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    speed: str = "exact",
) -> ImageModel:
    """Load a model: from the package, from the hub, or from files.

    Args:
        name: of ``list_models()``; or a folder that ``save`` wrote. "efficientsam3-stickers" is
            part of the package: it needs no network.
        checkpoint: a local file instead of the hub's: upstream's .pt / .pth, or a .safetensors
            of the same keys.
        text: another text encoder than the name's: "mobileclip-s0", "mobileclip-s1",
            "mobileclip2-l", "sam3"; it must be in ``checkpoint`` or ``base``.
        context: tokens of a phrase (16, 32, 77), at most what the weights have.
        base: a second file, for groups of weights that the first lacks.
        device: "cpu", "cuda", "mps"; None: the best here.
        dtype: float32, bfloat16, float16; None: bfloat16 where the hardware has it. Float32
            gives upstream's numbers to rounding.
        speed: "exact", or "fast": pooled keys and values in the fusion encoder.

    Raises:
        WeightsNotFoundError, CheckpointError, ValueError: the message says the way out.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "speed": speed}
    given = {"checkpoint": checkpoint, "text": text, "context": context, "base": base}
    if Path(name).is_dir():
        return _load_folder(Path(name), str(name), given, options)
    variant = find_variant(str(name))
    if isinstance(variant.weights, Packaged):
        return _load_folder(variant.weights.find(), variant.name, given, options)
    path = Path(checkpoint) if checkpoint is not None else weights.download(variant.name)

    def read() -> tuple[ModelConfig, Detector]:
        return weights.load_upstream(
            path,
            variant,
            base=None if base is None else Path(base),
            text=text,
            context=context,
        )

    files = [path, *([Path(base)] if base is not None else [])]
    config, first = read()
    return ImageModel(variant.name, config, _first_then(first, lambda: read()[1], files), **options)


def _load_folder(
    folder: Path, name: str, given: dict[str, Any], options: dict[str, Any]
) -> ImageModel:
    """A saved model. name: as it was asked for. given: arguments that only a hub's model takes."""
    for argument, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} is a saved model, whole as it is; {argument}= goes with a name of "
                "list_models() that comes from the hub"
            )
    saved_name, config, first = weights.load_folder(folder)
    source = _first_then(
        first,
        lambda: weights.load_folder(folder)[2],
        [folder / CONFIG_FILE, folder / WEIGHTS_FILE],
    )
    return ImageModel(saved_name, config, source, **options)


def _first_then(
    first: Detector, read: Callable[[], Detector], files: list[Path]
) -> Callable[[], Detector]:
    """A source that gives ``first`` once, without keeping it, and reads ``files`` after that."""

    def stamp() -> list[tuple[int, int]]:
        return [(f.stat().st_size, f.stat().st_mtime_ns) for f in files]

    waiting, written = [first], stamp()

    def source() -> Detector:
        if waiting:
            return waiting.pop()
        if not all(f.is_file() for f in files) or stamp() != written:
            raise CheckpointError(
                f"{' or '.join(map(str, files))} has changed since the model was loaded, and its "
                "learned weights are read from there; load the model again"
            )
        return read()

    return source

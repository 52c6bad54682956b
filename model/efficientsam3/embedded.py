"""Put a trained model into the package: in half precision, compared, small enough."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import weights
from .build import ModelConfig, StudentConfig
from .errors import CheckpointError, EfficientSam3Error
from .image import ImageModel
from .variants import Packaged, Variant, find_variant

if TYPE_CHECKING:
    from .image import Grounding

LARGEST = 25_000_000
"""Bytes of an embedded model: everyone who installs the package downloads it."""

CONCEPTS = ("dog", "red apple", "vehicle", "food")
"""What is asked where nothing else is said."""


class EmbeddingError(EfficientSam3Error, ValueError):
    """A model that cannot be part of the package."""


@dataclass(frozen=True)
class Embedded:
    """What was put in.

    folder: where it is. parameters: of the model. size, most: bytes on disk, and allowed.
    differences: by name, the largest that rounding made: of probabilities, of boxes in shares of
    the image's side, and the share of mask cells that changed sides. remarks: what else to know.
    """

    folder: Path
    parameters: int
    size: int
    most: int
    differences: dict[str, float]
    remarks: tuple[str, ...] = ()


def embed(
    folder: str | Path,
    name: str,
    *,
    image: Any = None,
    concepts: Sequence[str] = (),
    most: int = LARGEST,
) -> Embedded:
    """Make a saved model the one that the package ships as ``name``.

    Args:
        folder: as ``ImageModel.save`` writes it. name: of a packaged row of the table.
        image: to compare the answers on, as ``ImageModel.preprocess`` takes it; a scene where the
            art is there, else noise. concepts: to ask of it. most: bytes allowed.

    Raises:
        WeightsNotFoundError, CheckpointError: no saved model, or a damaged one.
        EmbeddingError: too large, answers that are not numbers, a row without a folder. What was
            embedded before is still there.
    """
    variant = find_variant(name)
    if not isinstance(variant.weights, Packaged):
        raise EmbeddingError(f"{variant.name} comes from the hub; it has no folder in the package")
    target = variant.weights.location
    if target.exists() and Path(folder).resolve() == target.resolve():
        raise EmbeddingError(f"{folder} is the embedded model itself: name another folder")
    _, config, net = weights.load_folder(folder)
    picture, asked = (image, CONCEPTS) if image is not None else example(config.resolution)
    asked = tuple(concepts) or asked
    before = ask(ImageModel(name, config, lambda: net, **EXACTLY), picture, asked)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that putting it there is a renaming.
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{variant.weights.folder}."))
    try:
        new = work / "new"
        weights.save_folder(new, variant.name, config, net, torch.float16)
        size = sum(file.stat().st_size for file in new.iterdir())
        if size > most:
            raise EmbeddingError(
                f"{folder} has {size / 1e6:.1f} MB in half precision, and the package may grow by "
                f"{most / 1e6:.0f} MB: embed a smaller model ({weights.count_parameters(net):,} "
                "parameters)"
            )
        _, _, small = weights.load_folder(new)
        after = ask(ImageModel(name, config, lambda: small, **EXACTLY), picture, asked)
        differences = compare(before, after)
        _put(new, target, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    parameters = weights.count_parameters(net)
    return Embedded(target, parameters, size, most, differences, remarks(variant, config))


EXACTLY: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}


def _put(new: Path, target: Path, old: Path) -> None:
    """Rename ``new`` to ``target``; what was there comes back if that fails."""
    had = target.exists()
    if had:
        os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        if had:
            os.replace(old, target)
        raise


def ask(model: ImageModel, image: Any, concepts: Sequence[str]) -> Grounding:
    """A model's raw answers to some concepts of one image.

    Raises:
        EmbeddingError: it lacks an ability that the package's model must have, or its answers are
            not finite.
    """
    lost = find_variant(model.name).abilities - model.abilities
    if lost:
        raise EmbeddingError(
            f"the model cannot do what the table says of {model.name}: {', '.join(sorted(lost))}. "
            "What follows objects comes of the recipe stickers-video (its RUN/memory/model)"
        )
    pixels = model.preprocess(image).expand(len(concepts), -1, -1, -1)
    said = model.ground(pixels, list(concepts))
    odd = [
        field
        for field, value in said._asdict().items()
        if value is None or not bool(torch.isfinite(value).all())
    ]
    if odd:
        raise EmbeddingError(
            f"the model's answers are not numbers ({', '.join(odd)}): its training failed"
        )
    return said


def compare(exact: Grounding, other: Grounding) -> dict[str, float]:
    """The largest differences of two answers to the same question; of masks the mean."""
    if exact.masks is None or other.masks is None:
        raise CheckpointError("models without masks have none to compare")

    def largest(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    return {
        "score": largest(exact.logits.sigmoid(), other.logits.sigmoid()),
        "presence": largest(exact.presence.sigmoid(), other.presence.sigmoid()),
        "box, of the side": largest(exact.boxes, other.boxes),
        "mask cells changed": float(((exact.masks > 0) != (other.masks > 0)).float().mean()),
    }


def example(resolution: int) -> tuple[Any, tuple[str, ...]]:
    """A scene where the art is there, else noise: (R, R, 3) uint8, and what to ask of it."""
    from .scenes.art import Art, ArtNotFoundError
    from .scenes.compose import make_scene
    from .scenes.concepts import SPLITS
    from .scenes.sources import ArtError

    try:
        scene = make_scene(Art.open(), 0, SPLITS["seen"], resolution)
    except (ArtNotFoundError, ArtError):
        noise = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 3), np.uint8)
        return noise, CONCEPTS
    return scene.image, tuple(query.phrase for query in scene.queries)


def remarks(variant: Variant, config: ModelConfig) -> tuple[str, ...]:
    """Where the model is not what its row of the table says."""
    vision = config.vision
    if isinstance(vision, StudentConfig):
        family = vision.encoder.split("-")[0]
    else:
        family = vision if isinstance(vision, str) else "vit"
    text = config.text if isinstance(config.text, str) else config.text.kind
    found = {"vision": family, "text": text, "context": config.context}
    return tuple(
        f"variants.py says {field}={getattr(variant, field)!r} of {variant.name}, and this model "
        f"has {value!r}: change the row, then run `python -m fiftyone_esam3.manifests`"
        for field, value in found.items()
        if getattr(variant, field) != value
    )

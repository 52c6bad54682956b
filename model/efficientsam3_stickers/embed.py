"""Puts a trained model into the package: in half precision, compared, and of limited size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.checkpoints.save import count_parameters, save_folder
from efficientsam3.config import ModelConfig, StudentConfig
from efficientsam3.errors import CheckpointError, EfficientSam3Error
from efficientsam3.io.atomic import replacing_folder
from efficientsam3.nn.detector import Detector
from efficientsam3.predictor import ImageModel
from efficientsam3.variants import WEIGHTS_FILE, Packaged, Variant, find_variant

from .art import ArtError, ArtNotFoundError, StickerArt
from .concepts import SPLITS
from .embed_check import mean_score, validation_scores
from .scenes import SceneGenerator

if TYPE_CHECKING:
    from efficientsam3.outputs import Grounding

MAX_BYTES = 30_000_000
"""Largest size of a packaged model, which everyone who installs the package downloads."""

DEFAULT_CONCEPTS = ("dog", "red apple", "vehicle", "food")
"""Concepts for the comparison where neither concepts nor stickers are available."""


class EmbeddingError(EfficientSam3Error, ValueError):
    """A model cannot become part of the package."""


@dataclass(frozen=True)
class EmbeddingReport:
    """What was put into the package.

    Attributes:
        folder: Folder of the model in the package.
        parameters: Number of parameters.
        size: Bytes on disk.
        max_bytes: Bytes that are allowed.
        differences: Largest differences that rounding made, by name: of probabilities, of boxes as
            shares of the image's side, and the share of mask pixels that changed sides.
        remarks: Where the model differs from its row of the table of models.
        scores: cgF1 in percent of the new and of the earlier model by split, where they were
            compared.
    """

    folder: Path
    parameters: int
    size: int
    max_bytes: int
    differences: dict[str, float]
    remarks: tuple[str, ...] = ()
    scores: tuple[dict[str, float], ...] = ()


def embed(
    folder: str | Path,
    name: str,
    *,
    image: Any = None,
    concepts: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    scenes: int = 64,
    accept_worse: bool = False,
) -> EmbeddingReport:
    """Make a saved model the one that the package contains under a name.

    It replaces an earlier one if it is at least as good on scenes of stickers that nothing was
    trained on.

    Args:
        folder: Folder that ``ImageModel.save`` wrote.
        name: Name of a packaged model in the table of models.
        image: Image for the comparison, as ``ImageModel.preprocess`` takes it; None: a scene where
            there are stickers, else noise.
        concepts: Concepts for the comparison; empty: those of the scene, or a few common ones.
        max_bytes: Largest size.
        scenes: Scenes of each split for the comparison with the earlier model.
        accept_worse: Do not compare with the earlier model.

    Returns:
        What was put into the package.

    Raises:
        WeightsNotFoundError: the folder has no saved model.
        CheckpointError: the saved model is damaged.
        EmbeddingError: the model is too large or lacks an ability, its outputs are not finite, or
            the table has no folder for the name; or it is worse than the earlier model, or there
            are no stickers to compare them. The model that the package had stays.
    """
    variant = find_variant(name)
    if not isinstance(variant.weights, Packaged):
        raise EmbeddingError(
            f"{variant.name} is downloaded from the hub and has no folder in the package: name a "
            "packaged model"
        )
    target = variant.weights.location
    if target.exists() and Path(folder).resolve() == target.resolve():
        raise EmbeddingError(f"{folder} is the packaged model itself: name another folder")
    _, config, net = load_folder(folder)
    parameters = count_parameters(net)
    if image is None:
        image, example_concepts = example_image(config.resolution)
    else:
        example_concepts = DEFAULT_CONCEPTS
    concepts = tuple(concepts) or example_concepts
    before = _ground(name, config, net, image, concepts)
    scores = () if accept_worse else _compare(Path(folder), target, scenes)
    with replacing_folder(target) as temporary:
        save_folder(temporary, variant.name, config, net, torch.float16)
        size = sum(file.stat().st_size for file in temporary.iterdir())
        if size > max_bytes:
            raise EmbeddingError(
                f"{folder} has {size / 1e6:.1f} MB in half precision and {parameters:,} "
                f"parameters, and at most {max_bytes / 1e6:.0f} MB are allowed: embed a smaller "
                "model"
            )
        _, _, rounded = load_folder(temporary)
        after = _ground(name, config, rounded, image, concepts)
        differences = compare_outputs(before, after)
    remarks = table_mismatches(variant, config)
    return EmbeddingReport(target, parameters, size, max_bytes, differences, remarks, scores)


def _compare(new: Path, earlier: Path, scenes: int) -> tuple[dict[str, float], ...]:
    """Figures of both models; none where there is no earlier one."""
    if not (earlier / WEIGHTS_FILE).is_file():
        return ()
    try:
        ours, theirs = (validation_scores(place, scenes) for place in (new, earlier))
    except ArtNotFoundError as error:
        raise EmbeddingError(
            "there are no stickers to compare the model with the packaged one: run "
            "`efficientsam3 scenes fetch`, or pass accept_worse (--accept-worse)"
        ) from error
    if mean_score(ours) < mean_score(theirs):
        figures = ", ".join(f"{ours[k]:.1f} {k} (now {theirs[k]:.1f})" for k in ours)
        raise EmbeddingError(
            f"{new} is worse than the packaged model, with cgF1 {figures} on {scenes} scenes each: "
            "train it longer, or pass accept_worse (--accept-worse)"
        )
    return ours, theirs


def _ground(
    name: str, config: ModelConfig, net: Detector, image: Any, concepts: Sequence[str]
) -> Grounding:
    """A model's raw outputs for concepts of one image, which must be finite."""
    model = ImageModel(name, config, lambda: net, device="cpu", dtype=torch.float32)
    missing = find_variant(name).abilities - model.abilities
    if missing:
        raise EmbeddingError(
            f"the model lacks abilities that the table lists for {name}: "
            f"{', '.join(sorted(missing))}. The recipe stickers-video adds tracking "
            "(RUN/memory/model)"
        )
    pixels = model.preprocess(image).expand(len(concepts), -1, -1, -1)
    outputs = model.ground(pixels, list(concepts))
    not_finite = [
        field
        for field, value in outputs._asdict().items()
        if value is None or not bool(torch.isfinite(value).all())
    ]
    if not_finite:
        raise EmbeddingError(
            f"outputs of the model are not finite ({', '.join(not_finite)}): its training failed, "
            "so embed another model"
        )
    return outputs


def compare_outputs(exact: Grounding, rounded: Grounding) -> dict[str, float]:
    """Differences between two outputs for the same input: the largest, and of masks the mean.

    Args:
        exact: Outputs in full precision.
        rounded: Outputs of the rounded weights.

    Raises:
        CheckpointError: the outputs have no masks.
    """
    if exact.masks is None or rounded.masks is None:
        raise CheckpointError("the model has no mask head: embed a model with masks")

    def largest(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    return {
        "score": largest(exact.logits.sigmoid(), rounded.logits.sigmoid()),
        "presence": largest(exact.presence.sigmoid(), rounded.presence.sigmoid()),
        "box, of the side": largest(exact.boxes, rounded.boxes),
        "mask pixels changed": float(((exact.masks > 0) != (rounded.masks > 0)).float().mean()),
    }


def example_image(resolution: int) -> tuple[Any, tuple[str, ...]]:
    """An image for the comparison and concepts to ask of it: a scene, or noise without stickers.

    Args:
        resolution: Side of the image in pixels.

    Returns:
        (R, R, 3) uint8, and the concepts.
    """
    try:
        generator = SceneGenerator(StickerArt.open(), SPLITS["seen"], resolution)
        scene = generator.scene(0)
    except (ArtNotFoundError, ArtError):
        noise = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 3), np.uint8)
        return noise, DEFAULT_CONCEPTS
    return scene.image, tuple(query.phrase for query in scene.queries)


def table_mismatches(variant: Variant, config: ModelConfig) -> tuple[str, ...]:
    """Where a model differs from its row of the table of models, as sentences.

    Args:
        variant: The row.
        config: The model's configuration.
    """
    vision = config.vision
    if isinstance(vision, StudentConfig):
        family = vision.encoder.split("-")[0]
    else:
        family = vision if isinstance(vision, str) else "vit"
    text = config.text if isinstance(config.text, str) else config.text.kind
    found = {"vision": family, "text": text, "context": config.context}
    return tuple(
        f"variants.py says {field}={getattr(variant, field)!r} of {variant.name}, and this model "
        f"has {value!r}: change the row, then run `python -m fiftyone_esam3.zoo.manifests`"
        for field, value in found.items()
        if getattr(variant, field) != value
    )

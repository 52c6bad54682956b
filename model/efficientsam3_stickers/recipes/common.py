"""What the recipes of the stickers share: concepts, models, data and settings of the loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from efficientsam3.build import build
from efficientsam3.checkpoints.read import read_state
from efficientsam3.config import ModelConfig, StudentConfig, TextConfig, VitConfig
from efficientsam3.errors import CheckpointError
from efficientsam3.nn.detector import Detector
from efficientsam3.train.batches import Generated
from efficientsam3.train.settings import LoopSettings

from ..art import StickerArt
from ..concepts import SPLITS
from ..samples import Interleaved, SceneSource
from ..scenes import SceneGenerator
from ..training.init import init_from_scratch

MODEL_NAME = "efficientsam3-stickers"
"""Name of the packaged model."""

SUBGROUPS = ("animal-", "plant-", "food-", "drink", "dishware", "transport-")
"""Beginnings of the subgroups of concepts that the recipes teach: animals and plants, food and
drink, vehicles. Two CPU cores learn about three hundred concepts in hours, but not all 1,300."""

RESOLUTION = 252
"""Side of the images in most stages, in pixels."""

MOSTLY_SCENES = (0, 2, 0, 3)
"""Objects on a side of tiled images, by turns; 0: free scenes. Half of the images are scenes, and
half have a few large objects."""


def recipe_concepts(stickers: StickerArt, split: str, every: bool = False) -> list[str]:
    """Names of the concepts that the recipes teach.

    Args:
        stickers: The stickers.
        split: Name of the split.
        every: Whether to take all concepts of the split, and not those of ``SUBGROUPS`` alone.
    """
    names = stickers.concept_names(SPLITS[split].concepts, SPLITS[split].styles)
    if every:
        return names
    return [name for name in names if stickers.concepts[name].subgroup.startswith(SUBGROUPS)]


def recipe_generator(
    resolution: int,
    split: str = "train",
    tiles: int = 0,
    backgrounds: int | None = None,
    every: bool = False,
) -> SceneGenerator:
    """A generator of scenes of these concepts.

    Args:
        resolution: Side of the images in pixels.
        split: Name of the split.
        tiles: Objects on a side of tiled images; 0: free scenes.
        backgrounds: Number of different backgrounds; None: one for each scene.
        every: As ``recipe_concepts`` takes it.
    """
    stickers = StickerArt.open()
    names = recipe_concepts(stickers, split, every)
    return SceneGenerator(
        stickers, SPLITS[split], resolution, names, tiles=tiles, backgrounds=backgrounds
    )


def scene_samples(
    resolution: int,
    split: str = "train",
    tiles: Sequence[int] = (0,),
    backgrounds: int | None = None,
    every: bool = False,
) -> Generated:
    """Scenes as a data set.

    Args:
        resolution: Side of the images in pixels.
        split: Name of the split.
        tiles: Objects on a side of tiled images, by turns; 0: free scenes.
        backgrounds: Number of different backgrounds of all generators together; None: one for each
            scene.
        every: As ``recipe_concepts`` takes it.
    """
    each = None if backgrounds is None else backgrounds // len(tiles)
    generators = [recipe_generator(resolution, split, n, each, every) for n in tiles]
    return Generated(Interleaved([SceneSource(generator) for generator in generators]))


def teacher_config(resolution: int = RESOLUTION) -> ModelConfig:
    """A small ViT with SAM3's heads.

    Args:
        resolution: Side of the images in pixels, a multiple of 84.
    """
    return ModelConfig(
        vision=VitConfig(192, 6, 3, 576, 14, window=6, everywhere=(2, 5), stem=64),
        text=TextConfig("clip", 128, 2, 2),
        context=16,
        parts=("geometry", "masks"),
        scales=(4, 2, 1),
        resolution=resolution,
        grid=resolution // 14,
        trunk_width=192,
        width=128,
        heads=4,
        hidden=512,
        geometry_layers=1,
        fusion_layers=3,
        decoder_layers=3,
        queries=32,
        boxed_masks=True,
        nms=0.5,
    )


def student_config(resolution: int = RESOLUTION) -> ModelConfig:
    """The same heads on a RepViT of three stages (stride 16), with a small text encoder.

    Args:
        resolution: Side of the images in pixels, a multiple of 84.
    """
    return dataclasses.replace(
        teacher_config(resolution),
        vision=StudentConfig("repvit-m0.9", {"embed_dim": [32, 64, 160], "depth": [1, 2, 6]}),
        text=TextConfig("mobileclip", 64, 2, 2),
    )


def new_model(config: ModelConfig, seed: int) -> Detector:
    """An untrained model, whose weights depend on the seed alone.

    Args:
        config: Its configuration.
        seed: The seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return init_from_scratch(build(config), seed)


def load_weights(net: Detector, path: Path, parts: tuple[str, ...] = ("",)) -> Detector:
    """Load trained weights into a model, in place.

    Args:
        net: The model.
        path: File of weights.
        parts: Beginnings of the names of the weights to load, all of which have to be in the file.

    Raises:
        CheckpointError: names of the file and of the model differ.
    """
    state = {k: v for k, v in read_state(path).items() if k.startswith(parts)}
    different = {k for k in net.state_dict() if k.startswith(parts)} ^ state.keys()
    if different:
        raise CheckpointError(
            f"{path} belongs to another model: {sorted(different)[:5]} are missing from it or "
            "unknown. Run the earlier stages again"
        )
    net.load_state_dict(state, strict=False)
    return net


def loop_settings(seed: int, **changes: Any) -> LoopSettings:
    """The settings of the training loop that all stages share, with changes.

    Args:
        seed: Seed of the loop.
        changes: Other values of ``LoopSettings``, by name.
    """
    shared: dict[str, Any] = {
        "weight_decay": 0.05,
        "betas": (0.9, 0.98),
        "no_decay": ("text.embedding",),
        "precision": "bf16-mixed",
        "accelerator": "cpu",
        "save_minutes": 5,
        "seed": seed,
    }
    return LoopSettings(**{**shared, **changes})

"""The embedded model, from scenes of stickers: teacher, student, and the whole fine-tuned.

Sizes are chosen so that all of it runs on two CPU cores in hours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from ...build import ModelConfig, StudentConfig, TextConfig, VitConfig, build
from ...nn.detector import Detector
from ...scenes.art import Art
from ...scenes.compose import World
from ...scenes.concepts import SPLITS
from ..align import AlignBatches, AlignTask
from ..data.scenes import SceneSource
from ..recipe import Recipe, Run, Stage
from ..scratch import prepare
from ..settings import LoopSettings
from ..task import Task

SUBGROUPS = ("animal-", "plant-", "food-", "drink", "dishware", "transport-")
"""Beginnings of the subgroups of concepts that the recipe is about: animals and plants, food and
drink, vehicles. Two cores learn some three hundred things in hours, not thirteen hundred."""


@dataclass(frozen=True)
class Options:
    """Args:
    seed: of everything. resolution: pixels a side, a multiple of 84.
    grounds: backgrounds of a training world.
    """

    seed: int = 0
    resolution: int = 252
    grounds: int = 512


def teacher_config(options: Options) -> ModelConfig:
    """A small ViT with SAM3's heads."""
    return ModelConfig(
        vision=VitConfig(192, 6, 3, 576, 14, window=6, everywhere=(2, 5)),
        text=TextConfig("clip", 128, 2, 2),
        context=16,
        parts=("geometry", "masks"),
        scales=(4, 2, 1),
        resolution=options.resolution,
        grid=options.resolution // 14,
        trunk_width=192,
        width=128,
        heads=4,
        hidden=512,
        geometry_layers=1,
        fusion_layers=3,
        decoder_layers=3,
        queries=32,
    )


def student_config(options: Options) -> ModelConfig:
    """The same heads on a small RepViT of three stages (stride 16), and a small text encoder."""
    return dataclasses.replace(
        teacher_config(options),
        vision=StudentConfig("repvit-m0.9", {"embed_dim": [32, 64, 160], "depth": [1, 2, 6]}),
        text=TextConfig("mobileclip", 64, 2, 2),
    )


def things(art: Art, split: str) -> list[str]:
    """Concepts of a split that the recipe is about."""
    part = SPLITS[split]
    names = art.names(part.concepts, part.styles)
    return [name for name in names if art.concepts[name].subgroup.startswith(SUBGROUPS)]


def world(options: Options, split: str = "train", tiles: int = 0) -> World:
    art = Art.open()
    training = split == "train"
    return World(
        art,
        SPLITS[split],
        options.resolution,
        things(art, split),
        tiles=tiles,
        grounds=options.grounds if training else None,
    )


def fresh(config: ModelConfig, seed: int) -> Detector:
    """An untrained model whose numbers depend on nothing but the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return prepare(build(config), seed)


def names(run: Run) -> tuple[Task, LoopSettings]:
    return _names(run.options, teacher_config(run.options))


def alone_names(run: Run) -> tuple[Task, LoopSettings]:
    return _names(run.options, student_config(run.options))


def _names(o: Options, config: ModelConfig) -> tuple[Task, LoopSettings]:
    training = world(o, tiles=3)
    make = AlignBatches(config, SceneSource(training), 8, training.pool, 160)
    held_out = AlignBatches(config, SceneSource(world(o, "seen", tiles=3)), 32, training.pool, 160)
    checked = [held_out(0, np.random.default_rng(o.seed))]
    task = AlignTask(fresh(config, o.seed), make, held_out=checked, seed=o.seed)
    settings = LoopSettings(
        steps=4000,
        lr=1e-3,
        min_lr=1e-4,
        warmup=100,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        no_decay=("text.embedding",),
        precision="bf16-mixed",
        accelerator="cpu",
        validate_every=250,
        save_minutes=5,
        seed=o.seed,
    )
    return task, settings


RECIPE = Recipe(
    "stickers",
    "a model for scenes of stickers: teacher, student, fine-tuned",
    (
        Stage("names", names, "the teacher's encoders learn the names of things"),
        Stage("alone-names", alone_names, "a student's learn them without a teacher"),
    ),
    Options(),
)

"""The packaged model, from scenes of stickers: the paper's stages, on two CPU cores in hours.

A teacher with a small ViT learns from scratch: first the names of concepts ("names", "scales"),
then to ground them ("boxes", "heads", "teacher"). The encoders of a student are distilled from it
("image", "text", and "prompts" with prompts in the loop). All of the student is fine-tuned
("student"), then all but its image encoder ("longer"), then all of it in larger images ("finer"),
and its presence is calibrated ("calibrate"). For comparison the same student learns without a
teacher ("alone-names", "alone-boxes", "alone"), for as long as the student's stages up to "student"
take.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from efficientsam3.config import ModelConfig
from efficientsam3.io.atomic import replacing
from efficientsam3.nn.detector import Detector
from efficientsam3.segmenter import VISUAL
from efficientsam3.train.losses.detection import LossWeights
from efficientsam3.train.losses.grounding import GroundingLoss
from efficientsam3.train.merge import save_model
from efficientsam3.train.recipe import Recipe, Run, Stage
from efficientsam3.train.settings import LoopSettings
from efficientsam3.train.task import Task
from efficientsam3.train.tasks.grounding import GroundingTask
from efficientsam3.train.tasks.grounding_batches import GroundingCollator, PromptSettings
from efficientsam3.train.tasks.image_distillation import ImageDistillation, ImageSettings
from efficientsam3.train.tasks.prompt_in_the_loop import PromptInTheLoop
from efficientsam3.train.tasks.prompted_batches import PromptedSettings
from efficientsam3.train.tasks.text_distillation import TextDistillation, TextSettings
from efficientsam3.train.teachers import ImageTeacher, TextTeacher

from ..art import StickerArt
from ..queries import ATTRIBUTES
from ..training.calibrate import calibrate
from ..training.dense_loss import DenseLoss
from ..training.init import normalize_tokens
from ..training.naming import NamingBatches, NamingTask
from ..training.token_classification import TokenClassification, TokenLabeler
from . import common
from .common import MODEL_NAME, MOSTLY_SCENES, student_config, teacher_config


@dataclass(frozen=True)
class Options:
    """Options of the recipe."""

    seed: int = 0
    """Seed of everything."""
    resolution: int = common.RESOLUTION
    """Side of the images in pixels, a multiple of 84."""
    final_resolution: int = 336
    """Side of the images of the stages "finer" and "calibrate", a multiple of 84."""
    backgrounds: int = 512
    """Number of different backgrounds in training."""
    batch: int = 8
    """Scenes of a step in the stages that learn masks."""
    workers: int = 1
    """Processes that make batches; 0: the training process makes them."""
    held_out: int = 32
    """Scenes for validation; 0: none."""
    calibration: int = 200
    """Scenes by which the presence of the student is calibrated."""


# Settings -------------------------------------------------------------------------------------

ALL_TILES = (0, 1, 2, 3, 4, 5)
LARGE_FIRST = (1, 2, 3, 0)
"""Objects on a side of tiled images, by turns; 0: free scenes. Heads find large objects first."""

NAMING_PARTS = ("trunk.", "neck.", "text.", "scoring.")
"""Parts that learn names, as beginnings of weights."""

HEAD_PARTS = ("geometry", "fusion", "decoder", "masks", "neck.levels.0", "neck.levels.1")
"""Parts that are untrained after they have learned names."""

NAMES_PER_BATCH = 160
"""Names that the image tokens of a batch are compared with."""

CALIBRATION_SEED = 1_000_000
"""First seed of the calibration, which no training and no benchmark uses."""

PROMPTS = PromptSettings(prompts=4, kind_weights={"name": 2.0, "synonym": 0.5, "near": 2.0})

BOX_LOSS = GroundingLoss(
    LossWeights(label=0, presence=0, mask=0, dice=0, one_to_many=0, denoising=1.0)
)
"""Boxes of matched and of noised queries alone: beside other terms they hardly learn at first."""

GROUNDING_LOSS = GroundingLoss(
    LossWeights(dice=20.0, one_to_many=1.0, denoising=0.5, quality=0.5),
    one_to_many_on_aux=True,
    extra=(DenseLoss(), TokenClassification(10.0)),
)
"""A decoder without pretraining needs denoising, dense terms and names. The quality term lets small
objects score above 0.5, although cells of 14 pixels box them at an IoU of 0.6."""

Settings = dict[str, Any]
"""Values of ``LoopSettings`` by name."""

NAMING_LOOP: Settings = {"min_lr": 1e-5, "validate_every": 500}
GROUNDING_LOOP: Settings = {
    "warmup": 50,
    "ema": 0.998,
    "validate_every": 500,
    "picture_every": 500,
}
BOX_LOOP: Settings = {
    "steps": 400,
    "lr": 1e-3,
    "min_lr": 1e-3,
    "warmup": 50,
    "parts": HEAD_PARTS,
}

MASK_LR = {"masks": 3.0}
"""Masks are learned last, when the learning rate is low."""

ENCODER_LR = {"trunk": 0.5, "text": 0.5}
"""The encoders know the names already."""


# Training from scratch ------------------------------------------------------------------------

Config = Callable[[int], ModelConfig]
"""A configuration by the side of the images."""

Initial = Callable[[Run, ModelConfig], Detector]
"""The model with which a stage starts."""


def _from_stage(stage: str, parts: tuple[str, ...] = ("",)) -> Initial:
    """A model with the weights of an earlier stage, or with those of some parts."""

    def initial(run: Run, config: ModelConfig) -> Detector:
        net = common.new_model(config, run.options.seed)
        return common.load_weights(net, run.weights(stage), parts)

    return initial


def _new(run: Run, config: ModelConfig) -> Detector:
    return common.new_model(config, run.options.seed)


def _naming_stage(
    name: str,
    about: str,
    config: Config,
    initial: Initial,
    tiles: tuple[int, ...],
    loop: Settings,
) -> Stage:
    """Image and text encoder learn the names of what image tokens lie on."""

    def prepare(run: Run) -> tuple[Task, LoopSettings]:
        o: Options = run.options
        model = config(o.resolution)
        names = common.recipe_generator(o.resolution).names
        training = common.scene_samples(o.resolution, "train", tiles, o.backgrounds)
        validation = common.scene_samples(o.resolution, "seen", tiles)
        held_out = NamingBatches(model, validation.make, 48, names, NAMES_PER_BATCH)
        task = NamingTask(
            initial(run, model),
            NamingBatches(model, training.make, o.batch, names, NAMES_PER_BATCH),
            held_out=[held_out(0, np.random.default_rng(o.seed))],
            seed=o.seed,
            workers=o.workers,
        )
        return task, common.loop_settings(o.seed, **{**NAMING_LOOP, **loop})

    return Stage(name, prepare, about)


def _box_stage(name: str, about: str, config: Config, names: str) -> Stage:
    """New heads learn boxes, while the encoders, which their gradients would spoil, are frozen."""

    def prepare(run: Run) -> tuple[Task, LoopSettings]:
        o: Options = run.options
        model = config(o.resolution)
        net = _from_stage(names, NAMING_PARTS)(run, model)
        samples = common.scene_samples(o.resolution, backgrounds=o.backgrounds)
        pixels = [samples[i].pixels(model.resolution, model.mean, model.std) for i in range(16)]
        normalize_tokens(net, torch.cat(pixels))
        task = _grounding_task(o, model, net, LARGE_FIRST, loss=BOX_LOSS)
        return task, common.loop_settings(o.seed, **BOX_LOOP)

    return Stage(name, prepare, about)


def _grounding_stage(
    name: str,
    about: str,
    config: Config,
    initial: Initial,
    *,
    loop: Settings,
    tiles: tuple[int, ...] = (0,),
    seed: int = 0,
    is_final: bool = False,
    frozen: str = "",
    save_as: str = "",
) -> Stage:
    """Stage 3: grounding of phrases.

    ``seed`` is added to the seed of the data, ``is_final`` selects the final resolution, ``frozen``
    is a part that does not learn, and ``save_as`` the name of the model that is saved.
    """

    def prepare(run: Run) -> tuple[Task, LoopSettings]:
        o: Options = run.options
        model = config(o.final_resolution if is_final else o.resolution)
        net = initial(run, model)
        changes = {**GROUNDING_LOOP, **loop}
        if frozen:
            changes["parts"] = tuple(part for part, _ in net.named_children() if part != frozen)
        task = _grounding_task(o, model, net, tiles, o.seed + seed)
        return task, common.loop_settings(o.seed, **changes)

    def save(run: Run, task: Task) -> None:
        if isinstance(task, GroundingTask):
            save_model(run.stage_folder / "model", save_as, task.collator.config, task.module)

    return Stage(name, prepare, about, save if save_as else None)


def _grounding_task(
    o: Options,
    config: ModelConfig,
    net: Detector,
    tiles: tuple[int, ...],
    seed: int | None = None,
    loss: GroundingLoss = GROUNDING_LOSS,
) -> GroundingTask:
    names = common.recipe_generator(config.resolution).names
    validation = common.scene_samples(config.resolution, "seen")
    return GroundingTask(
        net,
        GroundingCollator(config, PROMPTS, TokenLabeler(config, names, NAMES_PER_BATCH)),
        common.scene_samples(config.resolution, "train", tiles, o.backgrounds),
        batch=o.batch,
        criterion=loss,
        held_out=tuple(validation[number] for number in range(o.held_out)),
        seed=o.seed if seed is None else seed,
        workers=o.workers,
    )


# Distillation ---------------------------------------------------------------------------------


def _trained_teacher(run: Run) -> Detector:
    o: Options = run.options
    return _from_stage("teacher")(run, teacher_config(o.resolution)).eval()


def distilled_student(run: Run, config: ModelConfig, *, prompted: bool = True) -> Detector:
    """The teacher's heads with the student's distilled encoders.

    Args:
        run: The run.
        config: Configuration of the student.
        prompted: Use the image encoder of the stage "prompts", not that of the stage "image".

    Raises:
        RecipeError: a stage that is needed is not done.
    """
    net = common.new_model(config, run.options.seed)
    heads = tuple(f"{name}." for name, _ in net.named_children() if name not in ("trunk", "text"))
    common.load_weights(net, run.weights("teacher"), heads)
    common.load_weights(net, run.weights("text"), ("text.",))
    return common.load_weights(net, run.weights("prompts" if prompted else "image"), ("trunk.",))


def recipe_phrases() -> list[str]:
    """All phrases of training scenes: names, synonyms, categories, and names with attributes."""
    stickers = StickerArt.open()
    phrases: dict[str, None] = {VISUAL: None}
    for name in common.recipe_concepts(stickers, "train"):
        concept = stickers.concepts[name]
        phrases |= dict.fromkeys((name, *concept.synonyms, *concept.categories))
        phrases |= dict.fromkeys(f"{attribute} {name}" for attribute in ATTRIBUTES)
    return list(phrases)


def _distill_image(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 1: the image encoder."""
    o: Options = run.options
    config = student_config(o.resolution)
    task = ImageDistillation(
        common.new_model(config, o.seed).part("trunk"),
        config,
        common.scene_samples(o.resolution, backgrounds=o.backgrounds),
        ImageTeacher.of(_trained_teacher(run), teacher_config(o.resolution)),
        settings=ImageSettings(
            batch=2 * o.batch, workers=o.workers, seed=o.seed, validation=o.held_out
        ),
        held_out=common.scene_samples(o.resolution, "seen"),
    )
    return task, common.loop_settings(
        o.seed, steps=1500, lr=1e-3, min_lr=2e-5, warmup=100, validate_every=500
    )


def _distill_text(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 1: the text encoder."""
    o: Options = run.options
    task = TextDistillation(
        common.new_model(student_config(o.resolution), o.seed).part("text"),
        recipe_phrases(),
        TextTeacher.of(_trained_teacher(run), teacher_config(o.resolution)),
        settings=TextSettings(batch=256, seed=o.seed),
    )
    return task, common.loop_settings(o.seed, steps=1500, lr=2e-3, min_lr=2e-5, warmup=100)


def _distill_prompted(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 1: the image encoder, with prompts in the loop."""
    o: Options = run.options
    config = student_config(o.resolution)
    task = PromptInTheLoop(
        distilled_student(run, config, prompted=False).part("trunk"),
        _trained_teacher(run),
        config,
        common.scene_samples(o.resolution, backgrounds=o.backgrounds),
        PromptedSettings(
            batch=o.batch, prompts=3, workers=o.workers, seed=o.seed, phrase=1.0, answer_weight=1.0
        ),
        held_out=common.scene_samples(o.resolution, "seen"),
    )
    return task, common.loop_settings(
        o.seed, steps=200, lr=2e-4, min_lr=1e-5, warmup=50, validate_every=100
    )


def _calibrate(run: Run) -> None:
    """Shift the presence of the student by scenes that serve this alone; nothing is trained."""
    o: Options = run.options
    config = student_config(o.final_resolution)
    net = _from_stage("finer")(run, config).eval()
    samples = common.scene_samples(o.final_resolution, "seen")
    result = calibrate(net, config, (samples[CALIBRATION_SEED + i] for i in range(o.calibration)))
    save_model(run.stage_folder / "model", MODEL_NAME, config, net)
    with replacing(run.stage_folder / "calibration.json") as temporary:
        temporary.write_text(json.dumps(result._asdict(), indent=1) + "\n", encoding="utf-8")


RECIPE = Recipe(
    "stickers",
    "the packaged model, from scenes of stickers: a teacher, then a student",
    (
        _naming_stage(
            "names",
            "the encoders of the teacher learn the names of concepts of one size",
            teacher_config,
            _new,
            (3,),
            loop={"steps": 2600, "lr": 5e-4, "warmup": 100, "validate_every": 250},
        ),
        _naming_stage(
            "scales",
            "they learn names of concepts of all sizes, in crowds and behind each other",
            teacher_config,
            _from_stage("names"),
            ALL_TILES,
            loop={"steps": 4500, "lr": 4e-4, "warmup": 50, "ema": 0.998},
        ),
        _box_stage("boxes", "the heads of the teacher learn boxes", teacher_config, "scales"),
        _grounding_stage(
            "heads",
            "the heads of the teacher learn to ground phrases",
            teacher_config,
            _from_stage("boxes"),
            loop={"steps": 600, "lr": 1e-3, "min_lr": 3e-4, "ema": 0.995, "parts": HEAD_PARTS},
            tiles=LARGE_FIRST,
        ),
        _grounding_stage(
            "teacher",
            "all of the teacher learns to ground phrases",
            teacher_config,
            _from_stage("heads"),
            loop={"steps": 4000, "lr": 3e-4, "min_lr": 1e-5, "scales": MASK_LR},
            tiles=MOSTLY_SCENES,
            save_as="stickers-teacher",
        ),
        Stage("image", _distill_image, "the image encoder of a student learns the teacher's"),
        Stage("text", _distill_text, "the text encoder of the student learns the teacher's"),
        Stage("prompts", _distill_prompted, "masks of prompts become those of the teacher"),
        _grounding_stage(
            "student",
            "all of the student learns to ground phrases",
            student_config,
            distilled_student,
            loop={"steps": 1400, "lr": 2e-4, "min_lr": 5e-6, "scales": {**ENCODER_LR, **MASK_LR}},
            save_as=MODEL_NAME,
        ),
        _grounding_stage(
            "longer",
            "all but the image encoder goes on: a video memory reads the maps of that",
            student_config,
            _from_stage("student"),
            loop={"steps": 1300, "lr": 3e-4, "min_lr": 5e-6, "scales": {"text": 0.5, **MASK_LR}},
            seed=1,
            frozen="trunk",
            save_as=MODEL_NAME,
        ),
        # Half of the objects are smaller than 30 of 252 pixels: cells of 14 pixels show too little
        # of their outlines for an IoU well above 0.5.
        _grounding_stage(
            "finer",
            "all of the student goes on, in larger images",
            student_config,
            _from_stage("longer"),
            loop={"steps": 1000, "lr": 2e-4, "min_lr": 5e-6, "scales": {**ENCODER_LR, **MASK_LR}},
            seed=2,
            is_final=True,
            save_as=MODEL_NAME,
        ),
        Stage("calibrate", _calibrate, "presence is shifted to the best cgF1", alone=True),
        _naming_stage(
            "alone-names",
            "without a teacher: the encoders of the same student learn names",
            student_config,
            _new,
            ALL_TILES,
            loop={"steps": 2000, "lr": 5e-4, "warmup": 100, "ema": 0.998},
        ),
        _box_stage("alone-boxes", "its heads learn boxes", student_config, "alone-names"),
        _grounding_stage(
            "alone",
            "all of it learns to ground phrases",
            student_config,
            _from_stage("alone-boxes"),
            loop={"steps": 1600, "lr": 4e-4, "min_lr": 1e-5},
            tiles=MOSTLY_SCENES,
            save_as="stickers-alone",
        ),
    ),
    Options(),
)

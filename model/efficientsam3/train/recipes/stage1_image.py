"""Stage 1 for images: a small image encoder learns from SAM3's, on SA-1B.

Under torchrun each process saves its share of the features, then all train together.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ...config import ModelConfig
from ...data.augment import Augment
from ...data.sa1b import SA1B
from ...data.subsets import Subset, hold_out
from ...errors import DataError
from ...nn.detector import Detector
from ..features import FeatureSource, open_features
from ..features.extract import extract_image_features
from ..merge import PartialCheckpoint
from ..pretrained_init import init_trunk
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..task import Task
from ..tasks.image_distillation import ImageDistillation, ImageSettings, MapStudent
from ..tasks.prompt_in_the_loop import PromptInTheLoop
from ..tasks.prompted_batches import PromptedSettings
from ..teachers import ImageTeacher
from .common import (
    build_part,
    epoch_steps,
    load_named_model,
    load_trained_part,
    local_device,
    rank_and_world,
    save_merged,
)

_log = logging.getLogger(__name__)

# Batches of one step of the stage "prompts".
PROMPT_ACCUMULATE = 8
# Seconds between log lines while features are computed.
LOG_SECONDS = 60.0
# Seconds between looks at what other processes have saved.
POLL_SECONDS = 10.0


@dataclass(frozen=True)
class Options:
    """Options of the recipe.

    Attributes:
        data: Folder of SA-1B.
        subset: File with names of images or tar files, one a line; none: all images.
        teacher: SAM3's checkpoint: a model's name, a file or a folder.
        student: Image encoder that learns, a name of ``build.VISIONS``.
        init: Its initial weights: "imagenet", "nothing", or a partial checkpoint.
        save: Whether the teacher's maps are computed once and saved, 10.6 MB an image at full size;
            else they are computed at every step.
        features: Folder for the saved maps, or one that has them; none: in the run's folder.
        held_out: Images for validation.
        seed: Seed of the split, of the initial weights and of the order of samples.
        batch: Images a process and batch in the stage "image".
        prompt_batch: Images a process and batch in the stage "prompts".
        workers: Processes that read images, for each training process.
        epochs: Epochs of the stage "image".
        prompt_epochs: Epochs of the stage "prompts".
        augment: Whether images are flipped, cropped and changed in color. Not where features are
            saved.
    """

    data: str = ""
    subset: str | None = None
    teacher: str = ""
    student: str = "tinyvit-11m"
    init: str = "imagenet"
    save: bool = True
    features: str | None = None
    held_out: int = 64
    seed: int = 0
    batch: int = 64
    prompt_batch: int = 4
    workers: int = 8
    epochs: int = 50
    prompt_epochs: int = 30
    augment: bool = True


def load_teacher(o: Options) -> tuple[str, ModelConfig, Detector]:
    """Name, configuration and model of the teacher.

    Args:
        o: Options of the recipe.

    Raises:
        DataError: The options name no data or no teacher.
    """
    if not o.data:
        raise DataError("data is not set: add --set data=FOLDER, the folder of SA-1B")
    return load_named_model(o.teacher, "teacher")


def split_samples(o: Options) -> tuple[Subset, Subset]:
    """The images for training, and those held out for validation.

    Args:
        o: Options of the recipe.
    """
    return hold_out(SA1B(o.data, subset=o.subset), o.held_out, o.seed)


def _features_folder(run: Run) -> Path:
    # Not in the folder of the stage "features": a restart keeps maps that took days to compute.
    # They name their teacher, so that those of another one are refused.
    return Path(run.options.features or run.folder / "teacher_maps")


def _augmentation(o: Options) -> Augment | None:
    # Saved features are of the images as they are.
    return Augment() if o.augment and not o.save else None


def _saved_features(run: Run) -> FeatureSource | None:
    return open_features(_features_folder(run)) if run.options.save else None


def save_features(run: Run) -> None:
    """Stage "features": save the teacher's maps. A folder of upstream's files is used as it is.

    Args:
        run: The run.
    """
    o: Options = run.options
    _, config, net = load_teacher(o)
    training, _ = split_samples(o)
    folder = _features_folder(run)
    if not o.save or any(folder.glob("rank*-keys.txt")):
        return
    rank, world = rank_and_world()
    teacher = ImageTeacher.of(net, config)
    teacher.to(local_device())
    logged = time.monotonic()

    def on_progress(done: int, total: int) -> None:
        nonlocal logged
        if time.monotonic() - logged > LOG_SECONDS or done == total:
            logged = time.monotonic()
            _log.info("features: %d of %d", done, total)

    extract_image_features(
        teacher,
        training,
        folder,
        workers=o.workers,
        rank=rank,
        world=world,
        on_progress=on_progress,
    )
    while len(open_features(folder)) < len(training):  # other processes have not finished
        time.sleep(POLL_SECONDS)


def make_student(config: ModelConfig, o: Options) -> tuple[ModelConfig, nn.Module]:
    """The student's configuration and its untrained image encoder.

    Args:
        config: Configuration of the teacher.
        o: Options of the recipe.
    """
    config = dataclasses.replace(config, vision=o.student)
    return config, build_part(config, "trunk", o.seed)


def distill_maps(run: Run) -> tuple[Task, LoopSettings]:
    """Stage "image": the student's maps become like the teacher's.

    Args:
        run: The run.
    """
    o: Options = run.options
    _, config, net = load_teacher(o)
    training, held_out = split_samples(o)
    config, trunk = make_student(config, o)
    init_trunk(trunk, o.student, o.init)
    task = ImageDistillation(
        trunk,
        config,
        training,
        ImageTeacher.of(net, config),
        _saved_features(run),
        ImageSettings(batch=o.batch, workers=o.workers, seed=o.seed, validation=o.held_out),
        held_out,
        augment=_augmentation(o),
    )
    steps = epoch_steps(len(training), o.batch, o.epochs)
    lr = 1e-3 * min(1.0, o.batch * rank_and_world()[1] / 512)
    settings = LoopSettings(
        steps=steps,
        lr=lr,
        min_lr=lr / 100,
        warmup=steps // 10,
        weight_decay=0.01,
        clip=5.0,
        precision="bf16-mixed",
        validate_every=1000,
        picture_every=5000,
        seed=o.seed,
    )
    return task, settings


def distill_masks(run: Run) -> tuple[Task, LoopSettings]:
    """Stage "prompts": the masks of the student's maps become like those of the teacher's.

    Args:
        run: The run.
    """
    o: Options = run.options
    _, config, net = load_teacher(o)
    training, held_out = split_samples(o)
    config, trunk = make_student(config, o)
    load_trained_part(run, "image", "trunk", trunk)
    prompts = PromptedSettings(
        batch=o.prompt_batch, workers=o.workers, seed=o.seed, validation=o.held_out
    )
    task = PromptInTheLoop(
        trunk,
        net,
        config,
        training,
        prompts,
        _saved_features(run),
        held_out,
        augment=_augmentation(o),
    )
    steps = epoch_steps(len(training), o.prompt_batch, o.prompt_epochs, PROMPT_ACCUMULATE)
    settings = LoopSettings(
        steps=steps,
        accumulate=PROMPT_ACCUMULATE,
        lr=5e-5,
        min_lr=1e-6,
        warmup=steps // 15,
        weight_decay=0.01,
        clip=1.0,
        precision="bf16-mixed",
        validate_every=1000,
        picture_every=5000,
        seed=o.seed,
    )
    return task, settings


def merge_student(run: Run) -> None:
    """Stage "merge": the student's image encoder in the teacher's model.

    Args:
        run: The run.
    """
    o: Options = run.options
    name, config, net = load_teacher(o)
    student, trunk = make_student(config, o)
    load_trained_part(run, "prompts", "trunk", trunk)
    part = PartialCheckpoint.of(student, MapStudent(trunk, config.grid, 1, 1), ["trunk"])
    part.save(run.stage_folder / "trunk.safetensors")
    save_merged(run, f"{name}-{o.student}", config, net, part)


RECIPE = Recipe(
    "stage1-image",
    "a small image encoder learns from SAM3's, on SA-1B: maps, then masks of prompts",
    (
        Stage("features", save_features, "the teacher's maps are saved once"),
        Stage("image", distill_maps, "the student's maps become like the teacher's"),
        Stage("prompts", distill_masks, "its masks become like the teacher's: prompt in the loop"),
        Stage("merge", merge_student, "the student's encoder in a whole model", alone=True),
    ),
    Options(),
)

"""Stage 1 for images: a small encoder learns from SAM3's, on SA-1B.

Under torchrun each process saves its share of the features, then all train together.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ...build import ModelConfig, build
from ...nn.detector import Detector
from ...weights import read_state
from ..data.batches import Subset, hold_out
from ..data.sa1b import SA1B
from ..errors import DataError
from ..feature_source import FeatureSource
from ..features import open_features, save_features
from ..merge import Partial, load_whole, merge, save_both
from ..prompted import PromptedSettings, PromptInTheLoop
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..stage1_image import ImageDistillation, ImageSettings, MapStudent
from ..starts import start_trunk
from ..task import Task
from ..teachers import ImageTeacher

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Args:
    data: the folder of SA-1B. subset: a file of names of images or tars; none: all.
    teacher: SAM3's checkpoint, a file or a folder.
    student: an image encoder of ``build.VISIONS``. start: "imagenet", "nothing", or a partial
        checkpoint.
    save: compute the teacher's maps once, 10.6 MB an image at full size; else at every step.
    features: a folder for them, or one where they are; none: in the run's folder.
    held_out: images for validation. seed: of the split and of all orders.
    batch, prompt_batch: images a process and step. workers: processes that read images.
    epochs, prompt_epochs: of the two stages.
    """

    data: str = ""
    subset: str | None = None
    teacher: str = ""
    student: str = "tinyvit-11m"
    start: str = "imagenet"
    save: bool = True
    features: str | None = None
    held_out: int = 64
    seed: int = 0
    batch: int = 64
    prompt_batch: int = 4
    workers: int = 8
    epochs: int = 50
    prompt_epochs: int = 30


def ranks() -> tuple[int, int]:
    """Number of this process and of all, as torchrun says."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def steps_of(samples: int, batch: int, epochs: int, accumulate: int = 1) -> int:
    """Steps of the optimiser in some epochs on all processes."""
    return max(1, samples * epochs // (batch * ranks()[1] * accumulate))


def whole(run: Run) -> tuple[str, ModelConfig, Detector]:
    """The teacher."""
    o: Options = run.options
    if not o.teacher or not o.data:
        raise DataError(
            "say --set data=FOLDER, where SA-1B is, and --set teacher=FILE, SAM3's checkpoint"
        )
    return load_whole(o.teacher)


def samples(o: Options) -> tuple[Subset, Subset]:
    """For training, and held out."""
    return hold_out(SA1B(o.data, subset=o.subset), o.held_out, o.seed)


def folder_of(run: Run) -> Path:
    """Of the saved features."""
    o: Options = run.options
    return Path(o.features) if o.features else run.folder / "features" / "maps"


def saved(run: Run) -> FeatureSource | None:
    """Features for training, if there are to be any."""
    return open_features(folder_of(run)) if run.options.save else None


def features(run: Run) -> None:
    """Save the teacher's maps; a folder of upstream's files is taken as it is."""
    o: Options = run.options
    _, config, net = whole(run)
    training, _ = samples(o)
    folder = folder_of(run)
    if not o.save or any(folder.glob("rank*-keys.txt")):
        return
    rank, world = ranks()
    teacher = ImageTeacher.of(net, config)
    teacher.to(own_device())

    said = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said > 60 or done == total:
            said = time.monotonic()
            log.info("features: %d of %d", done, total)

    save_features(
        teacher,
        training,
        folder,
        workers=o.workers,
        rank=rank,
        world=world,
        progress=progress,
    )
    while len(open_features(folder)) < len(training):  # other processes are still at it
        time.sleep(10)


def student(config: ModelConfig, o: Options) -> tuple[ModelConfig, torch.nn.Module]:
    """The student's numbers, and its image encoder untaught."""
    config = dataclasses.replace(config, vision=o.student)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        trunk: torch.nn.Module = build(config).part("trunk")
    return config, trunk


def image(run: Run) -> tuple[Task, LoopSettings]:
    """Its maps become the teacher's."""
    o: Options = run.options
    _, config, net = whole(run)
    training, held_out = samples(o)
    config, trunk = student(config, o)
    start_trunk(trunk, o.student, o.start)
    task = ImageDistillation(
        trunk,
        config,
        training,
        ImageTeacher.of(net, config),
        saved(run),
        ImageSettings(batch=o.batch, workers=o.workers, seed=o.seed, validation=o.held_out),
        held_out,
    )
    steps = steps_of(len(training), o.batch, o.epochs)
    lr = 1e-3 * min(1.0, o.batch * ranks()[1] / 512)
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


def taught(run: Run, stage: str, trunk: torch.nn.Module) -> None:
    """Put the result of an earlier stage into an image encoder."""
    state = {
        k.removeprefix("trunk."): v
        for k, v in read_state(run.weights(stage)).items()
        if k.startswith("trunk.")
    }
    trunk.load_state_dict(state)


def prompts(run: Run) -> tuple[Task, LoopSettings]:
    """Its masks become the teacher's."""
    o: Options = run.options
    _, config, net = whole(run)
    training, held_out = samples(o)
    config, trunk = student(config, o)
    taught(run, "image", trunk)
    numbers = PromptedSettings(
        batch=o.prompt_batch, workers=o.workers, seed=o.seed, validation=o.held_out
    )
    task = PromptInTheLoop(trunk, net, config, training, numbers, saved(run), held_out)
    steps = steps_of(len(training), o.prompt_batch, o.prompt_epochs, accumulate=8)
    settings = LoopSettings(
        steps=steps,
        accumulate=8,
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


def put_together(run: Run) -> None:
    """The student's encoder in the teacher's model: a folder, and a file as upstream's."""
    if ranks()[0]:
        return
    o: Options = run.options
    name, config, net = whole(run)
    small, trunk = student(config, o)
    taught(run, "prompts", trunk)
    part = Partial.of(small, MapStudent(trunk, config.grid, 1, 1), ["trunk"])
    part.save(run.stage_folder / "trunk.safetensors")
    config, net = merge(config, net, part)
    save_both(run.stage_folder, f"{name}-{o.student}", config, net)


RECIPE = Recipe(
    "stage1-image",
    "a small image encoder learns from SAM3's, on SA-1B: maps, then masks of prompts",
    (
        Stage("features", features, "the teacher's maps, saved once"),
        Stage("image", image, "the student's maps become the teacher's"),
        Stage("prompts", prompts, "its masks become the teacher's: the prompt in the loop"),
        Stage("merge", put_together, "the student's encoder in a whole model"),
    ),
    Options(),
)

"""Stage 2 for released or merged models: a Perceiver memory learns from the full one, on SA-V.

The teacher is a whole model with SAM3's memory. The student is the same model, or one with another
image encoder; its encoder, feature pyramids and interactive head stay as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ...config import MemoryConfig, ModelConfig
from ...data.sav import SAV
from ...data.subsets import ClipSubset, hold_out_clips
from ...errors import DataError
from ...nn.detector import Detector
from ..losses.tracking import MemoryWeights
from ..merge import PartialCheckpoint, merge
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..task import Task
from ..tasks.clip_batches import ClipSettings
from ..tasks.memory import MemoryTask
from .common import (
    PART_FILE,
    epoch_steps,
    load_named_model,
    save_merged,
    with_memory,
)

# Parts that a model needs to track.
TRACKING_PARTS = ("memory", "interactive", "interactive_neck")
# Weight of the masks' focal loss beside the other losses of the truth, as in SAM2's training.
MASK_WEIGHT = 20.0


@dataclass(frozen=True)
class Options:
    """Options of the recipe.

    Attributes:
        teacher: A whole model with a full memory: a name of ``list_models()``, a checkpoint or a
            folder.
        student: A whole model with another image encoder, named as ``teacher``. The parts that
            track are taken from the teacher where it has none. Empty: the teacher itself.
        sav: Folder of SA-V.
        masklets: Masklets of SA-V to learn from: "manual", "auto" or "both".
        frames: Folder with one folder of images for each video; none: the videos as SA-V is
            released.
        subset: File with names of videos, one a line; none: all videos.
        latents: Latent tokens of the Perceiver that have no position.
        cells: Side of the grid of latent tokens that have one; it divides the model's grid (72: 9,
            12, 18).
        depth: Layers of the memory attention.
        length: Frames of a clip; training goes through these lengths in equal parts.
        objects: Objects of a clip, at most.
        truth: Weight of the true masks beside the teacher's outputs.
        attention: Weight of the difference to the teacher's memory attention.
        held_out: Videos for validation.
        seed: Seed of the split, of the initial weights and of the order of clips.
        batch: Clips a process and step.
        workers: Processes that read clips, for each training process.
        epochs: Epochs over all videos.
    """

    teacher: str = ""
    student: str = ""
    sav: str = ""
    masklets: str = "manual"
    frames: str | None = None
    subset: str | None = None
    latents: int = 256
    cells: int = 18
    depth: int = 2
    length: tuple[int, ...] = (4, 8, 16)
    objects: int = 3
    truth: float = 1.0
    attention: float = 1.0
    held_out: int = 64
    seed: int = 0
    batch: int = 1
    workers: int = 8
    epochs: int = 10


def initial_student(
    o: Options, teacher: tuple[ModelConfig, Detector]
) -> tuple[ModelConfig, Detector]:
    """The student before training, with the teacher's memory.

    Args:
        o: Options of the recipe.
        teacher: Configuration and model of the teacher.
    """
    if not o.student:
        return teacher
    _, config, net = load_named_model(o.student, "student")
    missing = [p for p in TRACKING_PARTS if p == "memory" or p not in config.parts]
    return merge(config, net, PartialCheckpoint.of(*teacher, missing))


def teacher_and_student(
    o: Options,
) -> tuple[tuple[ModelConfig, Detector], tuple[ModelConfig, Detector]]:
    """The teacher, and the student with a Perceiver memory.

    Args:
        o: Options of the recipe.

    Raises:
        DataError: The options name no data, or a teacher without a full memory.
    """
    if not o.sav:
        raise DataError("sav is not set: add --set sav=FOLDER, the folder of SA-V")
    _, config, net = load_named_model(o.teacher, "teacher")
    if "memory" not in config.parts or config.memory.perceives:
        found = "a Perceiver memory" if "memory" in config.parts else "no memory"
        raise DataError(
            f"teacher is {o.teacher}, which has {found}; the teacher is a model with a full memory"
        )
    student_config, initial = initial_student(o, (config, net))
    memory = MemoryConfig(o.depth, o.latents, o.cells)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        student = with_memory(student_config, initial, memory)
    return (config, net), (dataclasses.replace(student_config, memory=memory), student)


def split_videos(o: Options) -> tuple[ClipSubset, ClipSubset]:
    """The videos for training, and those held out for validation.

    Args:
        o: Options of the recipe.
    """
    return hold_out_clips(SAV(o.sav, o.masklets, o.frames, o.subset), o.held_out, o.seed)


def distill_memory(run: Run) -> tuple[Task, LoopSettings]:
    """Stage "distil": the Perceiver memory learns to track as the full one does.

    Args:
        run: The run.
    """
    o: Options = run.options
    teacher, (config, student) = teacher_and_student(o)
    training, held_out = split_videos(o)
    steps = epoch_steps(len(training), o.batch, o.epochs)
    clips = ClipSettings(
        frames=o.length,
        growth=max(1, steps // len(o.length)),
        batch=o.batch,
        objects=o.objects,
        forced=0.0,
        workers=o.workers,
        seed=o.seed,
        validation=o.held_out,
    )
    weights = MemoryWeights(MASK_WEIGHT * o.truth, o.truth, o.truth, o.truth, attention=o.attention)
    task = MemoryTask(student, config, training, clips, weights, teacher, held_out)
    settings = LoopSettings(
        steps=steps,
        lr=1e-4,
        min_lr=1e-6,
        warmup=steps // 20,
        weight_decay=0.1,
        clip=1.0,
        parts=("memory",),
        precision="bf16-mixed",
        validate_every=1000,
        picture_every=5000,
        seed=o.seed,
    )
    return task, settings


def _save_part(run: Run, task: Task) -> None:
    if isinstance(task, MemoryTask):
        part = PartialCheckpoint.of(task.config, task.module, ["memory"])
        part.save(run.stage_folder / PART_FILE)


def merge_student(run: Run) -> None:
    """Stage "merge": the Perceiver memory in the student.

    Args:
        run: The run.
    """
    o: Options = run.options
    name, config, net = load_named_model(o.teacher, "teacher")
    student = initial_student(o, (config, net))
    part = PartialCheckpoint.load(run.folder_of("distil") / PART_FILE)
    name = load_named_model(o.student, "student")[0] if o.student else name
    save_merged(run, f"{name}-perceiver", *student, part)


RECIPE = Recipe(
    "stage2",
    "a Perceiver memory learns from the full one of a released or merged model, on SA-V",
    (
        Stage(
            "distil", distill_memory, "the Perceiver memory learns from the full one", _save_part
        ),
        Stage("merge", merge_student, "the Perceiver memory replaces the full one", alone=True),
    ),
    Options(),
)

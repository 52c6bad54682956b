"""Stage 2 for released or merged models: a Perceiver memory learns from the full one, on SA-V.

The teacher is a whole model with SAM3's memory. The student is the same, or a model with another
image encoder; its encoder, pyramids and interactive head stay as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ...build import MemoryConfig, ModelConfig, build
from ...errors import CheckpointError
from ...nn.detector import Detector
from ..clip_batches import ClipSettings
from ..data.clip import ClipSubset, hold_out_clips
from ..data.sav import SAV
from ..errors import DataError
from ..merge import Partial, merge, save_both
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..stage2 import MemoryTask, MemoryWeights, begin_from
from ..task import Task
from .stage1_image import ranks, steps_of
from .stage3 import PART_FILE, whole


@dataclass(frozen=True)
class Options:
    """Args:
    teacher: a whole model with a full memory: a name of ``list_models()``, a checkpoint, or a
        model's folder. student: a whole model with another image encoder, as ``teacher``; none:
        the teacher's own. What tracks in it begins as the teacher's, if it has none.
    sav: the folder of SA-V. masklets: "manual", "auto" or "both". frames: a folder of images, one
        a video; none: as SA-V is released. subset: a file of names of videos; none: all.
    latents, cells: tokens without a place, and a side of the grid of those with one; it divides
        the model's (72: 9, 12, 18). depth: layers of memory attention.
    length: frames of a clip, one after the other as training goes on. objects: of a clip.
    truth: weight of true masks, beside the teacher's answers. attention: of its attention's.
    held_out: videos for validation. seed: of the split and of all orders.
    batch: clips a process and step. workers: processes that read clips. epochs: over all videos.
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


def with_memory(config: ModelConfig, net: Detector, memory: MemoryConfig) -> Detector:
    """A copy that may be trained, with another memory that begins as far as it can as its own."""
    new = dataclasses.replace(config, memory=memory)
    student = build(new)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("memory.")}
    missing, left = student.load_state_dict(state, strict=False)
    if left or any(not k.startswith("memory.") for k in missing):
        raise CheckpointError(f"the model lacks or adds {sorted([*left, *missing])[:5]}")
    begin_from(student.part("memory"), net.part("memory"))
    return student


def student_of(o: Options, teacher: tuple[ModelConfig, Detector]) -> tuple[ModelConfig, Detector]:
    """The student before it is taught, with the teacher's memory."""
    if not o.student:
        return teacher
    _, config, net = whole(o.student)
    tracks = [p for p in ("interactive", "interactive_neck", "memory") if p not in config.parts]
    part = Partial.of(*teacher, ["memory", *(p for p in tracks if p != "memory")])
    return merge(config, net, part)


def pair(o: Options) -> tuple[tuple[ModelConfig, Detector], tuple[ModelConfig, Detector]]:
    """Teacher, and student with a Perceiver."""
    if not o.teacher or not o.sav:
        raise DataError(
            "say --set sav=FOLDER, where SA-V is, and --set teacher=NAME, =FILE or =FOLDER, a "
            "model with SAM3's memory"
        )
    _, config, net = whole(o.teacher)
    if "memory" not in config.parts or config.memory.perceives:
        has = "a Perceiver memory" if config.memory.perceives else "no memory"
        raise DataError(f"{o.teacher} has {has}; the teacher is a model with a full one")
    theirs, start = student_of(o, (config, net))
    memory = MemoryConfig(o.depth, o.latents, o.cells)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        student = with_memory(theirs, start, memory)
    return (config, net), (dataclasses.replace(theirs, memory=memory), student)


def videos(o: Options) -> tuple[ClipSubset, ClipSubset]:
    """For training, and held out."""
    return hold_out_clips(SAV(o.sav, o.masklets, o.frames, o.subset), o.held_out, o.seed)


def distil(run: Run) -> tuple[Task, LoopSettings]:
    """The Perceiver memory becomes as good as the full one."""
    o: Options = run.options
    teacher, (config, student) = pair(o)
    training, held_out = videos(o)
    steps = steps_of(len(training), o.batch, o.epochs)
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
    weights = MemoryWeights(20 * o.truth, o.truth, o.truth, o.truth, attention=o.attention)
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
        # A batch that is prompted by clicks asks nothing of the mask prompt.
        strategy="ddp_find_unused_parameters_true" if ranks()[1] > 1 else "auto",
        validate_every=1000,
        picture_every=5000,
        seed=o.seed,
    )
    return task, settings


def write_part(run: Run, task: Task) -> None:
    """What learned, alone."""
    if isinstance(task, MemoryTask):
        Partial.of(task.config, task.module, ["memory"]).save(run.stage_folder / PART_FILE)


def put_together(run: Run) -> None:
    """The memory in the student: a folder, and a file as upstream's."""
    if ranks()[0]:
        return
    o: Options = run.options
    name, config, net = whole(o.teacher)
    start = student_of(o, (config, net))
    part = Partial.load(run.of("distil") / PART_FILE)
    config, net = merge(*start, part)
    name = whole(o.student)[0] if o.student else name
    save_both(run.stage_folder, f"{name}-perceiver", config, net)


RECIPE = Recipe(
    "stage2",
    "a Perceiver memory learns from the full one of a released or merged model, on SA-V",
    (
        Stage("distil", distil, "the Perceiver memory learns to track as the full one", write_part),
        Stage("merge", put_together, "it takes the full one's place in a whole model"),
    ),
    Options(),
)

"""The embedded model learns to track, from clips of stickers, on two CPU cores in hours.

It begins as the model that the recipe ``stickers`` left, whose encoders and concept heads stay as
they are. "clicks": the coarse level of a second pyramid and an interactive head learn from stills
what is meant by a click, a box or a mask: they show ten times as many objects a second as clips do.
"memory": head, pyramid and a full memory learn from true masks of clips; the finer levels stay as
they were for masks of concepts. "perceiver": a Perceiver memory learns from the full one, behind
the same pyramid and head.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from ...build import OPTIONAL, MemoryConfig, ModelConfig, build
from ...errors import CheckpointError
from ...nn.detector import Detector
from ...nn.memory import Memory
from ...weights import load_folder
from ..clip_batches import ClipSettings
from ..data.clip import StickerClips, Stills
from ..data.scenes import SceneSource, Turns
from ..errors import DataError
from ..merge import load_whole, save_whole
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..stage2 import MemoryTask, MemoryWeights, begin_near
from ..task import Task
from . import stickers
from .stage2 import with_memory

TRACKS = ("interactive", "interactive_neck", "memory")

HEAD = ("interactive.", "interactive_neck.levels.2")

SEEN = (0, 2, 0, 3)
"""Things a side of a still, by turns; 0: as scenes have them."""


@dataclass(frozen=True)
class Options:
    """Args:
    model: the image model: a folder that the recipe "stickers" wrote, as RUN/calibrate/model.
    seed: of everything. batch: clips of a step. objects: of a clip, at most. workers: processes
        that draw clips. held_out: clips for validation, 0 for none.
    length: frames of a clip, one after the other as training goes on. growth: steps of each length
        but the last; in "perceiver" half as many.
    depth: layers of the full memory's attention. adopt: of ``MemoryConfig``.
    latents, cells, perceiver_depth: of the Perceiver memory: tokens without a place, a side of the
        grid of those with one (it divides the model's grid), layers of its memory attention.
    """

    model: str = ""
    seed: int = 0
    batch: int = 1
    objects: int = 3
    stills: int = 6
    still_objects: int = 8
    workers: int = 1
    held_out: int = 24
    length: tuple[int, ...] = (4, 6, 8)
    growth: int = 600
    depth: int = 4
    adopt: float = 0.1
    latents: int = 16
    cells: int = 6
    perceiver_depth: int = 2


def clips(o: Options, config: ModelConfig, split: str) -> StickerClips:
    """Clips of a split, of the concepts that the image model is about."""
    return StickerClips(stickers.world(stickers.Options(resolution=config.resolution), split))


def beginner(o: Options) -> tuple[ModelConfig, Detector]:
    """The image model with all that tracks, untaught; the second pyramid begins as the first."""
    if not o.model:
        raise DataError(
            "say --set model=FOLDER, the image model: the recipe stickers writes it, as "
            "RUN/calibrate/model"
        )
    _, config, net = load_whole(o.model)
    parts = tuple(p for p in OPTIONAL if p in {*config.parts, *TRACKS})
    config = dataclasses.replace(config, parts=parts, memory=MemoryConfig(o.depth, adopt=o.adopt))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        new = build(config)
    state = net.state_dict()
    copied = {k: v for k, v in state.items() if not k.startswith(TRACKS)}
    for key, value in state.items():
        if key.startswith("neck."):
            copied[f"interactive_{key}"] = value
    missing, left = new.load_state_dict(copied, strict=False)
    if left or any(not k.startswith(("interactive.", "memory.")) for k in missing):
        raise CheckpointError(f"{o.model} lacks or adds {sorted([*left, *missing])[:5]}")
    memory: Memory = begin_near(new.part("memory"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        for learned in (memory.frame_positions, memory.no_object, memory.no_object_pointer):
            learned.normal_(std=0.02)
    return config, new


def clicks(run: Run) -> tuple[Task, LoopSettings]:
    """The head learns from stills."""
    o: Options = run.options
    config, net = beginner(o)

    def stills(split: str, tiles: tuple[int, ...]) -> Stills:
        world = stickers.Options(resolution=config.resolution)
        return Stills(Turns([SceneSource(stickers.world(world, split, n)) for n in tiles]))

    settings = ClipSettings(
        frames=(1,),
        batch=o.stills,
        objects=o.still_objects,
        click=0.6,
        box=0.3,
        mask=0.1,
        workers=o.workers,
        seed=o.seed,
        validation=o.held_out,
    )
    task = MemoryTask(
        net,
        config,
        stills("train", SEEN),
        settings,
        MemoryWeights(all_masks=0.5),
        held_out=stills("seen", (0,)) if o.held_out else None,
    )
    return task, stickers.quick(
        stickers.Options(seed=o.seed),
        steps=3600,
        lr=1e-3,
        min_lr=1e-4,
        warmup=100,
        ema=0.998,
        parts=(*HEAD, "memory.mask_downsample"),
        validate_every=500,
        picture_every=1000,
    )


def task_of(
    o: Options,
    config: ModelConfig,
    net: Detector,
    growth: int,
    teacher: tuple[ModelConfig, Detector] | None = None,
) -> MemoryTask:
    """Clips and losses of either stage."""
    settings = ClipSettings(
        frames=o.length,
        growth=growth,
        batch=o.batch,
        objects=o.objects,
        click=0.4,
        box=0.2,
        mask=0.4,
        forced=0.0 if teacher else 0.5,
        workers=o.workers,
        seed=o.seed,
        validation=o.held_out,
    )
    return MemoryTask(
        net,
        config,
        clips(o, config, "train"),
        settings,
        MemoryWeights(all_masks=0.5),
        teacher,
        clips(o, config, "seen") if o.held_out else None,
    )


def memory(run: Run) -> tuple[Task, LoopSettings]:
    """All that tracks learns from true masks."""
    o: Options = run.options
    config, net = beginner(o)
    task = task_of(o, config, stickers.load(net, run.weights("clicks")), o.growth)
    return task, stickers.quick(
        stickers.Options(seed=o.seed),
        steps=2100,
        lr=6e-4,
        min_lr=1e-5,
        warmup=100,
        ema=0.998,
        parts=(*HEAD, "memory"),
        validate_every=500,
        picture_every=1000,
    )


def taught(run: Run) -> tuple[ModelConfig, Detector]:
    """The tracker with a full memory, as it was left."""
    _, config, net = load_folder(run.of("memory") / "model")
    return config, net


def perceiver(run: Run) -> tuple[Task, LoopSettings]:
    """A Perceiver memory learns from the full one."""
    o: Options = run.options
    config, net = taught(run)
    small = MemoryConfig(o.perceiver_depth, o.latents, o.cells, adopt=o.adopt)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        student = with_memory(config, net, small)
    task = task_of(
        o,
        dataclasses.replace(config, memory=small),
        student,
        o.growth // 2,
        (config, net),
    )
    return task, stickers.quick(
        stickers.Options(seed=o.seed),
        steps=600,
        lr=6e-4,
        min_lr=1e-5,
        warmup=100,
        ema=0.998,
        parts=("memory",),
        validate_every=500,
        picture_every=1000,
    )


def keep(run: Run, task: Task) -> None:
    """Write the whole model as a folder that ``efficientsam3.load`` takes."""
    if isinstance(task, MemoryTask):
        name = "efficientsam3-stickers" + ("-perceiver" if run.stage == "perceiver" else "")
        save_whole(run.stage_folder / "model", name, task.config, task.module)


RECIPE = Recipe(
    "stickers-video",
    "the embedded model learns to track: a full memory, and a Perceiver distilled from it",
    (
        Stage("clicks", clicks, "head and pyramid learn what is meant, from stills"),
        Stage("memory", memory, "head, pyramid and full memory learn from true masks", keep),
        Stage("perceiver", perceiver, "a Perceiver memory learns from the full one", keep),
    ),
    Options(),
)

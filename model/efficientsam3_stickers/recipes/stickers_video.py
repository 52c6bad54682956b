"""The packaged model learns to track, from clips of stickers, on two CPU cores in hours.

It starts with the model of the recipe ``stickers-objects`` or ``stickers``, whose encoders and
concept heads stay as they are. In "clicks" an interactive head, and what its pyramid needs, learn
clicks, boxes and masks from single images, which show ten times as many objects a second as clips
do. In "memory" these and a full memory learn from the true masks of clips. In "perceiver" a
Perceiver memory learns from the full one, with the same pyramid and head.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efficientsam3.build import build
from efficientsam3.checkpoints.assemble import load_folder
from efficientsam3.config import OPTIONAL, MemoryConfig, ModelConfig
from efficientsam3.data.clip import Stills
from efficientsam3.errors import CheckpointError, DataError
from efficientsam3.nn.detector import Detector
from efficientsam3.nn.memory import Memory
from efficientsam3.train.losses.tracking import MemoryWeights
from efficientsam3.train.merge import load_model, save_model
from efficientsam3.train.recipe import Recipe, Run, Stage
from efficientsam3.train.recipes.common import with_memory
from efficientsam3.train.settings import LoopSettings
from efficientsam3.train.task import Task
from efficientsam3.train.tasks.clip_batches import ClipSettings
from efficientsam3.train.tasks.memory import MemoryTask
from efficientsam3.train.tasks.memory_init import init_local_attention

from ..samples import StickerClips
from . import common
from .common import MODEL_NAME, MOSTLY_SCENES

TRACKING_PARTS = ("interactive", "interactive_neck", "memory")
"""Parts that the model of images lacks."""

HEAD_PARTS = ("interactive.", "interactive_neck.levels.2")
"""The interactive head and the coarse level of its pyramid, as beginnings of weights."""


@dataclass(frozen=True)
class Options:
    """Options of the recipe."""

    model: str = ""
    """Folder of the model of images, which the recipe "stickers-objects" writes:
    RUN/calibrate/model."""
    keep_tracker: bool = False
    """Whether "clicks" and "memory" go on from the interactive head and the memory of ``model``,
    which then has these parts. "memory" takes the result of "clicks" where that stage was run, and
    "perceiver" takes ``model`` where "memory" was not."""
    perceiver_start: str = ""
    """File of a Perceiver memory with which "perceiver" begins; empty: weights of the full memory
    where they fit, others untrained."""
    seed: int = 0
    """Seed of everything."""
    batch: int = 1
    """Clips of a step."""
    objects: int = 3
    """Objects of a clip, at most."""
    stills: int = 6
    """Images of a step of "clicks"."""
    still_objects: int = 8
    """Objects of an image, at most."""
    workers: int = 1
    """Processes that make batches."""
    held_out: int = 24
    """Clips for validation; 0: none."""
    length: tuple[int, ...] = (4, 6, 8)
    """Frames of a clip, one value after the other as training goes on."""
    growth: int = 600
    """Batches of all processes with each length but the last; half as many in "perceiver"."""
    forced: float = 0.5
    """Share of the steps of "memory" in which true masks are remembered, not predicted ones."""
    depth: int = 4
    """Layers of the full memory's attention."""
    adopt_detection_iou: float = 0.1
    """The value of ``MemoryConfig``."""
    adopt_object_iou: float = 0.5
    """The value of ``MemoryConfig`` for models with late fusion."""
    latents: int = 16
    """Tokens of the Perceiver memory without a position."""
    cells: int = 0
    """Side of the grid of its tokens with a position, which divides the side of the model's grid;
    0: the largest such number up to 7."""
    perceiver_depth: int = 2
    """Layers of its attention."""


def training_clips(config: ModelConfig, split: str) -> StickerClips:
    """Clips of the concepts that the model of images knows.

    Args:
        config: Configuration of the model. Those with late fusion know all concepts.
        split: Name of the split.
    """
    every = config.late is not None
    return StickerClips(common.recipe_generator(config.resolution, split, every=every))


def _adoption(o: Options, config: ModelConfig) -> dict[str, Any]:
    """Whose masks tracked objects take over: values of ``MemoryConfig``."""
    least = 0.0 if config.late is None else o.adopt_object_iou
    return {"adopt_detection_iou": o.adopt_detection_iou, "adopt_object_iou": least}


def untrained_tracker(o: Options) -> tuple[ModelConfig, Detector]:
    """The model of images with untrained parts for tracking; both pyramids are equal.

    Args:
        o: Options of the recipe.

    Returns:
        Configuration and model.

    Raises:
        DataError: ``model`` is not set.
        CheckpointError: the model has other parts than the recipe ``stickers`` trains.
    """
    if not o.model:
        raise DataError(
            "model is not set; it is the model of images of the recipe stickers-objects: add "
            "--set model=FOLDER, as RUN/calibrate/model"
        )
    _, config, net = load_model(o.model)
    parts = tuple(p for p in OPTIONAL if p in {*config.parts, *TRACKING_PARTS})
    memory_config = MemoryConfig(o.depth, **_adoption(o, config))
    config = dataclasses.replace(config, parts=parts, memory=memory_config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        tracker = build(config)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith(TRACKING_PARTS)}
    state |= {_second_neck(k, config): v for k, v in state.items() if k.startswith("neck.")}
    missing, unknown = tracker.load_state_dict(state, strict=False)
    new = ("interactive.", "memory.", *(("interactive_neck.",) if config.late else ()))
    missing = [k for k in missing if not k.startswith(new)]
    if missing or unknown:
        raise CheckpointError(
            f"{o.model} is not a model of the recipe stickers: {sorted([*unknown, *missing])[:5]} "
            "are missing from it or unknown"
        )
    memory: Memory = init_local_attention(tracker.part("memory"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        for weight in (memory.frame_positions, memory.no_object, memory.no_object_pointer):
            weight.normal_(std=0.02)
    return config, tracker


def trained_tracker(o: Options) -> tuple[ModelConfig, Detector]:
    """The model with the parts for tracking that it has, in float32 and ready to train.

    Args:
        o: Options of the recipe.

    Returns:
        Configuration and model.

    Raises:
        DataError: ``model`` is not set, or has no memory.
    """
    if not o.model:
        raise DataError("model is not set: add --set model=FOLDER of a model that tracks")
    _, config, net = load_model(o.model)
    lacking = [part for part in TRACKING_PARTS if part not in config.parts]
    if lacking:
        raise DataError(
            f"{o.model} lacks {', '.join(lacking)}, and keep_tracker needs a model that tracks: "
            "leave keep_tracker out, and run all stages"
        )
    return config, net.float().requires_grad_(True)


def _second_neck(name: str, config: ModelConfig) -> str:
    """The weight of the second pyramid that starts as one of the first."""
    if config.late is not None:  # the first has the coarse level alone
        name = name.replace("neck.levels.0", f"neck.levels.{len(config.scales) - 1}")
    return f"interactive_{name}"


def head_parts(config: ModelConfig) -> tuple[str, ...]:
    """The interactive head and what trains of its pyramid, as beginnings of weights.

    Args:
        config: Configuration of the model. With late fusion, the finer levels are new, too.
    """
    return ("interactive.", "interactive_neck") if config.late else HEAD_PARTS


def _loop_settings(o: Options, **changes: Any) -> LoopSettings:
    shared: dict[str, Any] = {"optimizer": "muon", "min_lr": 1e-5, "warmup": 100, "ema": 0.998}
    shared |= {"validate_every": 500, "picture_every": 1000}
    return common.loop_settings(o.seed, **{**shared, **changes})


def _clip_settings(o: Options, **changes: Any) -> ClipSettings:
    return ClipSettings(workers=o.workers, seed=o.seed, validation=o.held_out, **changes)


def _prepare_clicks(run: Run) -> tuple[Task, LoopSettings]:
    o: Options = run.options
    config, net = trained_tracker(o) if o.keep_tracker else untrained_tracker(o)
    every = config.late is not None
    training = common.scene_samples(config.resolution, tiles=MOSTLY_SCENES, every=every)
    validation = common.scene_samples(config.resolution, "seen", every=every)
    task = MemoryTask(
        net,
        config,
        Stills(training.make),
        _clip_settings(
            o, frames=(1,), batch=o.stills, objects=o.still_objects, click=0.6, box=0.3, mask=0.1
        ),
        MemoryWeights(all_masks=0.5),
        held_out=Stills(validation.make) if o.held_out else None,
    )
    parts = (*head_parts(config), "memory.mask_downsample")
    return task, _loop_settings(o, steps=3600, lr=1e-3, min_lr=1e-4, parts=parts)


def _clip_task(
    o: Options,
    config: ModelConfig,
    net: Detector,
    growth: int,
    teacher: tuple[ModelConfig, Detector] | None = None,
) -> MemoryTask:
    settings = _clip_settings(
        o,
        frames=o.length,
        growth=growth,
        batch=o.batch,
        objects=o.objects,
        click=0.4,
        box=0.2,
        mask=0.4,
        forced=0.0 if teacher else o.forced,
    )
    return MemoryTask(
        net,
        config,
        training_clips(config, "train"),
        settings,
        MemoryWeights(all_masks=0.5),
        teacher,
        training_clips(config, "seen") if o.held_out else None,
    )


def _prepare_memory(run: Run) -> tuple[Task, LoopSettings]:
    o: Options = run.options
    config, net = trained_tracker(o) if o.keep_tracker else untrained_tracker(o)
    if not o.keep_tracker or "clicks" in run.done:
        net = common.load_weights(net, run.weights("clicks"))
    task = _clip_task(o, config, net, o.growth)
    return task, _loop_settings(o, steps=2100, lr=6e-4, parts=(*head_parts(config), "memory"))


def _prepare_perceiver(run: Run) -> tuple[Task, LoopSettings]:
    o: Options = run.options
    if o.keep_tracker and "memory" not in run.done:
        config, net = trained_tracker(o)
    else:
        _, config, net = load_folder(run.folder_of("memory") / "model")
    cells = o.cells or max(n for n in range(1, 8) if config.grid % n == 0)
    memory = MemoryConfig(o.perceiver_depth, o.latents, cells, **_adoption(o, config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        student = with_memory(config, net, memory)
    if o.perceiver_start:
        common.load_weights(student, Path(o.perceiver_start), ("memory.",))
    student_config = dataclasses.replace(config, memory=memory)
    task = _clip_task(o, student_config, student, o.growth // 2, (config, net))
    return task, _loop_settings(o, steps=600, lr=6e-4, parts=("memory",))


def _save_model(run: Run, task: Task) -> None:
    if isinstance(task, MemoryTask):
        name = MODEL_NAME + ("-perceiver" if run.stage == "perceiver" else "")
        save_model(run.stage_folder / "model", name, task.config, task.module)


RECIPE = Recipe(
    "stickers-video",
    "the packaged model learns to track: a full memory, then a Perceiver distilled from it",
    (
        Stage("clicks", _prepare_clicks, "head and pyramid learn clicks, boxes and masks"),
        Stage("memory", _prepare_memory, "they and a full memory learn from clips", _save_model),
        Stage("perceiver", _prepare_perceiver, "a Perceiver learns from the memory", _save_model),
    ),
    Options(),
)

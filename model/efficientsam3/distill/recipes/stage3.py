"""Stage 3 for released or merged models: parts of a whole one learn from phrases with masks.

Defaults are upstream's released recipe: image encoder and pyramid learn, the heads are as they
were.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

from ...build import ModelConfig
from ...nn.detector import Detector
from ...variants import find_variant
from ...weights import download, load_upstream
from ..collate import Collator, PromptSettings
from ..data.batches import Joined, Made, Shuffled, hold_out
from ..data.coco import Coco, Lvis
from ..data.saco import SaCo
from ..data.sample import SampleSource
from ..errors import DataError
from ..feature_distillation import FeatureDistillation
from ..merge import Partial, load_whole, merge, save_both
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings, SettingsError
from ..stage3 import GroundingTask
from ..task import Task
from ..teachers import ImageTeacher, PyramidTeacher
from .stage1_image import ranks, steps_of

PART_FILE = "part.safetensors"
LEVELS = ("pyramid", "map")
LR, VISION, TEXT = 8e-5, 2.5e-5, 5e-6
"""Learning rates of the heads, of image encoder and pyramid, of the text encoder."""
RAMP = 20
"""Steps of warm-up and cool-down, and the time scale of the decay between them."""


@dataclass(frozen=True)
class Options:
    """Args:
    model: what is trained: a name of ``list_models()``, a checkpoint, or a model's folder.
    parts: what learns, as beginnings of names: "trunk", "neck", "text", "geometry", "fusion",
        "decoder", "scoring", "masks".
    saco, coco, lvis: annotation files, and the folders of their images.
    scenes: scenes of stickers among the data, as many as that in an epoch; size: their side.
    teacher: a whole model whose image features are to be kept, as ``model``; none: none.
    level: of the features, "pyramid" or "map". form: how they are compared, "cosine" or "l2".
    held_out: images for validation. seed: of the split and of all orders.
    batch: images a process and step. prompts: phrases of an image. workers: processes that
        make batches. epochs: over all data.
    """

    model: str = ""
    parts: tuple[str, ...] = ("trunk", "neck")
    saco: tuple[str, ...] = ()
    saco_images: str = ""
    coco: str = ""
    coco_images: str = ""
    lvis: str = ""
    lvis_images: str = ""
    scenes: int = 0
    size: int = 504
    teacher: str = ""
    level: str = "pyramid"
    form: str = "cosine"
    held_out: int = 256
    seed: int = 0
    batch: int = 2
    prompts: int = 32
    workers: int = 8
    epochs: int = 20


def whole(model: str) -> tuple[str, ModelConfig, Detector]:
    """A model by its name in the table, or from a file or folder."""
    if not model:
        raise DataError("say --set model=NAME, or =FILE, or =FOLDER: what is to be trained")
    if Path(model).exists():
        return load_whole(model)
    variant = find_variant(model)
    return (variant.name, *load_upstream(download(variant.name), variant))


def data(o: Options) -> SampleSource:
    """All data sets that the options name, as one."""
    for name in ("saco", "coco", "lvis"):
        if getattr(o, name) and not getattr(o, f"{name}_images"):
            raise DataError(f"say --set {name}_images=FOLDER, where the images of {name} are")
    sources: list[SampleSource] = []
    if o.saco:
        sources.append(SaCo(o.saco, o.saco_images))
    if o.coco:
        sources.append(Coco(o.coco, o.coco_images))
    if o.lvis:
        sources.append(Lvis(o.lvis, o.lvis_images))
    if o.scenes:
        sources.append(scenes(o))
    if not sources:
        raise DataError("say what to learn from: --set saco=FILE,FILE, coco=FILE or lvis=FILE")
    return Joined(*sources)


def scenes(o: Options) -> SampleSource:
    """Scenes of stickers, made when asked for."""
    from ...scenes.art import Art
    from ...scenes.compose import World
    from ...scenes.concepts import SPLITS
    from ..data.scenes import SceneSource

    return Made(SceneSource(World(Art.open(), SPLITS["train"], o.size)), o.scenes)


def kept(o: Options) -> FeatureDistillation | None:
    """The teacher's part of the loss."""
    if o.level not in LEVELS:
        raise SettingsError(f"level is {o.level!r}; known: {', '.join(LEVELS)}")
    if not o.teacher:
        return None
    name, config, net = whole(o.teacher)
    if o.level == "map":
        return FeatureDistillation(ImageTeacher.of(net, config, name), o.form)
    return FeatureDistillation(PyramidTeacher.of(net, name), o.form)


def tune(run: Run) -> tuple[Task, LoopSettings]:
    """The parts learn to ground."""
    o: Options = run.options
    _, config, net = whole(o.model)
    training, held_out = hold_out(data(o), o.held_out, o.seed)
    task = GroundingTask(
        copy.deepcopy(net).requires_grad_(True),  # loaded weights lie in their file, and are frozen
        Collator(config, PromptSettings(prompts=o.prompts)),
        Shuffled(training, o.seed),
        batch=o.batch,
        teacher=kept(o),
        held_out=held_out,
        seed=o.seed,
        workers=o.workers,
    )
    steps = steps_of(len(training), o.batch, o.epochs)
    settings = LoopSettings(
        steps=steps,
        lr=LR,
        schedule="inverse-sqrt",
        warmup=min(RAMP, steps // 4),
        cooldown=min(RAMP, steps // 4),
        timescale=RAMP,
        weight_decay=0.1,
        clip=0.1,
        parts=o.parts,
        scales={"trunk": VISION / LR, "neck": VISION / LR, "text": TEXT / LR},
        layer_decay={"trunk": 0.9},
        precision="bf16-mixed",
        # A batch without objects asks nothing of the mask head.
        strategy="ddp_find_unused_parameters_true" if ranks()[1] > 1 else "auto",
        validate_every=1000,
        picture_every=5000,
        seed=o.seed,
    )
    return task, settings


def write_part(run: Run, task: Task) -> None:
    """What learned, alone."""
    if isinstance(task, GroundingTask):
        part = Partial.of(task.collator.config, task.module)
        part.save(run.stage_folder / PART_FILE)


def put_together(run: Run) -> None:
    """The parts in the model that they are of: a folder, and a file as upstream's."""
    if ranks()[0]:
        return
    name, config, net = whole(run.options.model)
    config, net = merge(config, net, Partial.load(run.of("tune") / PART_FILE))
    save_both(run.stage_folder, f"{name}-tuned", config, net)


RECIPE = Recipe(
    "stage3",
    "parts of a whole model, released or merged, learn from SA-Co, COCO and LVIS",
    (
        Stage("tune", tune, "image encoder and pyramid learn to ground", write_part),
        Stage("merge", put_together, "what learned in the whole model"),
    ),
    Options(),
)

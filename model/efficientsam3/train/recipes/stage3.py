"""Stage 3 for released or merged models: parts of a whole model learn from phrases with masks.

Defaults are those of upstream's released recipe: image encoder and pyramid learn, the heads stay
as they are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from ...data.annotated_images import AnnotatedImages
from ...data.augment import Augment
from ...data.coco import CocoAnnotations
from ...data.saco import SaCoAnnotations
from ...data.sample import SampleSource
from ...data.subsets import Joined, hold_out
from ...errors import DataError
from ..errors import SettingsError
from ..losses.feature_distillation import FeatureDistillation
from ..losses.grounding import GroundingLoss
from ..merge import PartialCheckpoint
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..task import Task
from ..tasks.grounding import GroundingTask
from ..tasks.grounding_batches import GroundingCollator, PromptSettings
from ..teachers import ImageTeacher, PyramidTeacher
from .common import (
    PART_FILE,
    epoch_steps,
    load_named_model,
    save_merged,
)

LEVELS = ("pyramid", "map")
# Learning rates of the heads, of image encoder and pyramid, and of the text encoder.
HEAD_LR, VISION_LR, TEXT_LR = 8e-5, 2.5e-5, 5e-6
# Steps of warm-up and cool-down, and the time scale of the decay between them.
RAMP_STEPS = 20


@dataclass(frozen=True)
class Options:
    """Options of the recipe.

    Attributes:
        model: Model to train: a name of ``list_models()``, a checkpoint or a folder.
        parts: Parts that learn, as beginnings of names: "trunk", "neck", "text", "geometry",
            "fusion", "decoder", "scoring", "masks".
        saco: Annotation files of SA-Co.
        saco_images: Folder of their images.
        coco: Annotation file of COCO.
        coco_images: Folder of its images.
        lvis: Annotation file of LVIS.
        lvis_images: Folder of its images.
        teacher: Model whose image features are to be kept, named as ``model``; empty: none.
        level: Features that are kept: "pyramid" or "map".
        form: How they are compared: "cosine" or "l2".
        held_out: Images for validation.
        seed: Seed of the split and of the order of samples.
        batch: Images a process and step.
        prompts: Phrases of an image, at most.
        workers: Processes that make batches, for each training process.
        epochs: Epochs over all data.
        augment: Whether images are flipped, cropped and changed in color.
    """

    model: str = ""
    parts: tuple[str, ...] = ("trunk", "neck")
    saco: tuple[str, ...] = ()
    saco_images: str = ""
    coco: str = ""
    coco_images: str = ""
    lvis: str = ""
    lvis_images: str = ""
    teacher: str = ""
    level: str = "pyramid"
    form: str = "cosine"
    held_out: int = 256
    seed: int = 0
    batch: int = 2
    prompts: int = 32
    workers: int = 8
    epochs: int = 20
    augment: bool = True

    def sources(self) -> list[SampleSource]:
        """The data sets that the options name. A recipe with other data overrides this.

        Raises:
            DataError: A data set without a folder of images.
        """
        for name in ("saco", "coco", "lvis"):
            if getattr(self, name) and not getattr(self, f"{name}_images"):
                raise DataError(
                    f"{name}_images is not set: add --set {name}_images=FOLDER, the images of "
                    f"{name}"
                )
        sources: list[SampleSource] = []
        if self.saco:
            sources.append(AnnotatedImages(self.saco_images, *map(SaCoAnnotations, self.saco)))
        if self.coco:
            annotations = CocoAnnotations(self.coco, negatives=8)
            sources.append(AnnotatedImages(self.coco_images, annotations))
        if self.lvis:
            annotations = CocoAnnotations(self.lvis, synonyms=True)
            sources.append(AnnotatedImages(self.lvis_images, annotations))
        return sources


def _join_sources(o: Options) -> SampleSource:
    sources = o.sources()
    if not sources:
        raise DataError(
            "there is no data to learn from: add --set saco=FILE,FILE, --set coco=FILE or --set "
            "lvis=FILE"
        )
    return Joined(*sources)


def _feature_losses(o: Options) -> tuple[FeatureDistillation, ...]:
    """The part of the loss that keeps the teacher's features, if there is a teacher."""
    if o.level not in LEVELS:
        raise SettingsError(f"level is {o.level!r}; known: {', '.join(LEVELS)}")
    if not o.teacher:
        return ()
    name, config, net = load_named_model(o.teacher, "teacher")
    if o.level == "map":
        return (FeatureDistillation(ImageTeacher.of(net, config, name), o.form),)
    return (FeatureDistillation(PyramidTeacher.of(net, name), o.form),)


def tune(run: Run) -> tuple[Task, LoopSettings]:
    """Stage "tune": the chosen parts learn to ground phrases.

    Args:
        run: The run.
    """
    o: Options = run.options
    _, config, net = load_named_model(o.model, "model")
    training, held_out = hold_out(_join_sources(o), o.held_out, o.seed)
    task = GroundingTask(
        copy.deepcopy(net).requires_grad_(True),  # loaded weights are frozen, and mapped from disk
        GroundingCollator(config, PromptSettings(prompts=o.prompts)),
        training,
        batch=o.batch,
        augment=Augment() if o.augment else None,
        criterion=GroundingLoss(extra=_feature_losses(o)),
        held_out=held_out,
        seed=o.seed,
        workers=o.workers,
    )
    steps = epoch_steps(len(training), o.batch, o.epochs)
    ramp = min(RAMP_STEPS, steps // 4)
    vision, text = VISION_LR / HEAD_LR, TEXT_LR / HEAD_LR
    settings = LoopSettings(
        steps=steps,
        lr=HEAD_LR,
        schedule="inverse-sqrt",
        warmup=ramp,
        cooldown=ramp,
        timescale=RAMP_STEPS,
        weight_decay=0.1,
        clip=0.1,
        parts=o.parts,
        scales={"trunk": vision, "neck": vision, "text": text},
        layer_decay={"trunk": 0.9},
        precision="bf16-mixed",
        validate_every=1000,
        picture_every=5000,
        seed=o.seed,
    )
    return task, settings


def _save_part(run: Run, task: Task) -> None:
    if isinstance(task, GroundingTask):
        part = PartialCheckpoint.of(task.collator.config, task.module)
        part.save(run.stage_folder / PART_FILE)


def merge_parts(run: Run) -> None:
    """Stage "merge": the parts in the model that they are of.

    Args:
        run: The run.
    """
    name, config, net = load_named_model(run.options.model, "model")
    part = PartialCheckpoint.load(run.folder_of("tune") / PART_FILE)
    save_merged(run, f"{name}-tuned", config, net, part)


RECIPE = Recipe(
    "stage3",
    "parts of a whole model, released or merged, learn from SA-Co, COCO and LVIS",
    (
        Stage("tune", tune, "image encoder and pyramid learn to ground phrases", _save_part),
        Stage("merge", merge_parts, "the trained parts in the whole model", alone=True),
    ),
    Options(),
)

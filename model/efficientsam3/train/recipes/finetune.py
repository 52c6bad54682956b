"""Fine-tuning: a model learns the phrases of a small data set, and an adapter holds the changes."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from ...checkpoints.adapter import ADAPTER_FILE
from ...config import OPTIONAL, REQUIRED, ModelConfig
from ...data.annotated_images import AnnotatedImages
from ...data.augment import Augment
from ...data.coco import CocoAnnotations
from ...data.formats import annotation_format
from ...data.json_records import read_json
from ...data.name_lists import first_names
from ...data.saco import SaCoAnnotations
from ...data.sample import SampleSource
from ...data.subsets import Subset, split_indices
from ...data.types import ImageAnnotations
from ...devices import best_dtype
from ...errors import DataError, PromptWarning
from ...loading import open_weights
from ...nn.detector import Detector
from ..errors import SettingsError
from ..logs import CsvLog
from ..loop import VALIDATION_FILE
from ..losses.grounding import GroundingLoss
from ..losses.late import LateGroundingLoss
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings, check
from ..task import Task
from ..tasks.fine_tuning import FineTuning
from ..tasks.grounding_batches import GroundingCollator, PromptSettings
from .common import local_device, rank_and_world

STAGE = "tune"
NEEDED = ("trunk", "neck", "text", "geometry", "fusion", "decoder", "scoring", "masks")
"""Parts that answer phrases. The others answer clicks and follow objects in videos."""
MOST_HELD_OUT = 100
STEP_LIMITS = (200, 4000)
"""Fewest and most steps, where the user sets none."""


@dataclass(frozen=True)
class Options:
    """Options of the recipe.

    Attributes:
        model: Name of ``list_models()``, or a saved folder.
        checkpoint: As ``efficientsam3.load`` takes it, and so are the next three; empty: none.
        base: A second file, for parts that the first lacks.
        text: Another text encoder.
        context: Tokens of a phrase.
        data: Annotation file in COCO's format, whose categories are the phrases, or in SA-Co's.
        images: Folder of its images.
        held_out_data: Annotation file of the held-out images; empty: some of the images are held
            out.
        held_out_images: Folder of these images.
        held_out: Number of images that are held out; 0: none, so that there are no figures. None: a
            tenth, at least 30 or a fifth, at most 100.
        adapt: Parts that get low-rank changes, as beginnings of names: "trunk", "neck", "text",
            "geometry", "fusion", "decoder", "scoring", "masks". None: all of these, or none where
            ``parts`` are given.
        parts: Parts that train whole, named likewise.
        rank: Rank of the changes, at least 1.
        scale: Factor on the changes, more than 0.
        lr: Highest learning rate of the changes.
        whole_lr: Highest learning rate of weights that train whole.
        epochs: Epochs over the data; there are at least 200 and at most 4,000 steps.
        batch: Images a process and step.
        prompts: Phrases of an image and step, at most.
        negatives: Absent phrases that an image is asked for, at most, drawn of the categories.
        augment: Whether images are flipped, cropped and changed in color.
        workers: Processes that make batches, for each training process.
        seed: Seed of everything.
        name: Name of the adapter; empty: the name of the run's folder.
    """

    model: str = "efficientsam3-tinyvit-11m"
    checkpoint: str = ""
    base: str = ""
    text: str = ""
    context: int | None = None
    data: str = ""
    images: str = ""
    held_out_data: str = ""
    held_out_images: str = ""
    held_out: int | None = None
    adapt: tuple[str, ...] | None = None
    parts: tuple[str, ...] = ()
    rank: int = 8
    scale: float = 1.0
    lr: float = 1e-3
    whole_lr: float = 1e-4
    epochs: int = 5
    batch: int = 2
    prompts: int = 4
    negatives: int = 8
    augment: bool = True
    workers: int = 1
    seed: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "batch", "prompts"):
            check(self, name, getattr(self, name) >= 1, "at least 1")
        for name in ("negatives", "workers", "seed"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("lr", "whole_lr", "scale"):
            check(self, name, 0 < getattr(self, name) < float("inf"), "more than 0, and finite")
        held_out = self.held_out is None or self.held_out >= 0
        check(self, "held_out", held_out, "a number of images, or none for a tenth")
        known = {*REQUIRED, *OPTIONAL}
        for name in ("adapt", "parts"):
            first = [beginning.split(".", 1)[0] for beginning in getattr(self, name) or ()]
            valid = set(first) <= known
            check(self, name, valid, f"of {', '.join(NEEDED)}, or beginnings of names in them")
        if self.adapt == () and not self.parts:
            raise SettingsError("nothing trains: adapt and parts are both empty")


# Data -----------------------------------------------------------------------------------------


def read_data(path: str, images: str, negatives: int) -> AnnotatedImages:
    """Read a data set, and check that its images are there.

    Args:
        path: Annotation file in COCO's or SA-Co's format.
        images: Folder of its images.
        negatives: Absent categories that an image is asked for, at most.

    Raises:
        DataError: The file is of another format or damaged, or images are missing.
    """
    reader: ImageAnnotations
    content = read_json(path)
    kind = annotation_format(Path(path), content)
    if kind == "saco":
        reader = SaCoAnnotations(path, [content])
    elif kind == "veval":
        raise DataError(f"{path} has videos; fine-tuning takes images, in COCO's or SA-Co's format")
    else:
        reader = CocoAnnotations(path, content, negatives=negatives)
    source = AnnotatedImages(images, reader)
    names = [source.key(index) for index in range(len(source))]
    missing = [name for name in names if not (source.images / name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images of {path} are not in {images}: "
            f"{first_names(missing)}. Name the folder that their paths begin in"
        )
    _check_phrases(path, reader)
    return source


def _check_phrases(path: str, reader: ImageAnnotations) -> None:
    """Refuse data in which no phrase is present; warn where none is absent."""
    present = absent = False
    for index in range(len(reader)):
        queries = reader[index].queries
        present = present or any(query.objects for query in queries)
        absent = absent or any(not query.objects for query in queries)
        if present and absent:
            return
    if not present:
        raise DataError(f"{path} has no annotated object: there is nothing to learn from")
    warnings.warn(
        f"every phrase of {path} is in every image, so the model does not learn when one is "
        "absent: add images without these objects, or further categories",
        PromptWarning,
        stacklevel=2,
    )


def _split(o: Options) -> tuple[SampleSource, SampleSource]:
    """The images for training, and those that are held out."""
    for name in ("data", "images"):
        if not getattr(o, name):
            raise DataError(f"{name} is not set: fine-tuning needs an annotation file and images")
    if bool(o.held_out_data) != bool(o.held_out_images):
        raise DataError("held_out_data and held_out_images go together: a file and its images")
    source = read_data(o.data, o.images, o.negatives)
    if o.held_out_data:
        held_out: SampleSource = read_data(o.held_out_data, o.held_out_images, o.negatives)
        if o.held_out is not None:
            held_out = Subset(held_out, range(min(o.held_out, len(held_out))))
        return source, held_out
    total = len(source)
    count = o.held_out
    if count is None:
        count = min(MOST_HELD_OUT, max(total // 10, min(30, total // 5)))
    train, kept = split_indices(total, count, o.seed, "images")
    return Subset(source, train), Subset(source, kept)


# The stage ------------------------------------------------------------------------------------


def tune(run: Run) -> tuple[Task, LoopSettings]:
    """Stage "tune": the figures before, training, and the figures after.

    Args:
        run: The run.
    """
    o: Options = run.options
    training, held_out = _split(o)
    name, config, net = _open(o)
    adapt = o.adapt
    if adapt is None:
        adapt = () if o.parts else tuple(part for part in NEEDED if net.has(part))
    task = FineTuning(
        copy.deepcopy(net),  # its weights are mapped from disk
        GroundingCollator(config, PromptSettings(prompts=o.prompts)),
        training,
        model=name,
        adapt=adapt,
        train_whole=o.parts,
        rank=o.rank,
        scale=o.scale,
        whole_lr=o.whole_lr / o.lr,
        batch=o.batch,
        augment=Augment() if o.augment else None,
        criterion=GroundingLoss() if config.late is None else LateGroundingLoss(),
        held_out=held_out,
        seed=o.seed,
        workers=o.workers,
    )
    epoch = len(training) / (o.batch * rank_and_world()[1])
    least, most = STEP_LIMITS
    steps = round(min(most, max(least, epoch * o.epochs)))
    settings = LoopSettings(
        steps=steps,
        lr=o.lr,
        warmup=min(20, steps // 10),
        weight_decay=0.01,
        ema=0.99,
        precision="bf16-mixed" if best_dtype(local_device()) == torch.bfloat16 else "32-true",
        validate_first=True,
        picture_every=steps,
        save_every=0,
        save_minutes=2,
        seed=o.seed,
    )
    return task, settings


def _open(o: Options) -> tuple[str, ModelConfig, Detector]:
    """Read the learned weights."""
    name, config, source = open_weights(
        o.model,
        checkpoint=o.checkpoint or None,
        text=o.text or None,
        context=o.context,
        base=o.base or None,
    )
    return name, config, source()


def write_adapter(run: Run, task: Task) -> None:
    """Write the adapter to the folder of the run, with its figures.

    Args:
        run: The run.
        task: What was trained.
    """
    o: Options = run.options
    if not isinstance(task, FineTuning):
        return
    rows = CsvLog(run.stage_folder / VALIDATION_FILE, 10**9)
    figures = {"before": rows.first(), "after": rows.last()} if rows.rows else {}
    adapter = task.make_adapter(o.name or run.folder.absolute().name, figures)
    adapter.save(run.folder / ADAPTER_FILE)


RECIPE = Recipe(
    "finetune",
    "a model learns the phrases of a small data set: low-rank changes, in an adapter",
    (Stage(STAGE, tune, "figures before, training, figures after", write_adapter),),
    Options(),
)

"""Stage 1 for text: a small text encoder learns from SAM3's, on captions and noun phrases."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from ...config import ModelConfig
from ...data.phrases import read_phrases
from ...errors import DataError
from ..merge import PartialCheckpoint
from ..pretrained_init import init_text
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..task import Task
from ..tasks.text_distillation import TextDistillation, TextSettings, TextStudent
from ..teachers import TextTeacher
from .common import (
    build_part,
    epoch_steps,
    load_named_model,
    load_trained_part,
    rank_and_world,
    save_merged,
)

# Batches of one step.
ACCUMULATE = 2


@dataclass(frozen=True)
class Options:
    """Options of the recipe.

    Attributes:
        captions: Text of the stage "captions": files or folders of .parquet, .json or .txt.
        phrases: Text of the stage "phrases", as ``captions``; empty: the captions.
        column: Column of parquet files with the text.
        teacher: SAM3's checkpoint: a model's name, a file or a folder.
        student: Text encoder that learns, a name of ``build.TEXTS``.
        context: Number of tokens that it reads.
        init: Its initial weights: a MobileCLIP checkpoint of Apple's, or "nothing".
        held_out: Phrases for validation.
        seed: Seed of the split, of the initial weights and of the order of phrases.
        batch: Phrases a process and batch.
        workers: Processes that prepare batches, for each training process.
        epochs: Epochs of the stage "captions".
        phrase_epochs: Epochs of the stage "phrases".
    """

    captions: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    column: str = "re_caption"
    teacher: str = ""
    student: str = "mobileclip-s0"
    context: int = 16
    init: str = "nothing"
    held_out: int = 1024
    seed: int = 0
    batch: int = 64
    workers: int = 4
    epochs: int = 1
    phrase_epochs: int = 100


def split_phrases(
    o: Options, paths: Sequence[str], option: str
) -> tuple[Sequence[str], Sequence[str]]:
    """The phrases for training, and those held out for validation.

    Args:
        o: Options of the recipe.
        paths: Files or folders of text.
        option: Name of the option that holds them, for the message.

    Raises:
        DataError: There are no files, or too few phrases.
    """
    if not paths:
        raise DataError(f"{option} is not set: add --set {option}=FILE,FILE, text to learn from")
    sources = [read_phrases(path, o.column) for path in paths]
    total = sum(map(len, sources))
    if total <= o.held_out:
        raise DataError(
            f"there are {total} phrases, and {o.held_out} are to be held out: add --set "
            f"held_out=NUMBER, less than {total}"
        )
    joined: Any = ConcatDataset(sources)  # type: ignore[arg-type] # any sequences do
    order = np.random.default_rng(o.seed).permutation(total).tolist()
    cut = total - o.held_out
    training: Any = Subset(joined, order[:cut])
    held_out: Any = Subset(joined, order[cut:])
    return training, held_out


def make_student(config: ModelConfig, o: Options) -> tuple[ModelConfig, nn.Module]:
    """The student's configuration and its untrained text encoder.

    Args:
        config: Configuration of the teacher.
        o: Options of the recipe.
    """
    config = dataclasses.replace(config, text=o.student, context=o.context)
    return config, build_part(dataclasses.replace(config, parts=()), "text", o.seed)


def distill_captions(run: Run) -> tuple[Task, LoopSettings]:
    """Stage "captions": the student's tokens of captions become like the teacher's.

    Args:
        run: The run.
    """
    o: Options = run.options
    return _distill(run, o.captions, "captions", o.epochs, 5e-3)


def distill_phrases(run: Run) -> tuple[Task, LoopSettings]:
    """Stage "phrases": the same for noun phrases, which are what a model is prompted with.

    Args:
        run: The run.
    """
    o: Options = run.options
    return _distill(run, o.phrases or o.captions, "phrases", o.phrase_epochs, 3e-3)


def _distill(
    run: Run, paths: Sequence[str], stage: str, epochs: int, lr: float
) -> tuple[Task, LoopSettings]:
    o: Options = run.options
    _, config, net = load_named_model(o.teacher, "teacher")
    _, text = make_student(config, o)
    if stage == "captions":
        init_text(text, o.init)
    else:
        load_trained_part(run, "captions", "text", text)
    training, held_out = split_phrases(o, paths, stage)
    numbers = TextSettings(o.batch, o.workers, o.seed, validation=o.held_out)
    teacher = TextTeacher.of(net, config)
    task = TextDistillation(text, training, teacher, None, numbers, held_out)
    steps = epoch_steps(len(training), o.batch, epochs, ACCUMULATE)
    lr *= min(1.0, ACCUMULATE * o.batch * rank_and_world()[1] / 512)
    settings = LoopSettings(
        steps=steps,
        accumulate=ACCUMULATE,
        lr=lr,
        min_lr=min(lr, 5e-6),
        warmup=steps // 10,
        weight_decay=0.05,
        no_decay=("embedding", "positions"),
        clip=1.0,
        layer_decay={"text": 0.9},
        precision="bf16-mixed",
        validate_every=2000,
        seed=o.seed,
    )
    return task, settings


def merge_student(run: Run) -> None:
    """Stage "merge": the student's text encoder in the teacher's model.

    Args:
        run: The run.
    """
    o: Options = run.options
    name, config, net = load_named_model(o.teacher, "teacher")
    student, text = make_student(config, o)
    load_trained_part(run, "phrases", "text", text)
    part = PartialCheckpoint.of(student, TextStudent(text), ["text"])
    part.save(run.stage_folder / "text.safetensors")
    save_merged(run, f"{name}-{o.student}", config, net, part)


RECIPE = Recipe(
    "stage1-text",
    "a small text encoder learns from SAM3's: captions, then noun phrases",
    (
        Stage("captions", distill_captions, "tokens of Recap-DataComp-1B's captions"),
        Stage("phrases", distill_phrases, "tokens of the phrases of SA-Co, COCO and LVIS"),
        Stage("merge", merge_student, "the student's encoder in a whole model", alone=True),
    ),
    Options(),
)

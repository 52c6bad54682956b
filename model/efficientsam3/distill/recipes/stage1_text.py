"""Stage 1 for words: a small text encoder learns from SAM3's, on captions and phrases."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch

from ...build import ModelConfig, build
from ...nn.detector import Detector
from ...types import Array
from ...weights import read_state
from ..data.phrases import read_phrases
from ..errors import DataError
from ..merge import Partial, load_whole, merge, save_both
from ..recipe import Recipe, Run, Stage
from ..settings import LoopSettings
from ..stage1_text import TextDistillation, TextSettings, TextStudent
from ..starts import start_text
from ..task import Task
from ..teachers import TextTeacher
from .stage1_image import ranks, steps_of


@dataclass(frozen=True)
class Options:
    """Args:
    captions, phrases: files or folders of text, .parquet, .json or .txt, for the two stages.
    column: of parquet files.
    teacher: SAM3's checkpoint, a file or a folder.
    student: a text encoder of ``build.TEXTS``; context: its tokens.
    start: a MobileCLIP checkpoint of Apple's, or "nothing".
    held_out: phrases for validation. seed: of the split and of all orders.
    batch: phrases a process and step. workers: processes that prepare them.
    epochs, phrase_epochs: of the two stages.
    """

    captions: tuple[str, ...] = ()
    phrases: tuple[str, ...] = ()
    column: str = "re_caption"
    teacher: str = ""
    student: str = "mobileclip-s0"
    context: int = 16
    start: str = "nothing"
    held_out: int = 1024
    seed: int = 0
    batch: int = 64
    workers: int = 4
    epochs: int = 1
    phrase_epochs: int = 100


class Chosen(Sequence[str]):
    """Some phrases of several sources, read when asked for. rows: (N,) int64 places in all."""

    def __init__(self, sources: list[Sequence[str]], rows: Array) -> None:
        self.sources, self.rows = sources, rows
        self._starts = list(itertools.accumulate(map(len, sources), initial=0))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self.rows[index])
        part = bisect.bisect_right(self._starts, row) - 1
        return self.sources[part][row - self._starts[part]]


def whole(run: Run) -> tuple[str, ModelConfig, Detector]:
    """The teacher."""
    if not run.options.teacher:
        raise DataError("say --set teacher=FILE, SAM3's checkpoint")
    return load_whole(run.options.teacher)


def split(o: Options, paths: Sequence[str], name: str) -> tuple[Chosen, Chosen]:
    """For training, and held out."""
    if not paths:
        raise DataError(f"say --set {name}=FILE,FILE: text to learn from")
    sources = [read_phrases(path, o.column) for path in paths]
    total = sum(map(len, sources))
    if total <= o.held_out:
        raise DataError(
            f"there are {total} phrases, and {o.held_out} are to be held out: say "
            "--set held_out=NUMBER"
        )
    order = np.random.default_rng(o.seed).permutation(total)
    cut = total - o.held_out
    return Chosen(sources, order[:cut]), Chosen(sources, order[cut:])


def student(config: ModelConfig, o: Options) -> tuple[ModelConfig, torch.nn.Module]:
    """The student's numbers, and its text encoder untaught."""
    config = dataclasses.replace(config, text=o.student, context=o.context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        text: torch.nn.Module = build(dataclasses.replace(config, parts=())).part("text")
    return config, text


def task_of(
    run: Run, text: torch.nn.Module, paths: Sequence[str], name: str
) -> tuple[TextDistillation, int]:
    """The task, and how many phrases it has."""
    o: Options = run.options
    _, config, net = whole(run)
    training, held_out = split(o, paths, name)
    settings = TextSettings(o.batch, o.workers, o.seed, validation=o.held_out)
    teacher = TextTeacher.of(net, config)
    task = TextDistillation(text, training, teacher, None, settings, held_out)
    return task, len(training)


def captions(run: Run) -> tuple[Task, LoopSettings]:
    """Its tokens of captions become the teacher's."""
    o: Options = run.options
    _, text = student(whole(run)[1], o)
    start_text(text, o.start)
    task, count = task_of(run, text, o.captions, "captions")
    steps = steps_of(count, o.batch, o.epochs, accumulate=2)
    return task, settings_of(o, steps, 5e-3)


def phrases(run: Run) -> tuple[Task, LoopSettings]:
    """Its tokens of noun phrases, which are what it will be asked, become the teacher's."""
    o: Options = run.options
    _, text = student(whole(run)[1], o)
    taught(run, "captions", text)
    task, count = task_of(run, text, o.phrases or o.captions, "phrases")
    steps = steps_of(count, o.batch, o.phrase_epochs, accumulate=2)
    return task, settings_of(o, steps, 3e-3)


def settings_of(o: Options, steps: int, lr: float) -> LoopSettings:
    lr *= min(1.0, 2 * o.batch * ranks()[1] / 512)
    return LoopSettings(
        steps=steps,
        accumulate=2,
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


def taught(run: Run, stage: str, text: torch.nn.Module) -> None:
    """Put the result of an earlier stage into a text encoder."""
    state = read_state(run.weights(stage))
    text.load_state_dict({k.removeprefix("text."): v for k, v in state.items()})


def put_together(run: Run) -> None:
    """The student's encoder in the teacher's model: a folder, and a file as upstream's."""
    if ranks()[0]:
        return
    o: Options = run.options
    name, config, net = whole(run)
    small, text = student(config, o)
    taught(run, "phrases", text)
    part = Partial.of(small, TextStudent(text), ["text"])
    part.save(run.stage_folder / "text.safetensors")
    config, net = merge(config, net, part)
    save_both(run.stage_folder, f"{name}-{o.student}", config, net)


RECIPE = Recipe(
    "stage1-text",
    "a small text encoder learns from SAM3's: captions, then noun phrases",
    (
        Stage("captions", captions, "tokens of Recap-DataComp-1B's captions"),
        Stage("phrases", phrases, "tokens of SA-Co's, COCO's and LVIS' phrases"),
        Stage("merge", put_together, "the student's encoder in a whole model"),
    ),
    Options(),
)

"""A small model with late fusion, taught by a real teacher and by every object of every scene.

A small text encoder learns from a sentence encoder ("text"). Then image encoder and heads learn
from scenes: boxes, masks and names of all objects, and prompts that choose among them ("objects").
The rate is constant, so that this stage goes on for as long as there is time: ``objects.steps`` may
be set to more or less at any time. Then the rate falls while images are larger, and a coarse stage,
windows of finer features and the correction of masks are added ("finer"). At last scores are
learned with everything else fixed ("calibrate").
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from efficientsam3.checkpoints.read import read_state
from efficientsam3.config import ModelConfig
from efficientsam3.errors import CheckpointError
from efficientsam3.io.atomic import replacing
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.train.merge import load_model, save_model
from efficientsam3.train.recipe import Recipe, Run, Stage
from efficientsam3.train.settings import LoopSettings, check
from efficientsam3.train.task import Task

from ..art import StickerArt
from ..concepts import SPLITS, part_of
from ..samples import to_training_sample
from ..scenes import SceneGenerator
from ..training.calibrate import calibrate
from ..training.feature_teacher import HEADS, FeatureTeacher, TeacherHeads
from ..training.object_batches import ObjectBatch, ObjectBatches, PromptShares
from ..training.object_loss import ObjectLoss
from ..training.object_task import ObjectTask
from ..training.phrase_distillation import PhraseDistillation, load_phrases
from ..training.phrase_table import PhraseTable
from ..training.phrase_truth import list_phrases, phrase_truth
from ..training.scores import fit_rescorer, read_answers
from ..training.sticker_teacher import StickerTeacher, load_sticker_vectors
from .common import MODEL_NAME, loop_settings
from .object_models import (
    RESCORER,
    average_with,
    load_known,
    load_start,
    new_detector,
    objects_config,
    with_late,
)
from .stickers import CALIBRATION_SEED

VALIDATED = {"seen": 64, "unseen-style": 32, "unseen-concepts": 32}
"""Splits of validation, and their numbers of scenes."""
LARGE_FIRST, MOSTLY_FREE = (2, 2, 0, 3), (0, 0, 0, 4)
"""Objects on a side of tiled images, by turns, in "objects" and in "finer"; 0: free scenes. Names
are learned from large objects. With three quarters of free scenes the loss of names fell by 0.05 in
100 steps, with a quarter of them by 0.2. In "finer" three quarters of the images are free scenes,
because objects of tiled scenes are named right far more often."""
RESCORING = 48
"""Width of the networks that correct scores."""
SCORED_PROMPTS = 12
"""Prompts of a scene, at most, from which scores are learned."""
SCORED_BACKGROUNDS = 256
"""Different backgrounds of these scenes."""
SCORED_SEED = 1 << 45
"""Seed of the first of these scenes."""
WINDOWS, REFINEMENT, COARSE = 2, 32, 256
"""Layers that read windows, channels of the network that corrects masks, and channels of the stage
of stride 32, from "finer" on."""


@dataclass(frozen=True)
class Options:
    """Options of the recipe."""

    seed: int = 0
    """Seed of everything."""
    start: str = ""
    """File of weights that "objects" starts with, with text encoder and heads of the teacher;
    empty: untrained weights behind the text encoder of the stage "text"."""
    resolution: int = 224
    """Side of the images in pixels, a multiple of 16."""
    final_resolution: int = 336
    """Side of the images of the stage "finer", a multiple of 16."""
    most_masks: int = 0
    """Objects of a scene, at most, whose masks a step of "finer" learns, at random; 0: all."""
    batch: int = 16
    """Scenes of a process and step; below 16, 1 x 1 convolutions are slow with one thread."""
    uses: int = 1
    """How often each scene is used. With 4, "finer" learned its scenes by heart."""
    backgrounds: int = 2048
    """Number of different backgrounds in training."""
    teacher: float = 2.0
    """Weight of the distance to EfficientNet-Lite0's maps; 0: no teacher of images."""
    tiles: tuple[int, ...] = LARGE_FIRST
    """Objects on a side of the tiled images of "objects", by turns, with a 2 among them; 0: free
    scenes."""
    stickers: float = 2.0
    """Weight of the distance of objects to EfficientNet-Lite0's features of their stickers, where
    there is a teacher of images."""
    restyled: float = 0.3
    """Share of the stickers that are drawn in another style, as lines and flat colors."""
    model: str = ""
    """Folder of a saved model with which the run begins: at "finer", which trains it further, or at
    "calibrate". Its tracker stays as it is. Empty: the model of the stage before."""
    kept: float = 0.4
    """Share of the weights of ``model`` in the result of "finer": the rest is what was trained.
    Such a mean finds more in unseen styles than either. 0: the trained weights alone."""
    scored: int = 2000
    """Scenes of training from which scores are learned; 0: none are."""
    score_steps: int = 2500
    """Steps by which scores are learned, a few milliseconds each."""
    calibration: int = 200
    """Other scenes by which presence and scores are shifted."""
    workers: int = 1
    """Processes that make batches, for each process that trains."""
    validate: bool = True
    """Whether to validate."""

    def __post_init__(self) -> None:
        for name in ("scored", "score_steps", "most_masks"):
            check(self, name, getattr(self, name) >= 0, "0 or more")
        check(self, "kept", 0 <= self.kept < 1, "a share from 0 to less than 1")


def training_names(stickers: StickerArt) -> list[str]:
    """Names of all concepts that training may show.

    Args:
        stickers: The stickers.
    """
    split = SPLITS["train"]
    return stickers.concept_names(split.concepts, split.styles)


def _settings(run: Run, **changes: Any) -> LoopSettings:
    shared = {
        "precision": "32-true",
        "optimizer": "muon",
        "clip": 5.0,
    }
    return loop_settings(run.options.seed, **{**shared, **changes})


def _prepare_text(run: Run) -> tuple[Task, LoopSettings]:
    o: Options = run.options
    stickers = StickerArt.open()
    phrases = load_phrases(run.folder / "phrases.npz", stickers.concepts.values())
    known = set(phrases.texts)
    unseen = [n for n in stickers.concepts if part_of(n) == "unseen" and n not in known]
    config = objects_config(o.resolution)
    net = new_detector(config, o.seed)
    probe = None
    if o.validate:
        from ..training.teacher_files import SentenceEncoder

        probe = unseen, SentenceEncoder()(unseen)
    text = net.part("text")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(o.seed)
        torch.nn.init.normal_(text.embedding.weight, std=0.05)
        task = PhraseDistillation(text, config.width, phrases, probe, seed=o.seed)
    return task, _settings(
        run,
        steps=4000,
        lr=2e-3,
        min_lr=4e-5,
        warmup=100,
        weight_decay=0.02,
        optimizer="adamw",
        clip=1.0,
        no_decay=("embedding",),
        validate_every=500,
    )


def load_text(net: LateDetector, run: Run) -> LateDetector:
    """Load the text encoder that the stage "text" trained, in place.

    Args:
        net: The model.
        run: The run.
    """
    state = read_state(run.weights("text"))
    own = {k.removeprefix("text."): v for k, v in state.items() if k.startswith("text.")}
    net.part("text").load_state_dict(own)
    return net


def _phrase_table(stickers: StickerArt, names: Sequence[str], config: ModelConfig) -> PhraseTable:
    concepts = [stickers.concepts[name] for name in names]
    phrases = list_phrases(concepts)
    return PhraseTable(phrases, len(names), phrase_truth(concepts, phrases), config.context)


def object_task(
    run: Run,
    net: LateDetector,
    config: ModelConfig,
    seed: int,
    tiles: tuple[int, ...],
    most_masks: int = 0,
) -> ObjectTask:
    """The task of scenes at the resolution of a configuration.

    Args:
        run: The run.
        net: The model.
        config: Its configuration.
        seed: Seed of the scenes.
        tiles: Objects on a side of tiled images, by turns; 0: free scenes.
        most_masks: As in ``ObjectLoss``.
    """
    o: Options = run.options
    stickers = StickerArt.open()
    names = training_names(stickers)
    table = _phrase_table(stickers, names, config)
    generators = [
        SceneGenerator(
            stickers,
            SPLITS["train"],
            config.resolution,
            names,
            tiles=side,
            backgrounds=o.backgrounds // len(tiles),
            restyled=o.restyled,
        )
        for side in tiles
    ]
    first = ((o.seed << 2) + seed) << 32
    training = ObjectBatches(config, generators, o.batch, names, first_seed=first, uses=o.uses)
    teacher = seen_stickers = None
    if o.teacher and HEADS in dict(net.named_children()):
        # Every fourth image, with four objects.
        teacher = FeatureTeacher(range(tiles.index(2), o.batch, len(tiles)), o.teacher)
        styles = SPLITS["train"].styles
        vectors = load_sticker_vectors(run.folder / "stickers.npy", stickers, names, styles)
        seen_stickers = StickerTeacher(vectors, o.stickers)
    held_out, probes = _validation(stickers, config, names) if o.validate else ({}, {})
    return ObjectTask(
        net,
        config,
        training,
        ObjectLoss(table, most_masks=most_masks, teacher=teacher, stickers=seen_stickers),
        held_out=held_out,
        probes=probes,
        seed=o.seed + seed,
        workers=o.workers,
    )


def _validation(
    stickers: StickerArt, config: ModelConfig, seen: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    held_out, probes = {}, {}
    for name, count in VALIDATED.items():
        split = SPLITS[name]
        generator = SceneGenerator(stickers, split, config.resolution)
        scenes = [generator.scene(seed) for seed in range(count)]
        held_out[name] = [to_training_sample(scene) for scene in scenes]
        names = stickers.concept_names(split.concepts) if split.concepts == "unseen" else seen
        one = PromptShares(prompts=1)
        batches = ObjectBatches(config, [generator], 16, names, one)
        made: list[ObjectBatch] = [
            batches.collate(scenes[i : i + 16], np.random.default_rng(0))
            for i in range(0, count, 16)
        ]
        probes[name] = made, tuple(names)
    return held_out, probes


def _prepare_objects(run: Run) -> tuple[Task, LoopSettings]:
    o: Options = run.options
    config = objects_config(o.resolution)
    net = new_detector(config, o.seed)
    if o.teacher:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(o.seed)
            net.add_module(HEADS, TeacherHeads(config.trunk_width, config.width))
    if o.start:
        load_start(net, Path(o.start))
    else:
        load_text(net, run)
    task = object_task(run, net, config, 0, tuple(o.tiles))
    return task, _settings(
        run,
        steps=40_000,
        lr=1e-3,
        schedule="constant",
        warmup=200,
        ema=0.999,
        validate_every=500,
        picture_every=2000,
        save_minutes=4,
    )


def _prepare_finer(run: Run) -> tuple[Task, LoopSettings]:
    o: Options = run.options
    config, source = objects_config(o.final_resolution), Path(o.model)
    if o.model:
        _, saved, learned = load_model(source)
        config, state = with_late(config, of=saved.late), learned.state_dict()
    else:
        source = run.weights("objects")
        state = read_state(source)
    config = with_late(config, windows=WINDOWS, refinement=REFINEMENT, coarse=COARSE)
    net = new_detector(config, o.seed)
    load_known(net, state, source)
    task = object_task(run, net, config, 1, MOSTLY_FREE, o.most_masks)
    return task, _settings(
        run, steps=4000, lr=5e-4, min_lr=5e-6, warmup=50, ema=0.998, validate_every=500
    )


def _load_scored(run: Run) -> tuple[ModelConfig, LateDetector]:
    """The model whose scores are learned, with an untrained rescorer if it has none."""
    o: Options = run.options
    given = bool(o.model) and "finer" not in run.done
    folder = Path(o.model) if given else run.folder_of("finer") / "model"
    _, config, learned = load_model(folder)
    if config.late is None:
        raise CheckpointError(f"{folder} has no late fusion; --set model= takes a model that has")
    config = with_late(config, rescoring=RESCORING)
    net = new_detector(config, o.seed)
    own = {k: v for k, v in net.state_dict().items() if k.startswith(RESCORER)}
    net.load_state_dict({**own, **learned.state_dict()})
    return config, net.eval().requires_grad_(False)


def _learn_scores(run: Run, config: ModelConfig, net: LateDetector) -> tuple[float, float]:
    """Train the rescorer of a model, in place; its loss before and after."""
    o: Options = run.options
    stickers = StickerArt.open()
    names, size = training_names(stickers), min(o.batch, o.scored)
    scenes = SceneGenerator(
        stickers,
        SPLITS["train"],
        config.resolution,
        names,
        backgrounds=SCORED_BACKGROUNDS,
        restyled=o.restyled,
    )
    shares = PromptShares(prompts=SCORED_PROMPTS)
    make = ObjectBatches(config, [scenes], size, names, shares, SCORED_SEED)
    batches = (make(i, np.random.default_rng([o.seed, i])) for i in range(o.scored // size))
    answers = read_answers(net, batches, _phrase_table(stickers, names, config))
    rescorer = net.part("decoder").rescorer
    return fit_rescorer(rescorer, answers, steps=o.score_steps, seed=o.seed)


def _calibrate(run: Run) -> None:
    """Learn scores from scenes of training, then shift them by scenes that serve this alone."""
    o: Options = run.options
    config, net = _load_scored(run)
    losses = _learn_scores(run, config, net) if o.scored else None
    generator = SceneGenerator(StickerArt.open(), SPLITS["seen"], config.resolution)
    scenes = (generator.scene(CALIBRATION_SEED + i) for i in range(o.calibration))
    result = calibrate(net, config, (to_training_sample(scene) for scene in scenes))
    save_model(run.stage_folder / "model", MODEL_NAME, config, net)
    with replacing(run.stage_folder / "calibration.json") as temporary:
        found = {**result._asdict(), "score_losses": losses}
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _save(run: Run, task: Task) -> None:
    if isinstance(task, ObjectTask):
        task.module._modules.pop(HEADS, None)  # saved models have no heads of the teacher
        config, net = task.config, task.module
        if run.options.model:
            config, net = average_with(net, config.late, Path(run.options.model), run.options.kept)
        save_model(run.stage_folder / "model", MODEL_NAME, config, net)


RECIPE = Recipe(
    "stickers-objects",
    "a small model with late fusion, from real teachers and every object of every scene",
    (
        Stage("text", _prepare_text, "the text encoder learns from a sentence encoder"),
        Stage("objects", _prepare_objects, "image encoder and heads learn from scenes", _save),
        Stage("finer", _prepare_finer, "all goes on in larger images, and the rate falls", _save),
        Stage(
            "calibrate", _calibrate, "scores are learned and shifted to the best cgF1", alone=True
        ),
    ),
    Options(),
)

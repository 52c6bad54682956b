"""The embedded model, from scenes of stickers: the paper's stages, on two CPU cores in hours.

A teacher with a small ViT learns from scratch: names ("names", "scales"), then to ground ("boxes",
"heads", "teacher"). A student's encoders are distilled from it ("image", "text", then "prompts":
prompt in the loop), and the student is fine-tuned whole ("student"), then without its image encoder
("longer"), then whole again on finer images ("finer"), and its presence calibrated ("calibrate").
For comparison the same student learns without a teacher ("alone-names", "alone-boxes", "alone"),
for as long as the student's stages up to "student" took.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...build import ModelConfig, StudentConfig, TextConfig, VitConfig, build
from ...errors import CheckpointError
from ...nn.detector import Detector
from ...scenes.art import Art
from ...scenes.compose import World
from ...scenes.concepts import SPLITS
from ...scenes.phrases import COLOURS
from ...weights import read_state, replacing
from ..align import AlignBatches, AlignTask
from ..calibrate import calibrate
from ..collate import BY_EXAMPLE, Collator, PromptSettings
from ..data.batches import Made
from ..data.sample import TrainingSample
from ..data.scenes import SceneSource, Turns
from ..grounding import GroundingLoss
from ..losses import LossWeights
from ..merge import save_whole
from ..naming import Vocabulary
from ..prompted import PromptedSettings, PromptInTheLoop
from ..recipe import Recipe, Run, Stage
from ..scratch import prepare, unit_tokens
from ..settings import LoopSettings
from ..stage1_image import ImageDistillation, ImageSettings
from ..stage1_text import TextDistillation, TextSettings
from ..stage3 import GroundingTask
from ..task import Task
from ..teachers import ImageTeacher, TextTeacher

SUBGROUPS = ("animal-", "plant-", "food-", "drink", "dishware", "transport-")
"""Beginnings of the subgroups of concepts that the recipe is about: animals and plants, food and
drink, vehicles. Two cores learn some three hundred things in hours, not thirteen hundred."""


@dataclass(frozen=True)
class Options:
    """Args:
    seed: of everything. resolution: pixels a side, a multiple of 84. fine: the same, of the model
        that is kept.
    grounds: backgrounds of a training world. batch: scenes of a step, where masks are learned.
    held_out: scenes for validation, 0 for none. calibration: scenes by which the student's presence
        is shifted.
    """

    seed: int = 0
    resolution: int = 252
    fine: int = 336
    grounds: int = 512
    batch: int = 8
    held_out: int = 32
    calibration: int = 200


def fine(options: Options) -> Options:
    """As the model that is kept reads images."""
    return dataclasses.replace(options, resolution=options.fine)


def teacher_config(options: Options) -> ModelConfig:
    """A small ViT with SAM3's heads."""
    return ModelConfig(
        vision=VitConfig(192, 6, 3, 576, 14, window=6, everywhere=(2, 5), stem=64),
        text=TextConfig("clip", 128, 2, 2),
        context=16,
        parts=("geometry", "masks"),
        scales=(4, 2, 1),
        resolution=options.resolution,
        grid=options.resolution // 14,
        trunk_width=192,
        width=128,
        heads=4,
        hidden=512,
        geometry_layers=1,
        fusion_layers=3,
        decoder_layers=3,
        queries=32,
        boxed_masks=True,
        nms=0.5,
    )


def student_config(options: Options) -> ModelConfig:
    """The same heads on a small RepViT of three stages (stride 16), and a small text encoder."""
    return dataclasses.replace(
        teacher_config(options),
        vision=StudentConfig("repvit-m0.9", {"embed_dim": [32, 64, 160], "depth": [1, 2, 6]}),
        text=TextConfig("mobileclip", 64, 2, 2),
    )


PROMPTS = PromptSettings(
    prompts=4,
    kinds={"name": 2.0, "synonym": 0.5, "near": 2.0},
)

CRITERION = GroundingLoss(
    LossWeights(
        dice=20.0, one_to_many=1.0, denoising=0.5, dense=1.0, align=1.0, names=10.0, quality=0.5
    ),
    many_on_aux=True,
)
"""From scratch a decoder needs help that a released one does not: denoising, dense terms, names.
Small things on cells of 14 pixels are boxed at an IoU of 0.6, and are to score above 0.5 still."""

OFFERED = 160
"""Names in a batch that tokens are compared with."""

BOXES = GroundingLoss(
    LossWeights(label=0, presence=0, mask=0, dice=0, one_to_many=0, denoising=1.0)
)
"""Boxes alone, and those of noised queries: beside the other terms they hardly move at first."""

CALIBRATED = 1_000_000
"""Number of the first scene that presence is calibrated on: none is trained or measured on."""

SIZES = (0, 1, 2, 3, 4, 5)
"""Things a side of an image; 0: as scenes have them."""

GROUNDED = (1, 2, 3, 0)
"""What heads learn on, by turns: large things are found before small ones."""

MOSTLY = (0, 2, 0, 3)
"""The whole learns on scenes, and on some large things still."""

NAMED = ("trunk.", "neck.", "text.", "scoring.")
"""What names are learned with."""

NEW = ("geometry", "fusion", "decoder", "masks", "neck.levels.0", "neck.levels.1")
"""What is still untrained then."""

DRAWING = {"masks": 3.0}
"""Masks come last: by then the rate has fallen far, and boxes are fine where masks are empty."""

ENCODERS = {"trunk": 0.5, "text": 0.5}
"""They know the names already."""


def things(art: Art, split: str) -> list[str]:
    """Concepts of a split that the recipe is about."""
    part = SPLITS[split]
    names = art.names(part.concepts, part.styles)
    return [name for name in names if art.concepts[name].subgroup.startswith(SUBGROUPS)]


def world(options: Options, split: str = "train", tiles: int = 0) -> World:
    art = Art.open()
    training = split == "train"
    return World(
        art,
        SPLITS[split],
        options.resolution,
        things(art, split),
        tiles=tiles,
        grounds=options.grounds if training else None,
    )


def fresh(config: ModelConfig, seed: int) -> Detector:
    """An untrained model whose numbers depend on nothing but the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return prepare(build(config), seed)


def scenes(o: Options, split: str) -> SceneSource:
    return SceneSource(world(o, split))


def held_out(o: Options) -> tuple[TrainingSample, ...]:
    """Scenes of seen concepts and styles that no stage trains on."""
    draw = scenes(o, "seen")
    return tuple(draw(number) for number in range(o.held_out))


def load(net: Detector, path: Path, parts: tuple[str, ...] = ("",)) -> Detector:
    """Put trained weights into a model, or into some of its parts; every one must be there."""
    state = {k: v for k, v in read_state(path).items() if k.startswith(parts)}
    wanted = {k for k in net.state_dict() if k.startswith(parts)}
    if wanted != state.keys():
        raise CheckpointError(f"{path} lacks or adds {sorted(wanted ^ state.keys())[:5]}")
    net.load_state_dict(state, strict=False)
    return net


def quick(o: Options, **changes: Any) -> LoopSettings:
    """What all stages share."""
    shared: dict[str, Any] = {
        "weight_decay": 0.05,
        "betas": (0.9, 0.98),
        "no_decay": ("text.embedding",),
        "precision": "bf16-mixed",
        "accelerator": "cpu",
        "save_minutes": 5,
        "seed": o.seed,
    }
    return LoopSettings(**{**shared, **changes})


def watched(o: Options, **changes: Any) -> LoopSettings:
    """Of the stages that ground: averaged weights, figures and pictures as they learn."""
    shared = {"warmup": 50, "ema": 0.998, "validate_every": 500, "picture_every": 500}
    return quick(o, **{**shared, **changes})


# The teacher ----------------------------------------------------------------------------------


def names(run: Run) -> tuple[Task, LoopSettings]:
    """Image and text encoder learn which name goes with what, on things of one size."""
    o: Options = run.options
    return _names(o, teacher_config(o), (3,)), quick(
        o, steps=2600, lr=5e-4, min_lr=1e-5, warmup=100, validate_every=250
    )


def scales(run: Run) -> tuple[Task, LoopSettings]:
    """The same on things of all sizes, alone, in crowds and behind each other."""
    o: Options = run.options
    return _names(o, teacher_config(o), SIZES, run.weights("names")), quick(
        o, steps=4500, lr=4e-4, min_lr=1e-5, warmup=50, ema=0.998, validate_every=500
    )


def boxes(run: Run) -> tuple[Task, LoopSettings]:
    """The new parts alone: gradients of heads that know nothing would spoil the encoders."""
    o: Options = run.options
    return _boxes(o, teacher_config(o), run.weights("scales")), quick(
        o, steps=400, lr=1e-3, min_lr=1e-3, warmup=50, parts=NEW
    )


def heads(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 3 on the new parts."""
    o: Options = run.options
    config = teacher_config(o)
    net = load(fresh(config, o.seed), run.weights("boxes"))
    settings = watched(o, steps=600, lr=1e-3, min_lr=3e-4, ema=0.995, parts=NEW)
    return _whole(o, config, net, GROUNDED), settings


def teacher(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 3 on the whole."""
    o: Options = run.options
    config = teacher_config(o)
    net = load(fresh(config, o.seed), run.weights("heads"))
    settings = watched(o, steps=4000, lr=3e-4, min_lr=1e-5, scales=DRAWING)
    return _whole(o, config, net, MOSTLY), settings


def taught(run: Run) -> Detector:
    """The teacher as it was left."""
    o: Options = run.options
    return load(fresh(teacher_config(o), o.seed), run.weights("teacher")).eval()


# The student ----------------------------------------------------------------------------------


def image(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 1: the student's map becomes the teacher's."""
    o: Options = run.options
    task = ImageDistillation(
        fresh(student_config(o), o.seed).part("trunk"),
        student_config(o),
        Made(scenes(o, "train")),
        ImageTeacher.of(taught(run), teacher_config(o)),
        settings=ImageSettings(batch=2 * o.batch, workers=1, seed=o.seed, validation=o.held_out),
        held_out=Made(scenes(o, "seen")),
    )
    return task, quick(o, steps=1500, lr=1e-3, min_lr=2e-5, warmup=100, validate_every=500)


def text(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 1: the student's tokens become the teacher's, for all that scenes can be asked."""
    o: Options = run.options
    task = TextDistillation(
        fresh(student_config(o), o.seed).part("text"),
        phrases(o),
        TextTeacher.of(taught(run), teacher_config(o)),
        settings=TextSettings(batch=256, seed=o.seed),
    )
    return task, quick(o, steps=1500, lr=2e-3, min_lr=2e-5, warmup=100)


def phrases(o: Options) -> list[str]:
    """Names, synonyms and categories of the seen concepts, with and without attributes."""
    art = Art.open()
    words: dict[str, None] = {BY_EXAMPLE: None}
    for name in things(art, "train"):
        concept = art.concepts[name]
        words |= dict.fromkeys((name, *concept.synonyms, *concept.categories))
        attributes = ("small", "large", "upside-down", *COLOURS)
        words |= dict.fromkeys(f"{attribute} {name}" for attribute in attributes)
    return list(words)


def student(run: Run) -> Detector:
    """The teacher's heads with the student's encoders, as far as those are distilled."""
    o: Options = run.options
    net = fresh(student_config(o), o.seed)
    heads = tuple(name for name, _ in net.named_children() if name not in ("trunk", "text"))
    load(net, run.weights("teacher"), tuple(f"{h}." for h in heads))
    load(net, run.weights("text"), ("text.",))
    return load(net, run.weights("image"), ("trunk.",))


def prompts(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 1, prompt in the loop: the student's masks become the teacher's."""
    o: Options = run.options
    numbers = PromptedSettings(
        batch=o.batch, prompts=3, workers=1, seed=o.seed, phrase=1.0, answer_weight=1.0
    )
    task = PromptInTheLoop(
        student(run).part("trunk"),
        taught(run),
        student_config(o),
        Made(scenes(o, "train")),
        numbers,
        held_out=Made(scenes(o, "seen")),
    )
    return task, quick(o, steps=200, lr=2e-4, min_lr=1e-5, warmup=50, validate_every=100)


def fine_tuned(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 3 on the student."""
    o: Options = run.options
    net = load(student(run), run.weights("prompts"), ("trunk.",))
    settings = watched(o, steps=1400, lr=2e-4, min_lr=5e-6, scales={**ENCODERS, **DRAWING})
    return _whole(o, student_config(o), net), settings


def longer(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 3 on all but the image encoder: a video memory that reads its maps stays good."""
    o: Options = run.options
    config = student_config(o)
    net = load(fresh(config, o.seed), run.weights("student"))
    parts = tuple(name for name, _ in net.named_children() if name != "trunk")
    settings = watched(
        o, steps=1300, lr=3e-4, min_lr=5e-6, parts=parts, scales={"text": 0.5, **DRAWING}
    )
    return _whole(dataclasses.replace(o, seed=o.seed + 1), config, net), settings


def finer(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 3 on the whole, on images of more pixels.

    Half of the things are smaller than 30 of 252 pixels: what cells of 14 hold of their outlines is
    too little to count at an IoU above 0.5.
    """
    o = fine(run.options)
    config = student_config(o)
    net = load(fresh(config, o.seed), run.weights("longer"))
    settings = watched(o, steps=1000, lr=2e-4, min_lr=5e-6, scales={**ENCODERS, **DRAWING})
    return _whole(dataclasses.replace(o, seed=o.seed + 2), config, net), settings


def calibrated(run: Run) -> None:
    """One number, from scenes that are for this alone; nothing is trained."""
    o = fine(run.options)
    config = student_config(o)
    net = load(fresh(config, o.seed), run.weights("finer")).eval()
    draw = scenes(o, "seen")
    told = calibrate(net, config, (draw(CALIBRATED + i) for i in range(o.calibration)))
    save_whole(run.stage_folder / "model", "efficientsam3-stickers", config, net)
    with replacing(run.stage_folder / "calibration.json") as temporary:
        temporary.write_text(json.dumps(told._asdict(), indent=1) + "\n")


# The same student without a teacher ---------------------------------------------------------------


def alone_names(run: Run) -> tuple[Task, LoopSettings]:
    """Its encoders learn names as the teacher's did."""
    o: Options = run.options
    return _names(o, student_config(o), SIZES), quick(
        o, steps=2000, lr=5e-4, min_lr=1e-5, warmup=100, ema=0.998, validate_every=500
    )


def alone_boxes(run: Run) -> tuple[Task, LoopSettings]:
    """Its heads learn boxes as the teacher's did."""
    o: Options = run.options
    return _boxes(o, student_config(o), run.weights("alone-names")), quick(
        o, steps=400, lr=1e-3, min_lr=1e-3, warmup=50, parts=NEW
    )


def alone(run: Run) -> tuple[Task, LoopSettings]:
    """Stage 3 from there on."""
    o: Options = run.options
    config = student_config(o)
    net = load(fresh(config, o.seed), run.weights("alone-boxes"))
    settings = watched(o, steps=1600, lr=4e-4, min_lr=1e-5)
    return _whole(o, config, net, MOSTLY), settings


def _names(
    o: Options, config: ModelConfig, sizes: tuple[int, ...], start: Path | None = None
) -> Task:
    net = fresh(config, o.seed)
    if start is not None:
        load(net, start)
    few = dataclasses.replace(o, grounds=o.grounds // len(sizes))
    worlds = [world(few, tiles=n) for n in sizes]
    names, draw = worlds[0].pool, Turns([SceneSource(w) for w in worlds])
    checked = Turns([SceneSource(world(o, "seen", tiles=n)) for n in sizes])
    held = AlignBatches(config, checked, 48, names, OFFERED)
    return AlignTask(
        net,
        AlignBatches(config, draw, o.batch, names, OFFERED),
        held_out=[held(0, np.random.default_rng(o.seed))],
        seed=o.seed,
    )


def _boxes(o: Options, config: ModelConfig, names: Path) -> Task:
    """Heads begin behind encoders that know ``names``."""
    net = load(fresh(config, o.seed), names, NAMED)
    draw, c = scenes(o, "train"), config
    unit_tokens(net, torch.cat([draw(i).pixels(c.resolution, c.mean, c.std) for i in range(16)]))
    return _whole(o, config, net, GROUNDED, BOXES)


def _whole(
    o: Options,
    config: ModelConfig,
    net: Detector,
    sizes: tuple[int, ...] = (0,),
    criterion: GroundingLoss = CRITERION,
) -> Task:
    few = dataclasses.replace(o, grounds=o.grounds // len(sizes))
    worlds = [world(few, tiles=n) for n in sizes]
    return GroundingTask(
        net,
        Collator(config, PROMPTS, Vocabulary(config, worlds[0].pool, OFFERED)),
        Turns([SceneSource(w) for w in worlds]),
        batch=o.batch,
        criterion=criterion,
        held_out=held_out(o),
        seed=o.seed,
    )


def keep(config: Callable[[Options], ModelConfig], name: str) -> Callable[[Run, Task], None]:
    """Writes a trained model as a folder that ``efficientsam3.load`` takes."""

    def write(run: Run, task: Task) -> None:
        net = task.module
        if isinstance(net, Detector):
            save_whole(run.stage_folder / "model", name, config(run.options), net)

    return write


RECIPE = Recipe(
    "stickers",
    "a model for scenes of stickers: teacher, student, fine-tuned",
    (
        Stage("names", names, "the teacher's encoders learn the names of things"),
        Stage("scales", scales, "and to name them at all sizes"),
        Stage("boxes", boxes, "the teacher's heads learn to draw boxes"),
        Stage("heads", heads, "the teacher's heads learn to ground"),
        Stage(
            "teacher",
            teacher,
            "the teacher learns to ground",
            keep(teacher_config, "stickers-teacher"),
        ),
        Stage("image", image, "a student's image encoder learns the teacher's maps"),
        Stage("text", text, "its text encoder learns the teacher's tokens"),
        Stage("prompts", prompts, "its masks become the teacher's, prompt in the loop"),
        Stage(
            "student",
            fine_tuned,
            "the whole student learns to ground",
            keep(student_config, "efficientsam3-stickers"),
        ),
        Stage(
            "longer",
            longer,
            "all but its image encoder goes on",
            keep(student_config, "efficientsam3-stickers"),
        ),
        Stage(
            "finer",
            finer,
            "and on images of more pixels",
            keep(lambda o: student_config(fine(o)), "efficientsam3-stickers"),
        ),
        Stage("calibrate", calibrated, "its presence is shifted to where cgF1 is best"),
        Stage("alone-names", alone_names, "the same student learns names without a teacher"),
        Stage("alone-boxes", alone_boxes, "to draw boxes"),
        Stage("alone", alone, "and to ground", keep(student_config, "stickers-alone")),
    ),
    Options(),
)

"""Models with late fusion that the recipe ``stickers-objects`` trains, and weights they begin with.

Parts that correct what others find are added when these are trained, so that weights of an earlier
stage, or of an earlier version, lack them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from efficientsam3.build import build
from efficientsam3.checkpoints.read import read_state
from efficientsam3.config import LateConfig, ModelConfig, StudentConfig, TextConfig
from efficientsam3.errors import CheckpointError
from efficientsam3.nn.late_detector import LateDetector
from efficientsam3.train.merge import load_model

from ..training.feature_teacher import HEADS

STRIDE = 16
ADDED = (
    "fusion.coarse.",
    "fusion.windows.",
    "fusion.window_map.",
    "masks.refiner.",
    "masks.detail.",
    "masks.context.",
)
"""Parts that the stage "finer" adds, as beginnings of the names of their weights."""
RESCORER = "decoder.rescorer."
"""Beginning of the names of the weights that correct scores."""


def objects_config(resolution: int) -> ModelConfig:
    """A small RepViT and a small text encoder with late fusion.

    Args:
        resolution: Side of the images in pixels, a multiple of 16.
    """
    return ModelConfig(
        vision=StudentConfig(
            "repvit-m0.9", {"embed_dim": [32, 64, 192], "depth": [0, 1, 6]}, lean=True
        ),
        text=TextConfig("mobileclip", 96, 2, 2),
        context=12,
        parts=("geometry", "masks"),
        scales=(4, 2, 1),
        resolution=resolution,
        grid=resolution // STRIDE,
        trunk_width=128,
        width=128,
        heads=4,
        hidden=256,
        geometry_layers=1,
        fusion_layers=1,
        decoder_layers=1,
        queries=40,
        nms=0.7,
        late=LateConfig(depth=2, object_depth=2, prompt_depth=1),
    )


def new_detector(config: ModelConfig, seed: int) -> LateDetector:
    """An untrained model, whose weights depend on the seed alone.

    Args:
        config: Its configuration.
        seed: The seed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config)
    return cast(LateDetector, net.to(memory_format=torch.channels_last))


def load_start(net: LateDetector, path: Path) -> None:
    """Load the weights of an earlier run of "objects", in place.

    Args:
        net: The model, with the heads of the teacher if it is to be trained with one.
        path: The file.

    Raises:
        CheckpointError: the file cannot be read, or lacks a weight.
    """
    state = read_state(path)
    if HEADS not in dict(net.named_children()):
        state = {k: v for k, v in state.items() if not k.startswith(HEADS)}
    own = net.state_dict()
    wrong = sorted(k for k in {*own, *state} if k not in own or k not in state)
    if wrong:
        raise CheckpointError(
            f"{path} is not of a run of stickers-objects with these options: it and the model "
            f"differ in {', '.join(wrong[:4])}"
        )
    net.load_state_dict(state)


def load_known(net: LateDetector, saved: Mapping[str, Tensor], source: Path) -> None:
    """Load weights in place. Parts of ``ADDED`` stay untrained where the weights have none.

    Args:
        net: The model.
        saved: The weights; others than those of the model do not count.
        source: Where they come from, for errors.

    Raises:
        CheckpointError: A weight is missing, or has another shape.
    """
    own = net.state_dict()
    lacks = tuple(part for part in ADDED if not any(k.startswith(part) for k in saved))
    wanted = [k for k in own if not k.startswith(lacks)]
    wrong = sorted(k for k in wanted if k not in saved or saved[k].shape != own[k].shape)
    if wrong:
        raise CheckpointError(
            f"{source} is not a model of stickers-objects: they differ in {', '.join(wrong[:4])}"
        )
    net.load_state_dict({**own, **{k: saved[k] for k in wanted}})


def with_late(config: ModelConfig, of: LateConfig | None = None, **missing: int) -> ModelConfig:
    """A configuration with further parts of late fusion.

    Args:
        config: The configuration.
        of: Another configuration, whose parts of ``ADDED`` it gets.
        **missing: Values of ``LateConfig`` for the fields that are 0.
    """
    late = config.late
    if late is None:
        return config
    if of is not None:
        late = dataclasses.replace(
            late, windows=of.windows, refinement=of.refinement, coarse=of.coarse
        )
    changes: dict[str, Any] = {k: v for k, v in missing.items() if not getattr(late, k)}
    return dataclasses.replace(config, late=dataclasses.replace(late, **changes))


def average_with(
    net: LateDetector, late: LateConfig | None, folder: Path, kept: float
) -> tuple[ModelConfig, LateDetector]:
    """The weighted mean of a trained model and the saved one with which its training began.

    It has the tracker of the saved model, if any, and no rescorer.

    Args:
        net: The trained model.
        late: Its configuration of late fusion.
        folder: Folder of the saved model. Parts that it lacks are those of the trained model.
        kept: Share of the saved model's weights, 0 to 1.

    Returns:
        Configuration and model.
    """
    _, config, saved = load_model(folder)
    config = dataclasses.replace(config, late=late)
    whole = new_detector(config, 0)
    state = saved.state_dict()
    for name, weight in net.state_dict().items():
        if weight.is_floating_point() and name in state:
            weight = torch.lerp(weight.float(), state[name].float(), kept)
        state[name] = weight
    whole.load_state_dict({k: v for k, v in state.items() if not k.startswith(RESCORER)})
    return config, whole

"""What recipes share: processes of torchrun, models by name, results of earlier stages, merging."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import nn

from ...build import build
from ...checkpoints.assemble import load_upstream
from ...checkpoints.hub import download
from ...checkpoints.read import read_state
from ...config import MemoryConfig, ModelConfig
from ...errors import CheckpointError, DataError
from ...nn.detector import Detector
from ...variants import find_variant
from ..merge import PartialCheckpoint, load_model, merge, save_both_layouts
from ..recipe import Run
from ..tasks.memory_init import init_memory_from

# File of what a stage trained, a partial checkpoint, in the stage's folder.
PART_FILE = "part.safetensors"


def rank_and_world() -> tuple[int, int]:
    """Number of this process and number of all, as torchrun sets them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def local_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def epoch_steps(samples: int, batch: int, epochs: int, accumulate: int = 1) -> int:
    """Steps of the optimizer in some epochs on all processes, at least 1.

    Args:
        samples: Samples of the data set.
        batch: Samples of a batch on one process.
        epochs: Number of epochs.
        accumulate: Batches of one step.
    """
    return max(1, samples * epochs // (batch * rank_and_world()[1] * accumulate))


def load_named_model(model: str, option: str) -> tuple[str, ModelConfig, Detector]:
    """Load a model that an option of a recipe names.

    Args:
        model: A name of ``list_models()``, a checkpoint file, or a model's folder.
        option: Name of the option, for the message.

    Returns:
        Name, configuration and model.

    Raises:
        DataError: The option is empty.
        UnknownModelError: There is no such model, and no such file.
        CheckpointError: It cannot be read.
    """
    if not model:
        raise DataError(
            f"{option} is not set; it is a model's name, checkpoint or folder: add --set "
            f"{option}=NAME, --set {option}=FILE or --set {option}=FOLDER"
        )
    if Path(model).exists():
        return load_model(model)
    variant = find_variant(model)
    return (variant.name, *load_upstream(download(variant.name), variant))


def build_part(config: ModelConfig, part: str, seed: int) -> nn.Module:
    """Build an untrained part of a model, such as "trunk".

    Args:
        config: Configuration of the model.
        part: Name of the part.
        seed: Seed of its weights; the global random state stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = build(config).part(part)
    return module


def load_trained_part(run: Run, stage: str, part: str, module: nn.Module) -> None:
    """Fill a part with the weights that an earlier stage trained.

    Args:
        run: The run.
        stage: Name of the earlier stage.
        part: Name of the part, which its weights' names begin with.
        module: The part.

    Raises:
        RecipeError: The stage is not done.
    """
    state = read_state(run.weights(stage))
    prefix = f"{part}."
    module.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )


def save_merged(
    run: Run, name: str, config: ModelConfig, net: Detector, part: PartialCheckpoint
) -> None:
    """Write a model with what was trained, in our layout and in upstream's.

    Args:
        run: The run; the files go to the folder of its present stage.
        name: Name of the new model.
        config: Configuration of the model to merge into.
        net: That model.
        part: What was trained.
    """
    save_both_layouts(run.stage_folder, name, *merge(config, net, part))


def with_memory(config: ModelConfig, net: Detector, memory: MemoryConfig) -> Detector:
    """A copy of a model with another memory, which may be trained.

    Args:
        config: Configuration of the model.
        net: The model.
        memory: Configuration of the new memory. Its weights start as those of the old one where
            they fit, see ``init_memory_from``.

    Raises:
        CheckpointError: The model's other weights do not fit its configuration.
    """
    student = build(dataclasses.replace(config, memory=memory))
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("memory.")}
    missing, unknown = student.load_state_dict(state, strict=False)
    if unknown or any(not k.startswith("memory.") for k in missing):
        raise CheckpointError(f"the model lacks or adds {sorted([*unknown, *missing])[:5]}")
    init_memory_from(student.part("memory"), net.part("memory"))
    return student

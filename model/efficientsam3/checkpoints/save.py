"""Save a model: as a folder of this package, or as a file in upstream's layout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ..build import build
from ..config import ModelConfig
from ..errors import ArgumentError, CheckpointError, shorten
from ..io.tensor_files import replacing_tensors
from ..nn.detector import Detector
from ..variants import CONFIG_FILE, WEIGHTS_FILE, find_variant
from . import layout
from .assemble import FORMAT, config_of
from .read import State


def save_folder(
    folder: str | os.PathLike[str],
    name: str,
    config: ModelConfig,
    net: Detector,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write ``model.safetensors`` and ``config.json``; each replaces the old one when complete.

    Args:
        folder: The folder to write; it is made if it is missing.
        name: The model's name.
        config: Its configuration.
        net: The model.
        dtype: Number format of matrices and kernels on disk: float32, float16 or bfloat16. They
            are loaded as float32. Weights with one axis (norms, biases, statistics) stay float32:
            they are small, and rounding changes the results most there.

    Raises:
        CheckpointError: A weight is too large for ``dtype``, or a file cannot be written.
        ArgumentError: ``folder`` is no path.
    """
    if not isinstance(folder, (str, os.PathLike)) or not str(folder):
        raise ArgumentError(f"a folder is a path such as 'my-model'; got {shorten(folder)}")
    folder = Path(folder)
    state = round_weights(net.state_dict(), dtype)
    with replacing_tensors(folder / WEIGHTS_FILE) as path:
        save_file(state, path, {"format": "pt"})
    content = {
        "format": FORMAT,
        "name": name,
        "parameters": count_parameters(net),
        "model": config.to_dict(),
    }
    with replacing_tensors(folder / CONFIG_FILE) as path:
        path.write_text(json.dumps(content, indent=1) + "\n")


def round_weights(state: State, dtype: torch.dtype) -> State:
    """Weights as ``save_folder`` stores them.

    Args:
        state: Weights by key.
        dtype: Number format of those with more than one axis.

    Returns:
        New tensors where the format changes, contiguous.

    Raises:
        CheckpointError: A weight is too large for ``dtype``.
    """
    rounded = {}
    for key, value in state.items():
        original = value.detach()
        if value.is_floating_point() and value.ndim > 1:
            value = original.to(dtype)
            if bool((~value.isfinite() & original.isfinite()).any()):
                raise CheckpointError(
                    f"{key} has values up to {original.abs().max():.3g}, too large for "
                    f"{str(dtype).removeprefix('torch.')}: save it in bfloat16 or float32"
                )
        rounded[key] = value.contiguous()
    return rounded


def count_parameters(net: nn.Module) -> int:
    """Count the learned parameters of a module, without statistics of norms.

    Args:
        net: The module.
    """
    return sum(p.numel() for p in net.parameters())


def save_upstream(path: str | Path, config: ModelConfig, net: Detector) -> None:
    """Write a file that upstream's loaders read.

    Args:
        path: The .pt file to write.
        config: The model's configuration.
        net: The model.

    Raises:
        CheckpointError: Upstream does not have the model's encoders, or the file cannot be written.
    """
    with replacing_tensors(Path(path)) as temporary:
        torch.save({"model": to_upstream(config, net.state_dict())}, temporary)


def to_upstream(config: ModelConfig, state: State) -> State:
    """Rename weights to the keys of upstream's released files.

    Args:
        config: The model's configuration.
        state: Weights by our keys.

    Raises:
        CheckpointError: Upstream does not have the model's encoders, or one of the weights.
    """
    if not isinstance(config.vision, str) or not isinstance(config.text, str):
        raise CheckpointError(
            "upstream has no model of these encoders; save it in our own format instead"
        )
    release = "3.1" if {"multiplex", "propagation_neck"} & set(config.parts) else "3.0"
    rename = layout.to_upstream(config.vision, config.text, release)
    renamed = {}
    for key, value in state.items():
        name = rename(key)
        if name is None:
            raise CheckpointError(f"upstream has no name for {key}")
        renamed[layout.full_key(name)] = value
    return renamed


def save_untrained(name: str, path: str | Path, *, seed: int = 0) -> Path:
    """Write untrained weights of a model of the table in upstream's layout.

    They are for demonstrations, timing and tests without released weights; masks are noise.

    Args:
        name: A name of ``list_models()``.
        path: The .pt file to write.
        seed: Seed of the random numbers; the same seed gives the same weights.

    Returns:
        The path.
    """
    config = config_of(find_variant(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(config)
    with torch.no_grad():
        for key, value in net.named_parameters():
            # With torch's own initialization activations fade, and every mask would be empty.
            if key.endswith("bias"):
                value.mul_(0.1)
            elif value.ndim > 1 and key.endswith("weight") and "embed" not in key:
                value.mul_(3**0.5)
    save_upstream(path, config, net)
    return Path(path)

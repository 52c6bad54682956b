"""Adapters: small files of what fine-tuning changed in the weights of one model.

An adapter is a ``.safetensors`` file. For a weight W with a low-rank change it holds ``W:up`` and
``W:down``, and the new weight is W + scale * up @ down (LoRA, arXiv 2106.09685). A weight that was
trained whole is held under its own name. The metadata say of which model and of which weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..config import PART_NAMES, ModelConfig
from ..errors import ArgumentError, CheckpointError, EfficientSam3Error, WeightsNotFoundError
from ..io.tensor_files import replacing_tensors
from ..nn.detector import Detector
from .read import State, first_line, list_some

ADAPTER_FILE = "adapter.safetensors"
"""Name of the file in the folder of a run."""
FORMAT = "efficientsam3-adapter-1"
UP, DOWN = ":up", ":down"
"""Ends of the names of the two factors of a change."""

# Fields that may differ from those of the model in training: an adapter does not depend on them.
_FREE_FIELDS = frozenset({"context", "parts", "memory", "nms", "negative_exemplars"})

Figures = Mapping[str, Mapping[str, float]]
"""Figures on held-out images, by "before" and "after"."""


def change_weight(weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    """Add a low-rank change to a weight.

    Args:
        weight: A matrix (rows, columns) or a kernel (rows, ...), float32.
        up: (rows, rank) float32.
        down: (rank, columns) float32; the columns of a kernel are all its axes but the first.
        scale: Factor on the change.

    Returns:
        A new weight of the same shape.
    """
    return torch.addmm(weight.flatten(1), up, down, alpha=scale).view_as(weight)


def digest_weights(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A digest of weights: of each tensor its name, its shape and about 1,024 of its values.

    Args:
        weights: Names and tensors.

    Returns:
        64 hexadecimal digits, which do not depend on the order.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        flat = tensor.detach().flatten()
        some = flat[:: max(1, len(flat) // 1024)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Adapter:
    """What fine-tuning changed in a model.

    Attributes:
        name: Name of the adapter.
        model: Name of the model that it was trained on.
        config: Configuration of that model.
        low_rank: (up, down) by the name of the weight that they change.
        scale: Factor on these changes.
        whole: New weights by name.
        base: Digest of the weights that it changes, as they were before, by part of the model.
        figures: Figures on held-out images, before and after.
    """

    name: str
    model: str
    config: ModelConfig
    low_rank: Mapping[str, tuple[Tensor, Tensor]]
    scale: float
    whole: Mapping[str, Tensor]
    base: Mapping[str, str]
    figures: Figures = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the weights that it changes."""
        return [*self.low_rank, *self.whole]

    @property
    def rank(self) -> int:
        """Largest rank of a change; 0 if all weights were trained whole."""
        return max((down.shape[0] for _, down in self.low_rank.values()), default=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file; it appears only when it is complete.

        Args:
            path: The file.

        Raises:
            CheckpointError: It cannot be written, as on a full disk.
        """
        tensors = dict(self.whole)
        for name, (up, down) in self.low_rank.items():
            tensors |= {name + UP: up, name + DOWN: down}
        metadata = {
            "format": FORMAT,
            "name": self.name,
            "model": self.model,
            "config": json.dumps(self.config.to_dict()),
            "rank": str(self.rank),
            "scale": repr(self.scale),
            "base": json.dumps(dict(self.base)),
            "figures": json.dumps({key: dict(value) for key, value in self.figures.items()}),
        }
        plain = {k: v.detach().cpu().float().clone().contiguous() for k, v in tensors.items()}
        with replacing_tensors(Path(path)) as temporary:
            save_file(plain, temporary, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Adapter:
        """Read what ``save`` wrote.

        Args:
            path: The file, or the folder of a run that wrote it.

        Raises:
            WeightsNotFoundError: There is no such file.
            CheckpointError: It is another file, damaged or cut short.
        """
        path = adapter_path(path)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CheckpointError(
                f"{path} is damaged, cut short or no adapter: {first_line(error)}. Copy it again, "
                "or run `efficientsam3 finetune` again"
            ) from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is not an adapter of this version: its format is "
                f"{metadata.get('format')!r}, not {FORMAT!r}. Whole models are loaded by "
                "themselves: load('<folder>')"
            )
        try:
            figures = json.loads(metadata["figures"])
            adapter = cls(
                name=metadata["name"],
                model=metadata["model"],
                config=ModelConfig.from_dict(json.loads(metadata["config"])),
                low_rank=_pairs(state),
                scale=float(metadata["scale"]),
                whole={k: v for k, v in state.items() if not k.endswith((UP, DOWN))},
                base={str(k): str(v) for k, v in json.loads(metadata["base"]).items()},
                figures={k: {n: float(x) for n, x in v.items()} for k, v in figures.items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = str(error) if isinstance(error, EfficientSam3Error) else repr(error)
            raise CheckpointError(f"{path} is a damaged adapter: {reason}") from error
        for key, value in state.items():
            if not value.is_floating_point() or not bool(value.isfinite().all()):
                raise CheckpointError(
                    f"{path}: {key} holds NaN, infinite or integer values; the file is damaged, or "
                    "the training that wrote it diverged"
                )
        return adapter

    @torch.no_grad()
    def apply(self, config: ModelConfig, net: Detector, where: str) -> None:
        """Change the weights of a model, in place. Its old tensors stay as they are.

        Args:
            config: Configuration of the model.
            net: The model as it was trained, in float32, not its inference form.
            where: The source of the model's weights, as errors name it.

        Raises:
            CheckpointError: The adapter is of another model, or of other weights.
        """
        if different := _different_fields(config, self.config):
            raise CheckpointError(
                f"the adapter {self.name!r} is of another model than {where}: {different}. Load it "
                f"with {self.model}, which it was trained on"
            )
        state = net.state_dict()
        if unknown := [name for name in self.names if name not in state]:
            raise CheckpointError(
                f"the adapter {self.name!r} changes weights that {where} does not have: "
                f"{list_some(unknown)}. Load it with {self.model}, which it was trained on, with "
                "the same options"
            )
        for name in self.names:
            _check_shape(self, name, state[name], where)
        found = digests_by_part(state, self.names)
        other = [
            PART_NAMES.get(part, part) for part, d in found.items() if self.base.get(part) != d
        ]
        if other:
            raise CheckpointError(
                f"the adapter {self.name!r} was trained on other weights of {self.model} than "
                f"those of {where}: they differ in {', '.join(other)}. Load it with the weights "
                "that it was trained on, or fine-tune these"
            )
        changed: State = {name: value.float() for name, value in self.whole.items()}
        for name, (up, down) in self.low_rank.items():
            changed[name] = change_weight(state[name], up, down, self.scale)
        net.load_state_dict(changed, strict=False, assign=True)


def adapter_path(path: str | os.PathLike[str]) -> Path:
    """The file of an adapter.

    Args:
        path: The file, or the folder of a run that wrote it.

    Raises:
        WeightsNotFoundError: There is no such file.
        ArgumentError: It is no path.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise ArgumentError(f"adapter is the path of a file or of a run's folder; got {path!r}")
    file = Path(path)
    if file.is_dir():
        file = file / ADAPTER_FILE
    if not file.is_file():
        raise WeightsNotFoundError(
            f"there is no adapter at {file}; `efficientsam3 finetune --out FOLDER` writes "
            f"FOLDER/{ADAPTER_FILE}"
        )
    return file


def digests_by_part(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, str]:
    """Digests of some weights of a model, by part.

    Args:
        state: Weights of the model.
        names: Names of those that count.
    """
    parts: dict[str, list[tuple[str, Tensor]]] = {}
    for name in names:
        parts.setdefault(name.split(".", 1)[0], []).append((name, state[name]))
    return {part: digest_weights(weights)[:16] for part, weights in sorted(parts.items())}


def _pairs(state: State) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of low-rank changes, by the name of the weight."""
    names = {k.removesuffix(UP).removesuffix(DOWN) for k in state if k.endswith((UP, DOWN))}
    return {name: (state[name + UP], state[name + DOWN]) for name in sorted(names)}


def _check_shape(adapter: Adapter, name: str, weight: Tensor, where: str) -> None:
    expected = tuple(weight.shape)
    if name in adapter.whole:
        found: Any = tuple(adapter.whole[name].shape)
        fits = found == expected
    else:
        up, down = adapter.low_rank[name]
        found = f"{tuple(up.shape)} x {tuple(down.shape)}"
        rows = expected[0] if expected else 0
        fits = (
            weight.ndim >= 2
            and (up.ndim, down.ndim) == (2, 2)
            and (up.shape[0], down.shape[1]) == (rows, weight.numel() // max(1, rows))
            and up.shape[1] == down.shape[0]
        )
    if not fits:
        raise CheckpointError(
            f"the adapter {adapter.name!r} holds {name} as {found}, but that of {where} is "
            f"{expected}. Load it with {adapter.model}, which it was trained on"
        )


def _different_fields(config: ModelConfig, other: ModelConfig) -> str:
    """The fields of two configurations that differ, and on which an adapter depends."""
    ours, theirs = config.to_dict(), other.to_dict()
    names = [key for key in ours if key not in _FREE_FIELDS and ours[key] != theirs[key]]
    return ", ".join(f"{key} is {ours[key]!r:.60} instead of {theirs[key]!r:.60}" for key in names)

"""Trained parts back into a whole model: partial checkpoints, and the merge.

A partial checkpoint is one ``.safetensors`` file with the weights whose names begin with
certain prefixes (``trunk.``, ``decoder.presence_token_head.``), as the whole model names them.
Its metadata holds ``format``, ``prefixes``, and ``model``: the numbers of the model that it was
trained in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import layout
from ..build import OPTIONAL, REQUIRED, ModelConfig
from ..errors import CheckpointError
from ..nn.detector import Detector
from ..weights import (
    State,
    assemble,
    load_folder,
    load_upstream,
    replacing,
    save_folder,
    save_upstream,
)

FORMAT = "efficientsam3-part-1"

log = logging.getLogger(__name__)


def trained_prefixes(module: nn.Module) -> tuple[str, ...]:
    """The shortest prefixes that cover what has gradients, and nothing that has none.

    Buffers (statistics of batch norms) go with the parameters of their module.
    """
    state = dict(module.named_parameters())
    if not any(v.requires_grad for v in state.values()):
        return ()

    def cover(prefix: str) -> list[str]:
        inside = [v for k, v in state.items() if k.startswith(prefix)]
        if all(v.requires_grad for v in inside):
            return [prefix]
        if not any(v.requires_grad for v in inside):
            return []
        steps = dict.fromkeys(
            prefix + k[len(prefix) :].split(".", 1)[0] for k in state if k.startswith(prefix)
        )
        out = []
        for step in steps:
            if step in state:
                out += [step] if state[step].requires_grad else []
            else:
                out += cover(step + ".")
        return out

    # A whole model is its parts, not everything: the file then says what it holds.
    tops = dict.fromkeys(k.split(".", 1)[0] for k in state)
    return tuple(p for top in tops for p in ([top] if top in state else cover(top + ".")))


def as_prefixes(parts: Iterable[str]) -> tuple[str, ...]:
    """Names of parts or of weights, and prefixes -> prefixes: ``trunk`` -> ``trunk.``."""
    known = {*REQUIRED, *OPTIONAL}
    return tuple(p + "." if p in known else p for p in parts)


def _under(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == p or (p.endswith(".") and key.startswith(p)) for p in prefixes)


@dataclass(frozen=True)
class Partial:
    """Some weights of a model.

    state: by the names of the whole model. prefixes: which they are, all of them.
    config: of the model they were trained in.
    """

    state: State
    prefixes: tuple[str, ...]
    config: ModelConfig

    @classmethod
    def of(
        cls, config: ModelConfig, module: nn.Module, parts: Iterable[str] | None = None
    ) -> Partial:
        """The trained weights of a module that names them as the whole model does.

        Args:
            module: a ``Detector``, or a task's module (``MapStudent``, ``TextStudent``).
            parts: names of parts or prefixes; None: what has gradients.

        Raises:
            CheckpointError: nothing is trained; a prefix without weights.
        """
        state = module.state_dict()
        prefixes = trained_prefixes(module) if parts is None else as_prefixes(parts)
        empty = [p for p in prefixes if not any(_under(k, (p,)) for k in state)]
        if empty or not prefixes:
            raise CheckpointError(
                f"no weights begin with {', '.join(empty) or 'any prefix: nothing is trained'}; "
                f"the module has {', '.join(sorted({k.split('.', 1)[0] for k in state}))}"
            )
        kept = {k: v.detach().cpu().contiguous() for k, v in state.items() if _under(k, prefixes)}
        return cls(kept, prefixes, config)

    def save(self, path: str | Path) -> None:
        """Write one file, which appears only when whole."""
        metadata = {
            "format": FORMAT,
            "prefixes": json.dumps(self.prefixes),
            "model": json.dumps(self.config.to_dict()),
        }
        with replacing(Path(path)) as temporary:
            save_file(self.state, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Partial:
        """Read what ``save`` wrote.

        Raises:
            CheckpointError: another file, cut short, or with weights beside its prefixes.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"there is no partial checkpoint at {path}")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} is not a partial checkpoint of this version (its format is "
                f"{metadata.get('format')!r}, not {FORMAT!r})"
            )
        prefixes = tuple(json.loads(metadata["prefixes"]))
        left = [k for k in state if not _under(k, prefixes)]
        if left:
            raise CheckpointError(
                f"{path} says that it holds {', '.join(prefixes)}, but also has {_some(left)}"
            )
        return cls(state, prefixes, ModelConfig.from_dict(json.loads(metadata["model"])))


def merge(config: ModelConfig, net: Detector, *partials: Partial) -> tuple[ModelConfig, Detector]:
    """A whole model with some of its weights replaced.

    A partial that holds a whole encoder, ``trunk.`` or ``text.``, may be of another one than the
    model has: the student's, with its own context; so may a whole ``memory.``. Optional parts
    that the model lacks are added. All else must fit weight for weight.

    Args:
        config, net: the whole model; it stays as it is.
        partials: in order; a later one wins.

    Raises:
        CheckpointError: names each weight that is left over, missing, or of another shape; or
            the width, in which an encoder does not fit.
    """
    state = dict(net.state_dict())
    for partial in partials:
        swapped = {"trunk.", "text.", "memory."} & set(partial.prefixes)
        swapped |= {p for p in _whole_parts(partial) if p[:-1] not in config.parts}
        config = _merged_config(config, partial)
        named = [p for p in partial.prefixes if p not in swapped]
        expected = {k for k in state if _under(k, named)}
        given = {k for k in partial.state if _under(k, named)}
        if left := given - expected:
            raise CheckpointError(
                f"{len(left)} weights are left over, which the model has not: {_some(left)}"
            )
        if missing := {k for k in expected - given if not layout.DERIVED.search(k)}:
            raise CheckpointError(
                f"{len(missing)} weights of {', '.join(named)} are missing: {_some(missing)}"
            )
        for key in given:
            if partial.state[key].shape != state[key].shape:
                raise CheckpointError(
                    f"{key} is {tuple(partial.state[key].shape)}, but the model has "
                    f"{tuple(state[key].shape)}"
                )
        state = {k: v for k, v in state.items() if not _under(k, partial.prefixes)}
        state.update(partial.state)
    # Cloned: the merged model must not change when the parts go on training.
    state = {k: v.detach().clone() for k, v in state.items()}
    return config, assemble(config, state, "the merged model")


def _merged_config(config: ModelConfig, partial: Partial) -> ModelConfig:
    """The numbers of the model with the partial's encoders."""
    other = partial.config
    if "trunk." in partial.prefixes:
        for field in ("trunk_width", "grid", "resolution", "mean", "std"):
            ours, theirs = getattr(config, field), getattr(other, field)
            if ours != theirs:
                raise CheckpointError(
                    f"the image encoder was trained with {field} {theirs}, but the model has "
                    f"{ours}: its heads would read something else"
                )
        config = replace(config, vision=other.vision)
    if "text." in partial.prefixes:
        if config.width != other.width:
            raise CheckpointError(
                f"the text encoder gives tokens of width {other.width}, but the heads read "
                f"{config.width}"
            )
        config = replace(config, text=other.text, context=other.context)
    if "memory." in partial.prefixes:
        config = replace(config, memory=other.memory)
    new = {p[:-1] for p in _whole_parts(partial)} - set(config.parts)
    if new:
        for field in ("trunk_width", "width", "heads", "hidden", "grid", "resolution"):
            ours, theirs = getattr(config, field), getattr(other, field)
            if ours != theirs:
                raise CheckpointError(
                    f"{', '.join(sorted(new))} is of a model with {field} {theirs}, but this one "
                    f"has {ours}"
                )
        config = replace(config, parts=tuple(p for p in OPTIONAL if p in {*config.parts, *new}))
    return config


def _whole_parts(partial: Partial) -> list[str]:
    """Prefixes of optional parts that a partial holds whole."""
    return [p for p in partial.prefixes if p.removesuffix(".") in OPTIONAL]


def merge_files(
    base: str | Path, partials: Iterable[str | Path], out: str | Path, name: str | None = None
) -> ModelConfig:
    """Merge partial checkpoints into a saved model.

    Args:
        base: a folder that ``save`` wrote, or a checkpoint in upstream's layout.
        partials: files that ``Partial.save`` wrote.
        out: a folder, ours; or a file that ends in ``.pt`` or ``.pth``, upstream's.
        name: of the new model; None: the base's.
    """
    base_name, config, net = load_whole(base)
    config, net = merge(config, net, *(Partial.load(p) for p in partials))
    save_whole(out, name or base_name, config, net)
    return config


def load_whole(path: str | Path) -> tuple[str, ModelConfig, Detector]:
    """A model from a folder, ours, or from a file in upstream's layout: (name, config, model)."""
    path = Path(path)
    return load_folder(path) if path.is_dir() else (path.stem, *load_upstream(path))


def save_whole(path: str | Path, name: str, config: ModelConfig, net: Detector) -> None:
    """Write a model as a file of upstream's if the path ends in .pt or .pth, else as a folder."""
    path = Path(path)
    if path.suffix in (".pt", ".pth"):
        save_upstream(path, config, net)
    else:
        save_folder(path, name, config, net)


def save_both(folder: str | Path, name: str, config: ModelConfig, net: Detector) -> None:
    """Write a model for our loaders, ``folder/model``, and for upstream's, ``folder/NAME.pt``,
    if upstream has such a model at all.
    """
    save_whole(Path(folder) / "model", name, config, net)
    try:
        save_whole(Path(folder) / f"{name}.pt", name, config, net)
    except CheckpointError as error:
        log.info("no file for upstream's loaders: %s", error)


def load_partial_into(module: nn.Module, partial: Partial) -> None:
    """Put a partial's weights into a module that has them, to go on training.

    Raises:
        CheckpointError: names a weight that the module has not, or of another shape.
    """
    state: Mapping[str, Tensor] = module.state_dict()
    left = [k for k in partial.state if k not in state]
    if left:
        raise CheckpointError(f"the module has no {_some(left)}")
    wanted = [k for k in state if _under(k, partial.prefixes)]
    missing = [k for k in wanted if k not in partial.state]
    if missing:
        raise CheckpointError(f"the partial checkpoint lacks {_some(missing)}")
    with torch.no_grad():
        for key, value in partial.state.items():
            if state[key].shape != value.shape:
                raise CheckpointError(
                    f"{key} is {tuple(value.shape)}, but the module has {tuple(state[key].shape)}"
                )
            state[key].copy_(value)


def _some(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

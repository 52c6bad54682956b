"""Partial checkpoints, and merging them into a model.

A partial checkpoint is one ``.safetensors`` file with the weights whose names begin with certain
prefixes (``trunk.``, ``decoder.presence_token_head.``), named as in the whole model. Its metadata
holds ``format``, ``prefixes``, and ``model``: the configuration of the model it was trained in.
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

from ..checkpoints import layout
from ..checkpoints.assemble import assemble, load_folder, load_upstream
from ..checkpoints.read import State
from ..checkpoints.save import save_folder, save_upstream
from ..config import OPTIONAL, REQUIRED, ModelConfig
from ..errors import CheckpointError
from ..io.tensor_files import replacing_tensors
from ..nn.detector import Detector

FORMAT = "efficientsam3-part-1"

_log = logging.getLogger(__name__)


def trained_prefixes(module: nn.Module) -> tuple[str, ...]:
    """The shortest prefixes that cover all parameters with gradients, and none without.

    Buffers (statistics of batch norms) belong to the parameters of their module.

    Args:
        module: A model, or a module that names its weights as a model does.
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

    # The prefixes of a whole model are its parts, so that the file names what it holds.
    tops = dict.fromkeys(k.split(".", 1)[0] for k in state)
    return tuple(p for top in tops for p in ([top] if top in state else cover(top + ".")))


def as_prefixes(parts: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of names of parts: ``trunk`` -> ``trunk.``.

    Args:
        parts: Names of parts or of weights, or prefixes; the latter two stay as they are.
    """
    known = {*REQUIRED, *OPTIONAL}
    return tuple(p + "." if p in known else p for p in parts)


def _under(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == p or (p.endswith(".") and key.startswith(p)) for p in prefixes)


@dataclass(frozen=True)
class PartialCheckpoint:
    """Some weights of a model.

    Attributes:
        state: Weights by their names in the whole model.
        prefixes: Prefixes of the weights' names; all weights of the model under them are here.
        config: Configuration of the model that they were trained in.
    """

    state: State
    prefixes: tuple[str, ...]
    config: ModelConfig

    @classmethod
    def of(
        cls, config: ModelConfig, module: nn.Module, parts: Iterable[str] | None = None
    ) -> PartialCheckpoint:
        """The trained weights of a module.

        Args:
            config: Configuration of the model that they belong to.
            module: A ``Detector``, or a module that names its weights as the model does
                (``MapStudent``, ``TextStudent``).
            parts: Names of parts, or prefixes; None: the parameters with gradients.

        Raises:
            CheckpointError: Nothing is trained; a prefix without weights.
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
        """Write the file; it appears only when it is complete.

        Args:
            path: The file.

        Raises:
            CheckpointError: It cannot be written, as on a full disk.
        """
        metadata = {
            "format": FORMAT,
            "prefixes": json.dumps(self.prefixes),
            "model": json.dumps(self.config.to_dict()),
        }
        with replacing_tensors(Path(path)) as temporary:
            save_file(self.state, temporary, metadata)

    @classmethod
    def load(cls, path: str | Path) -> PartialCheckpoint:
        """Read what ``save`` wrote.

        Args:
            path: The file.

        Raises:
            CheckpointError: Another file, a file cut short, or one with weights beside its
                prefixes.
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
        try:
            prefixes = tuple(map(str, json.loads(metadata["prefixes"])))
            config = ModelConfig.from_dict(json.loads(metadata["model"]))
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} has damaged metadata: {error!r}") from error
        left = [k for k in state if not _under(k, prefixes)]
        if left:
            raise CheckpointError(
                f"{path} says that it holds {', '.join(prefixes)}, but also has {_some(left)}"
            )
        return cls(state, prefixes, config)

    def load_into(self, module: nn.Module) -> None:
        """Copy the weights into a module that has them, to go on training.

        Args:
            module: A module that names its weights as the model does.

        Raises:
            CheckpointError: Names a weight that the module or the checkpoint lacks, or of another
                shape.
        """
        state: Mapping[str, Tensor] = module.state_dict()
        if unknown := [k for k in self.state if k not in state]:
            raise CheckpointError(f"the module has no {_some(unknown)}")
        wanted = [k for k in state if _under(k, self.prefixes)]
        if missing := [k for k in wanted if k not in self.state]:
            raise CheckpointError(f"the partial checkpoint lacks {_some(missing)}")
        with torch.no_grad():
            for key, value in self.state.items():
                _require_shape(key, value, state[key], "module")
                state[key].copy_(value)


def merge(
    config: ModelConfig, net: Detector, *partials: PartialCheckpoint
) -> tuple[ModelConfig, Detector]:
    """A model with some of its weights replaced.

    A partial checkpoint of a complete encoder, ``trunk.`` or ``text.``, may be of another
    architecture than the model's: the student's, with its own context length. So may a complete
    ``memory.``. Optional parts that the model lacks are added. Everything else must fit weight for
    weight.

    Args:
        config: Configuration of the model.
        net: The model; it stays as it is.
        partials: Partial checkpoints in order; where two hold the same weight the later counts.

    Returns:
        Configuration and model with the new weights, in memory of their own.

    Raises:
        CheckpointError: Names each weight that is left over, missing, or of another shape, or the
            width in which an encoder does not fit.
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
                f"{len(left)} weights are left over, which the model does not have: {_some(left)}"
            )
        if missing := {k for k in expected - given if not layout.DERIVED.search(k)}:
            raise CheckpointError(
                f"{len(missing)} weights of {', '.join(named)} are missing: {_some(missing)}"
            )
        for key in given:
            _require_shape(key, partial.state[key], state[key], "model")
        state = {k: v for k, v in state.items() if not _under(k, partial.prefixes)}
        state.update(partial.state)
    # Cloned, so that the merged model does not change when the parts go on training.
    state = {k: v.detach().clone() for k, v in state.items()}
    return config, assemble(config, state, "the merged model")


def _merged_config(config: ModelConfig, partial: PartialCheckpoint) -> ModelConfig:
    """Configuration of the model with the parts of a partial checkpoint."""
    other = partial.config
    if "trunk." in partial.prefixes:
        for field in ("trunk_width", "grid", "resolution", "mean", "std"):
            _require_field(config, other, field, "the image encoder was trained with")
        config = replace(config, vision=other.vision)
    if "text." in partial.prefixes:
        _require_field(config, other, "width", "the text encoder gives tokens of")
        config = replace(config, text=other.text, context=other.context)
    if "memory." in partial.prefixes:
        config = replace(config, memory=other.memory)
    new = {p[:-1] for p in _whole_parts(partial)} - set(config.parts)
    if new:
        for field in ("trunk_width", "width", "heads", "hidden", "grid", "resolution"):
            _require_field(config, other, field, f"{', '.join(sorted(new))} is of a model with")
        config = replace(config, parts=tuple(p for p in OPTIONAL if p in {*config.parts, *new}))
    return config


def _require_field(config: ModelConfig, other: ModelConfig, field: str, what: str) -> None:
    expected, found = getattr(config, field), getattr(other, field)
    if expected != found:
        raise CheckpointError(
            f"{what} {field} {found}, but the model has {expected}: they do not fit together"
        )


def _require_shape(key: str, value: Tensor, expected: Tensor, owner: str) -> None:
    if value.shape != expected.shape:
        raise CheckpointError(
            f"{key} is {tuple(value.shape)}, but the {owner} has {tuple(expected.shape)}"
        )


def _whole_parts(partial: PartialCheckpoint) -> list[str]:
    """Prefixes of optional parts that a partial checkpoint holds completely."""
    return [p for p in partial.prefixes if p.removesuffix(".") in OPTIONAL]


def merge_files(
    base: str | Path, partials: Iterable[str | Path], out: str | Path, name: str | None = None
) -> ModelConfig:
    """Merge partial checkpoints into a saved model.

    Args:
        base: A model's folder, or a checkpoint in upstream's layout.
        partials: Files that ``PartialCheckpoint.save`` wrote.
        out: A folder, for our layout; or a file that ends in ``.pt`` or ``.pth``, for upstream's.
        name: Name of the new model; None: the base's.

    Returns:
        Configuration of the merged model.

    Raises:
        CheckpointError: A file cannot be read, or weights do not fit; see ``merge``.
    """
    base_name, config, net = load_model(base)
    config, net = merge(config, net, *(PartialCheckpoint.load(p) for p in partials))
    save_model(out, name or base_name, config, net)
    return config


def load_model(path: str | Path) -> tuple[str, ModelConfig, Detector]:
    """Load a model from files.

    Args:
        path: A folder in our layout, or a file in upstream's.

    Returns:
        Name, configuration and model.

    Raises:
        CheckpointError: It cannot be read.
    """
    path = Path(path)
    return load_folder(path) if path.is_dir() else (path.stem, *load_upstream(path))


def save_model(path: str | Path, name: str, config: ModelConfig, net: Detector) -> None:
    """Write a model in upstream's layout if the path ends in .pt or .pth, else in ours.

    Args:
        path: A file or a folder.
        name: Name of the model, for our layout.
        config: Its configuration.
        net: The model.

    Raises:
        CheckpointError: Upstream's layout has no such model.
    """
    path = Path(path)
    if path.suffix in (".pt", ".pth"):
        save_upstream(path, config, net)
    else:
        save_folder(path, name, config, net)


def save_both_layouts(folder: str | Path, name: str, config: ModelConfig, net: Detector) -> None:
    """Write ``folder/model`` for our loaders, and ``folder/NAME.pt`` for upstream's.

    The second file is left out, and the reason logged, if upstream's layout has no such model.

    Args:
        folder: Folder for both.
        name: Name of the model.
        config: Its configuration.
        net: The model.
    """
    save_model(Path(folder) / "model", name, config, net)
    try:
        save_model(Path(folder) / f"{name}.pt", name, config, net)
    except CheckpointError as error:
        _log.info("no file for upstream's loaders: %s", error)


def _some(names: Iterable[str], most: int = 6) -> str:
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest

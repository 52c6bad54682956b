"""Read a weight file safely, and recognize what a released checkpoint contains."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError, WeightsNotFoundError
from . import layout, transformers_layout
from .parts import is_index, read_index

State = dict[str, Tensor]
"""Weights by key."""


def read_state(path: str | Path) -> State:
    """Read the tensors of a weight file without running any code in it.

    Args:
        path: A ``.safetensors`` file, or a PyTorch file with a dictionary of tensors, bare or in
            an entry "model" or "state_dict". Tensors of an entry "preserved_base_model" are added
            where the first dictionary has none of that key. Or the index of a file in parts,
            ``model.safetensors.index.json``.

    Returns:
        The tensors by the file's own keys. Large ones stay on disk until they are used.

    Raises:
        WeightsNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"there is no weight file at {path}")
    if is_index(path):
        return _read_parts(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(_damaged(path, error)) from error
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":
        raise CheckpointError(_damaged(path, ValueError("not the start of a PyTorch file")))
    try:
        # A zip archive can be mapped into memory; PyTorch's format before 2020 cannot.
        mapped = zipfile.is_zipfile(path) or None
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, and loading it could run code of its author: "
            f"{first_line(error)}. Ask its author for a .safetensors file, or for a file of "
            "tensors alone."
        ) from error
    except Exception as error:  # damaged bytes make the unpickler raise whatever they lead to
        raise CheckpointError(_damaged(path, error)) from error
    # Fine-tuned files keep the parts that were not trained in an entry of their own.
    preserved = content.get("preserved_base_model") if isinstance(content, dict) else None
    for wrapper in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if isinstance(preserved, dict) and isinstance(content, dict):
        trained = {layout.canonical(k) for k in content}
        content |= {k: v for k, v in preserved.items() if layout.canonical(k) not in trained}
    if not _is_state(content) or not content:
        raise CheckpointError(
            f"{path} holds {_describe(content)}, not a dictionary of tensors by name"
        )
    return content


def _read_parts(index: Path) -> State:
    """The tensors of all parts, which have the keys that the index names, and no others."""
    state: State = {}
    for part, keys in read_index(index).items():
        if is_index(part):
            raise CheckpointError(f"{index} names another index, {part.name}, as a part")
        held = read_state(part)
        if different := keys ^ held.keys():
            raise CheckpointError(
                f"{part} has other weights than {index.name} says, such as "
                f"{list_some(different)}. Download both again."
            )
        state |= held
    return state


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its period, or the error's type.

    Args:
        error: The error.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def list_some(names: Iterable[str], limit: int = 6) -> str:
    """List names in order, and how many more there are.

    Args:
        names: The names.
        limit: At most this many are listed.

    Returns:
        The text.
    """
    names = sorted(names)
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )


def _damaged(path: Path, error: BaseException) -> str:
    return (
        f"{path} ({path.stat().st_size:,} bytes) is damaged or cut short: {first_line(error)}. "
        "Delete it and download it again."
    )


def _describe(content: Any) -> str:
    if isinstance(content, dict):
        others = [k for k, v in content.items() if not isinstance(v, Tensor)]
        return f"a dictionary with {', '.join(map(repr, others[:5])) or 'nothing'}"
    return f"a {type(content).__name__}"


# Recognition ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """What a checkpoint in upstream's or transformers' layout contains, by its keys and shapes.

    Attributes:
        path: The file.
        state: Its tensors by canonical key; see ``layout.canonical``.
        vision: Name of the image encoder, as in ``build.VISIONS``; None if there is none.
        text: Name of the text encoder, as in ``build.TEXTS``; None if there is none.
        positions: Rows of the text encoder's position table, its longest context.
        release: "3.0" or "3.1".
        has_points: Whether its geometry encoder, if it has one, reads points; in transformers'
            layout it does not.
    """

    path: Path
    state: State
    vision: str | None
    text: str | None
    positions: int
    release: str
    has_points: bool = True

    @classmethod
    def read(cls, path: str | Path) -> Contents:
        """Read and recognize a file.

        Args:
            path: As ``read_state`` takes it.

        Raises:
            WeightsNotFoundError: There is no such file.
            CheckpointError: The file cannot be read, or it is in another layout.
        """
        state = read_state(path)
        has_points = not transformers_layout.is_transformers(state)
        if not has_points:
            state = _from_transformers(Path(path), state)
        state = {layout.canonical(k): v for k, v in state.items()}
        _check_layout(Path(path), state)
        release = "3.1" if any(".interactive_convs." in k for k in state) else "3.0"
        text, positions = _recognize_text(state)
        vision = _recognize_vision(state)
        return cls(Path(path), state, vision, text, positions, release, has_points)

    def renamed(self) -> State:
        """The weights by our keys.

        Raises:
            CheckpointError: The file has keys of no known part.
        """
        rename = layout.to_ours(self.vision or "sam3", self.text or "mobileclip-s0", self.release)
        is_student = self.vision not in (None, "sam3")
        renamed, unknown = {}, []
        for key, value in self.state.items():
            if layout.ignored(key, self.release, student=is_student):
                continue
            name = rename(key)
            if name is None:
                unknown.append(key)
            else:
                renamed[name] = value
        if unknown:
            raise CheckpointError(
                f"{self.path} has {len(unknown)} weights that no EfficientSAM3 model has: "
                f"{list_some(unknown)}. Is it a checkpoint of EfficientSAM3, SAM3-LiteText or "
                "SAM3?"
            )
        return renamed


_UPSTREAM_GROUPS = (
    *("backbone", "transformer", "geometry_encoder", "dot_prod_scoring", "segmentation_head"),
    "tracker",
)
"""First components of canonical keys."""

_OTHER_LAYOUTS = (
    # first components of keys, what such a file is, what to do
    (
        {"trunk", "neck", "fusion", "decoder"},
        "the weight file of a saved folder",
        "Load the folder itself, which has the model's configuration: load('<folder>').",
    ),
    (
        {"image_encoder", "sam_prompt_encoder", "sam_mask_decoder", "prompt_encoder"},
        "a checkpoint of SAM or SAM 2",
        "This package reads EfficientSAM3, SAM3-LiteText and SAM3.",
    ),
)


def _from_transformers(path: Path, state: State) -> State:
    """Weights of a file in transformers' layout, by upstream's keys."""
    state = {transformers_layout.canonical(k): v for k, v in state.items()}
    names = (transformers_layout.FREQUENCIES, transformers_layout.FREQUENCIES_COPY)
    pair = [state[name] for name in names if name in state]
    if len(pair) == 2 and not torch.equal(*(table.double() for table in pair)):
        raise CheckpointError(
            f"{path}: {' and '.join(names)} differ, but SAM3 has one table for both. Take the "
            "original file instead, such as sam3.pt of facebook/sam3"
        )
    try:
        renamed, unknown = transformers_layout.to_upstream(state)
    except (RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"{path} has weights of shapes that do not go together: {first_line(error)}. The file "
            "is damaged or of another model"
        ) from error
    if unknown:
        raise CheckpointError(
            f"{path} is in the layout of Hugging Face transformers, and {len(unknown)} of its "
            f"weights are unknown there: {list_some(unknown)}. Is it a file of Sam3VideoModel, "
            "Sam3Model or Sam3LiteTextModel? Files of facebook/sam3 and ports of SAM3-LiteText are."
        )
    return renamed


def _check_layout(path: Path, state: State) -> None:
    """Name the layout of a file that is not upstream's."""
    groups = {key.split(".", 1)[0] for key in state}
    if groups & set(_UPSTREAM_GROUPS):
        return
    if not state:
        raise CheckpointError(f"{path} holds no weights: the file is empty, or was not finished")
    for others, description, way_out in _OTHER_LAYOUTS:
        if groups & others:
            raise CheckpointError(f"{path} is {description}. {way_out}")
    raise CheckpointError(
        f"{path} has {len(state)} weights that no EfficientSAM3 model has: {list_some(state)}. "
        "Is it a checkpoint of EfficientSAM3, SAM3-LiteText or SAM3?"
    )


_TRUNK = "backbone.vision_backbone.trunk."
_FAMILIES = {
    # a key that only this family has, and sizes by the width that the projection reads
    "repvit": ("model.backbone.model.features.0.0.", {384: "m0.9", 512: "m1.1", 640: "m2.3"}),
    "tinyvit": ("model.backbone.model.patch_embed.seq.", {320: "5m", 448: "11m", 576: "21m"}),
    "efficientvit": ("model.backbone.model.input_stem.", {128: "b0", 256: "b1", 384: "b2"}),
}


def _recognize_vision(state: State) -> str | None:
    head = state.get(_TRUNK + "model.head.0.weight")
    for family, (marker, sizes) in _FAMILIES.items():
        if any(k.startswith(_TRUNK + marker) for k in state):
            size = sizes.get(_length(head, 1))
            if size is None:
                raise CheckpointError(
                    f"the file has a {family} image encoder but no projection head "
                    f"({_TRUNK}model.head.0.weight) of {', '.join(map(str, sizes))} inputs"
                )
            return f"{family}-{size}"
    # Checked last: some student files contain SAM3's encoder besides their own.
    return "sam3" if _TRUNK + "patch_embed.proj.weight" in state else None


def _recognize_text(state: State) -> tuple[str | None, int]:
    """The name of the text encoder and the rows of its position table."""
    text = "backbone.language_backbone.encoder."
    if text + "token_embedding.weight" in state:
        return "sam3", _length(state.get(text + "positional_embedding"), 0)
    embedding = state.get(text + "embedding_layer.weight")
    if embedding is None:
        return None, 0
    positions = _length(state.get(text + "positional_embedding.pos_embed.pos_embed"), 2)
    if _length(embedding, 1) == 768:
        return "mobileclip2-l", positions
    has_mixers = any(k.startswith(text) and ".token_mixer." in k for k in state)
    return ("mobileclip-s0" if has_mixers else "mobileclip-s1"), positions


def _length(weight: Tensor | None, axis: int) -> int:
    """The length of an axis; 0 where there is no such weight or axis."""
    return weight.shape[axis] if weight is not None and weight.ndim > axis else 0

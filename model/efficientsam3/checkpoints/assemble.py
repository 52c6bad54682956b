"""Build a model from weights, strictly: every weight is expected, present and of its shape."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ..build import build
from ..config import OPTIONAL, PART_NAMES, REQUIRED, TEXTS, MemoryConfig, ModelConfig, StudentConfig
from ..data.json_records import read_json
from ..errors import ArgumentError, CheckpointError, WeightsNotFoundError
from ..nn.detector import Detector
from ..variants import CONFIG_FILE, WEIGHTS_FILE, Packaged, Variant
from . import layout
from .read import Contents, State, first_line, list_some, read_state

FORMAT = 1
"""Version of ``config.json`` in a saved folder."""


# Saved folders --------------------------------------------------------------------------------


def load_folder(folder: str | Path) -> tuple[str, ModelConfig, Detector]:
    """Load a folder that ``save_folder`` wrote.

    Args:
        folder: A folder with ``config.json`` and ``model.safetensors``.

    Returns:
        The model's name, its configuration, and the model.

    Raises:
        WeightsNotFoundError: A file is missing.
        CheckpointError: A file is damaged, or the two do not fit together.
    """
    folder = Path(folder)
    name, config = read_config(folder)
    state = read_state(folder / WEIGHTS_FILE)
    return name, config, assemble(config, state, str(folder))


def read_config(folder: Path) -> tuple[str, ModelConfig]:
    """The name and the configuration of a saved model.

    Args:
        folder: A folder with ``config.json``.

    Raises:
        WeightsNotFoundError: The file is missing.
        CheckpointError: It is not the configuration of a model, or of a later format.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise WeightsNotFoundError(
            f"{folder} has no {CONFIG_FILE}: it is not a folder that model.save(...) wrote"
        )
    content = read_json(path, CheckpointError)
    try:
        if "transformers_version" in content:
            raise CheckpointError(
                f"{folder} is a folder of Hugging Face transformers. Load its weight file: "
                f"load('<name>', checkpoint='{folder / WEIGHTS_FILE}')"
            )
        if content["format"] != FORMAT:
            raise CheckpointError(
                f"{path} is of format {content['format']}; this version reads {FORMAT}. "
                "Update efficientsam3."
            )
        return str(content["name"]), ModelConfig.from_dict(content["model"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a model's configuration: {error!r}") from error


def config_of(variant: Variant) -> ModelConfig:
    """The configuration of a row of the table, with every part that its file should contain.

    Args:
        variant: A row of ``variants.VARIANTS``.

    Raises:
        WeightsNotFoundError: The folder of a packaged model is missing.
    """
    if isinstance(variant.weights, Packaged):
        return read_config(variant.weights.find())[1]
    parts: tuple[str, ...] = ("geometry", "masks")
    if "interactive" in variant.abilities:
        parts += ("interactive", "interactive_neck")
        parts += ("propagation_neck", "multiplex") if variant.release == "3.1" else ("memory",)
    scales = (4.0, 2.0, 1.0) if variant.release == "3.1" else (4.0, 2.0, 1.0, 0.5)
    parts = tuple(p for p in OPTIONAL if p in parts)
    return ModelConfig(variant.vision, variant.text, variant.context, parts, scales)


# Files in others' layouts ---------------------------------------------------------------------


def load_upstream(
    checkpoint: str | Path,
    variant: Variant | None = None,
    *,
    base: str | Path | None = None,
    text: str | None = None,
    context: int | None = None,
) -> tuple[ModelConfig, Detector]:
    """Load a file in upstream's or transformers' layout, strictly.

    Args:
        checkpoint: A released file, or one with the same keys.
        variant: The model that the file should be. None: recognized by its keys.
        base: A second file, for parts that the first lacks entirely.
        text: The text encoder to use, if ``base`` has another than ``checkpoint``.
        context: Tokens of a phrase, at most the rows of the file's position table. None: the
            variant's, or all rows.

    Returns:
        The model's configuration and the model.

    Raises:
        WeightsNotFoundError: There is no such file.
        CheckpointError: The file is of another model, has unknown weights, lacks some, or has
            some of wrong shapes.
        ArgumentError: There is no such text encoder, or the context does not fit.
    """
    if text is not None:
        text = text.lower()
        if text not in TEXTS:
            raise ArgumentError(f"unknown text encoder {text!r}; known: {', '.join(TEXTS)}")
    first = Contents.read(checkpoint)
    sources = [first, *([Contents.read(base)] if base is not None else [])]
    vision = _choose(sources, "vision", variant.vision if variant else None, "image encoder")
    text = _choose(sources, "text", text, "text encoder")
    state: State = {}
    has_points = True
    for source in sources:
        have = _parts_of(state)
        is_wanted = {"trunk": source.vision == vision, "text": source.text == text}
        for key, value in source.renamed().items():
            part = _part(key)
            if part not in have and is_wanted.get(part, True):
                state[key] = value
        if "geometry" in _parts_of(state) - have:
            has_points = source.has_points
    positions = next(s.positions for s in sources if s.text == text)
    context = _choose_context(context, positions, text, variant, first.path)
    table = state.get("text.positions")
    if table is not None and table.ndim > 1:  # another shape is refused with the others
        state["text.positions"] = table[..., :context, :].clone()
    scales = (4.0, 2.0, 1.0) if first.release == "3.1" else (4.0, 2.0, 1.0, 0.5)
    if first.release == "3.0" and not any(k.startswith("neck.levels.3.") for k in state):
        scales = scales[:3]
    if len(scales) == 3:  # the second neck may still have the fourth level, which is not used
        state = {k: v for k, v in state.items() if "_neck.levels.3." not in k}
    have = _parts_of(state)
    parts = tuple(p for p in OPTIONAL if p in have)
    memory = _memory_config(state)
    try:
        config = ModelConfig(
            vision, text, context, parts, scales, memory=memory, point_exemplars=has_points
        )
    except ArgumentError as error:
        raise CheckpointError(
            f"{_join(sources)} is damaged or of another model: {error}"
        ) from error
    return config, assemble(config, state, _join(sources))


def _choose(sources: list[Contents], field: str, wanted: str | None, meaning: str) -> str:
    """The encoder to use: the wanted one, or the first file's."""
    found = [e for s in sources if (e := getattr(s, field)) is not None]
    if not found:
        raise CheckpointError(
            f"{_join(sources)} has no {meaning}. Pass base=... with a file that has one, "
            "such as a full checkpoint of the same release."
        )
    if wanted is None:
        return found[0]
    if wanted not in found:
        raise CheckpointError(
            f"{_join(sources)} has the {meaning} {' and '.join(found)}, not {wanted}. "
            f"Load it as a model with {found[0]}, or pass a file with {wanted}."
        )
    return wanted


def _choose_context(
    context: int | None, positions: int, text: str, variant: Variant | None, path: Path
) -> int:
    if context is None:
        is_variants = variant is not None and variant.text == text
        return min(variant.context, positions) if is_variants and variant else positions
    if not 3 <= context <= positions:
        raise ArgumentError(
            f"context={context}, but the text encoder in {path} has positions for {positions} "
            f"tokens: choose 3 to {positions}"
        )
    return context


def _memory_config(state: State) -> MemoryConfig:
    """The sizes of a tracker, from the shapes of its weights; SAM3's where there is none."""

    def layers(prefix: str) -> int:
        return len({k[len(prefix) :].split(".", 1)[0] for k in state if k.startswith(prefix)})

    depth = layers("memory.attention.layers.")
    if not depth:
        return MemoryConfig()
    latents, latents_2d = (state.get(f"memory.perceiver.{n}") for n in ("latents", "latents_2d"))
    if latents is None and latents_2d is None:
        return MemoryConfig(depth)
    return MemoryConfig(
        depth,
        0 if latents is None else len(latents),
        0 if latents_2d is None else round(len(latents_2d) ** 0.5),
        layers("memory.perceiver.layers."),
    )


def _join(sources: list[Contents]) -> str:
    return " and ".join(str(s.path) for s in sources)


def _part(key: str) -> str:
    return key.split(".", 1)[0]


def _parts_of(state: State) -> set[str]:
    return {_part(key) for key in state}


# Assembly -------------------------------------------------------------------------------------


def assemble(config: ModelConfig, state: State, where: str) -> Detector:
    """Build a model and put weights into it. Tensors are taken over, not copied.

    Args:
        config: The model's configuration.
        state: Weights by our keys.
        where: The source of the weights, as errors name it.

    Returns:
        The model in eval mode, in float32, without gradients.

    Raises:
        CheckpointError: A weight is missing, unknown, of another shape, or not finite; or the
            numbers of the configuration do not go together.
    """
    with _of_one_model(where):
        net = build(config, "meta")
    expected = net.state_dict()
    learned = {k: v for k, v in expected.items() if not layout.DERIVED.search(k)}
    missing = learned.keys() - state.keys() - layout.UNREAD
    for part in (*REQUIRED, *config.parts):
        missing_here = {k for k in missing if _part(k) == part}
        expected_here = {k for k in learned if _part(k) == part}
        if expected_here and missing_here == expected_here and part in REQUIRED:
            raise CheckpointError(
                f"{where} has no {PART_NAMES[part]} (group {part!r}). "
                "Pass base=... with a file that has it."
            )
        if missing_here:
            raise CheckpointError(
                f"{where} has only part of the {PART_NAMES[part]}: {len(missing_here)} of "
                f"{len(expected_here)} weights are missing: {list_some(missing_here)}. The file "
                "is cut or of another model."
            )
    unknown = state.keys() - expected.keys()
    if unknown:
        raise CheckpointError(
            f"{where} has {len(unknown)} weights that {_title(config)} has not: "
            f"{list_some(unknown)}"
        )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{where}: {key} is {tuple(value.shape)}, but {_title(config)} needs "
                f"{tuple(expected[key].shape)}"
            )
        if value.is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(
                f"{where}: {key} holds {value.dtype}, but {_title(config)} needs "
                f"{expected[key].dtype}; quantized weights and other conversions are not read"
            )
        if value.is_floating_point():
            # Both limits propagate NaN, and are twenty times faster than a test of each value.
            if value.numel() and not torch.stack(torch.aminmax(value)).isfinite().all():
                raise CheckpointError(
                    f"{where}: {key} holds NaN or infinite values; the file is damaged, or the "
                    "training that wrote it diverged"
                )
            state[key] = value.float()
    for key, value in expected.items():
        if key not in state:  # counters of batch norm, and what no model reads
            state[key] = torch.zeros(value.shape, dtype=value.dtype)
    net.load_state_dict(state, strict=True, assign=True)
    with _of_one_model(where):
        _compute_derived(net)
    return net.eval().requires_grad_(False)


@contextmanager
def _of_one_model(where: str) -> Iterator[None]:
    """Name the source where numbers of a configuration do not go together."""
    try:
        yield
    except Exception as error:  # torch, timm and Python refuse wrong sizes in many ways
        raise CheckpointError(
            f"the configuration of {where} is of no network that can be built: "
            f"{first_line(error)}. Save the model again, or take its files from their source"
        ) from error


def _title(config: ModelConfig) -> str:
    vision = config.vision
    if isinstance(vision, StudentConfig):
        vision = f"a {vision.encoder.split('-')[0]} of its own sizes"
    elif not isinstance(vision, str):
        vision = "a ViT"
    text = config.text if isinstance(config.text, str) else config.text.kind
    return f"a model of {vision} and {text} with context {config.context}"


def _compute_derived(net: nn.Module) -> None:
    """Fill the buffers that follow from shapes: no file has them, and "meta" has no values."""
    for module in net.modules():
        empty = [n for n, b in module._buffers.items() if b is not None and b.is_meta]
        for name in empty:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")  # type: ignore[arg-type]
        if empty:
            module.init_non_persistent_buffers()  # type: ignore[operator]  # timm's name for it

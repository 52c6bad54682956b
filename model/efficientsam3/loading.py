"""`load`: make a model from a name of the table, a saved folder or a checkpoint."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .errors import ArgumentError, shorten
from .runtime.manifest import BACKENDS, is_exported
from .variants import CONFIG_FILE, WEIGHTS_FILE, Packaged, find_variant

if TYPE_CHECKING:
    import torch

    from .build import ModelConfig
    from .nn.detector import Detector
    from .predictor import ImageModel
    from .runtime.model import ExportedModel


@overload
def load(
    name: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    text: str | None = None,
    context: int | None = None,
    base: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    speed: str = "exact",
    backend: None = None,
) -> ImageModel: ...


@overload
def load(
    name: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    text: str | None = None,
    context: int | None = None,
    base: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    speed: str = "exact",
    *,
    backend: str,
) -> ExportedModel: ...


def load(
    name: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    text: str | None = None,
    context: int | None = None,
    base: str | os.PathLike[str] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    speed: str = "exact",
    backend: str | None = None,
) -> ImageModel | ExportedModel:
    """Load a model from the package, from the hub, or from files.

    Args:
        name: A name of ``list_models()``, or a folder that ``ImageModel.save`` or
            ``export.export_model`` wrote. "efficientsam3-stickers" is part of the package and needs
            no network.
        checkpoint: A local file instead of the hub's: upstream's .pt or .pth, or a .safetensors
            with the same keys.
        text: Another text encoder than the name's: "mobileclip-s0", "mobileclip-s1",
            "mobileclip2-l" or "sam3"; ``checkpoint`` or ``base`` must contain it.
        context: Tokens of a phrase (16, 32, 77), at most what the weights have. None: the
            model's own.
        base: A second file, for parts that the first lacks.
        device: "cpu", "cuda", "mps", or a device of the runtime. None: the fastest on this machine;
            the CPU for a runtime.
        dtype: float32, bfloat16 or float16. None: bfloat16 where the hardware computes in it, and
            float32 with ``backend``. With float32 outputs equal upstream's up to rounding.
        speed: "exact", or "fast": pooled keys and values in the fusion encoder.
        backend: "openvino" or "onnx": the model is exported to a cache once, and run by OpenVINO or
            ONNX Runtime. None: PyTorch, or what an exported folder was exported to.

    Returns:
        The model. With ``backend``, and for an exported folder, an ``ExportedModel``, which
        segments images and has no PyTorch network.

    Raises:
        ArgumentError: An argument has a wrong value, or arguments do not go together.
        UnknownModelError: There is no such name.
        WeightsNotFoundError: The weights are not on this machine and cannot be downloaded.
        CheckpointError: A file is damaged or of another model or version.
        MissingPackageError: The runtime is not installed.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip():
        raise ArgumentError(
            f"a model is a name of list_models() or a saved folder; got {shorten(name)}"
        )
    for argument, value in (("checkpoint", checkpoint), ("base", base)):
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise ArgumentError(f"{argument} is the path of a file; got {shorten(value)}")
    if text is not None and not isinstance(text, str):
        raise ArgumentError(f"text is the name of a text encoder; got {shorten(text)}")
    if backend is not None and backend not in BACKENDS:
        raise ArgumentError(
            f"backend is {' or '.join(map(repr, BACKENDS))}, or None for PyTorch; "
            f"got {shorten(backend)}"
        )
    options: dict[str, Any] = {"device": device, "dtype": dtype, "speed": speed}
    given = {"checkpoint": checkpoint, "text": text, "context": context, "base": base}
    if is_exported(Path(name)):
        return _load_exported(Path(name), backend, given, options)
    model = _load_torch(name, given, options | ({"device": "cpu"} if backend else {}))
    if backend is None:
        return model
    from .export.cache import cached_export
    from .runtime.model import ExportedModel

    precision = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    return ExportedModel(cached_export(model, backend, precision), _name(device))


def _name(device: torch.device | str | None) -> str | None:
    return None if device is None else str(device)


def _load_exported(
    folder: Path, backend: str | None, given: dict[str, Any], options: dict[str, Any]
) -> ExportedModel:
    """Load an exported folder, whose precision and speed were chosen when it was exported."""
    from .runtime.model import ExportedModel

    model = ExportedModel(folder, _name(options["device"]))
    m = model.manifest
    asked = {key for key, value in given.items() if value is not None}
    if options["dtype"] is not None and str(options["dtype"]).removeprefix("torch.") != m.precision:
        asked.add("dtype")
    if options["speed"] not in ("exact", m.speed):
        asked.add("speed")
    if backend not in (None, m.backend):
        asked.add("backend")
    if asked:
        raise ArgumentError(
            f"{folder} was exported as {m.precision} with speed={m.speed!r} for {m.backend}, and "
            f"{', '.join(sorted(asked))} cannot be changed now; export the model again with other "
            "values"
        )
    return model


def _load_torch(
    name: str | os.PathLike[str], given: dict[str, Any], options: dict[str, Any]
) -> ImageModel:
    """Load a model that PyTorch runs; ``given`` are arguments that a downloaded model takes."""
    from .checkpoints.hub import download
    from .checkpoints.sources import WeightFiles
    from .predictor import ImageModel

    if Path(name).is_dir():
        return _load_folder(Path(name), str(name), given, options)
    checkpoint, base = given["checkpoint"], given["base"]
    variant = find_variant(str(name))
    if isinstance(variant.weights, Packaged):
        return _load_folder(variant.weights.find(), variant.name, given, options)
    path = Path(checkpoint) if checkpoint is not None else download(variant.name)
    second = None if base is None else Path(base).absolute()
    arguments = (path.absolute(), variant.name, second, given["text"], given["context"])
    config, first = _read_upstream(*arguments)
    files = [path, *([] if second is None else [second])]
    source = WeightFiles(partial(_read_upstream, *arguments), files, first)
    return ImageModel(variant.name, config, source, **options)


def _read_upstream(
    path: Path, name: str, base: Path | None, text: str | None, context: int | None
) -> tuple[ModelConfig, Detector]:
    from .checkpoints.assemble import load_upstream

    return load_upstream(path, find_variant(name), base=base, text=text, context=context)


def _read_folder(folder: Path) -> tuple[ModelConfig, Detector]:
    from .checkpoints.assemble import load_folder

    return load_folder(folder)[1:]


def _load_folder(
    folder: Path, name: str, given: dict[str, Any], options: dict[str, Any]
) -> ImageModel:
    """Load a saved folder; ``given`` are the arguments that only a downloaded model takes."""
    from .checkpoints.assemble import load_folder
    from .checkpoints.sources import WeightFiles
    from .predictor import ImageModel

    for argument, value in given.items():
        if value is not None:
            raise ArgumentError(
                f"{name} is a complete saved model; {argument}= goes with a name of "
                "list_models() that comes from the hub"
            )
    folder = folder.absolute()
    saved_name, config, first = load_folder(folder)
    files = [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
    source = WeightFiles(partial(_read_folder, folder), files, first)
    return ImageModel(saved_name, config, source, **options)

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

    from .checkpoints.sources import WeightFiles
    from .config import ModelConfig
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
    adapter: str | os.PathLike[str] | None = None,
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
    adapter: str | os.PathLike[str] | None = None,
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
    adapter: str | os.PathLike[str] | None = None,
) -> ImageModel | ExportedModel:
    """Load a model from the package, from the hub, or from files.

    Args:
        name: A name of ``list_models()``, or a folder that ``ImageModel.save`` or
            ``export.export_model`` wrote. "efficientsam3-stickers" is part of the package and needs
            no network.
        checkpoint: A local file instead of the hub's: upstream's .pt or .pth, a .safetensors with
            the same keys, or the model.safetensors of Hugging Face transformers; of a file in
            parts its model.safetensors.index.json.
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
        adapter: What ``efficientsam3 finetune`` wrote: its file, or the folder of the run. The
            model's name then ends in "+" and the name of the adapter.

    Returns:
        The model. With ``backend``, and for an exported folder, an ``ExportedModel``, which
        segments images and has no PyTorch network.

    Raises:
        ArgumentError: An argument has a wrong value, or arguments do not go together.
        UnknownModelError: There is no such name.
        WeightsNotFoundError: The weights are not on this machine and cannot be downloaded.
        CheckpointError: A file is damaged or of another model or version; the adapter is of other
            weights.
        MissingPackageError: The runtime is not installed.
    """
    if backend is not None and backend not in BACKENDS:
        raise ArgumentError(
            f"backend is {' or '.join(map(repr, BACKENDS))}, or None for PyTorch; "
            f"got {shorten(backend)}"
        )
    options: dict[str, Any] = {"device": device, "dtype": dtype, "speed": speed}
    given: dict[str, Any] = {"checkpoint": checkpoint, "base": base}
    given |= {"text": text, "context": context}
    _check_names(name, given)
    if is_exported(Path(name)):
        return _load_exported(Path(name), backend, {**given, "adapter": adapter}, options)
    from .predictor import ImageModel

    weights = open_weights(name, **given, adapter=adapter)
    model = ImageModel(*weights, **options | ({"device": "cpu"} if backend else {}))
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


def open_weights(
    name: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str] | None = None,
    text: str | None = None,
    context: int | None = None,
    base: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> tuple[str, ModelConfig, WeightFiles]:
    """The learned weights of a model, without its inference form.

    Args:
        name: As ``load`` takes it, and so are the others; not an exported folder.
        checkpoint: A local file instead of the hub's.
        text: Another text encoder than the name's.
        context: Tokens of a phrase.
        base: A second file, for parts that the first lacks.
        adapter: What ``efficientsam3 finetune`` wrote.

    Returns:
        The model's name and configuration; and its weights, which are read again at each call.

    Raises:
        EfficientSam3Error: As ``load``.
    """
    from .checkpoints.adapter import adapter_path
    from .checkpoints.sources import WeightFiles

    given = {"checkpoint": checkpoint, "text": text, "context": context, "base": base}
    _check_names(name, given)
    if is_exported(Path(name)):
        raise ArgumentError(
            f"{name} is an exported model, which has no learned weights: take the model that it "
            "was exported from"
        )
    changes = None if adapter is None else adapter_path(adapter).absolute()
    read, files = _find(name, given, changes)
    title, config, first = read()
    files += [] if changes is None else [changes]
    return title, config, WeightFiles(read, files, first)


def _find(
    name: str | os.PathLike[str], given: dict[str, Any], adapter: Path | None
) -> tuple[partial[tuple[str, ModelConfig, Detector]], list[Path]]:
    """What reads a model, and the files that it reads; weights are downloaded if need be."""
    from .checkpoints.hub import download
    from .checkpoints.parts import weight_files

    folder = Path(name) if Path(name).is_dir() else None
    title = str(name)
    if folder is None:
        variant = find_variant(title)
        title = variant.name
        if isinstance(variant.weights, Packaged):
            folder = variant.weights.find()
    if folder is not None:
        for argument, value in given.items():
            if value is not None:
                raise ArgumentError(
                    f"{title} is a complete saved model; {argument}= goes with a name of "
                    "list_models() that comes from the hub"
                )
        folder = folder.absolute()
        return partial(_read_folder, folder, adapter), [folder / CONFIG_FILE, folder / WEIGHTS_FILE]
    checkpoint, base = given["checkpoint"], given["base"]
    path = Path(checkpoint) if checkpoint is not None else download(title)
    second = None if base is None else Path(base).absolute()
    read = partial(
        _read_upstream, path.absolute(), title, second, given["text"], given["context"], adapter
    )
    return read, [part for file in (path, second) if file for part in weight_files(file)]


def _read_upstream(
    path: Path,
    name: str,
    base: Path | None,
    text: str | None,
    context: int | None,
    adapter: Path | None,
) -> tuple[str, ModelConfig, Detector]:
    from .checkpoints.assemble import load_upstream

    config, net = load_upstream(path, find_variant(name), base=base, text=text, context=context)
    return _adapted(name, config, net, adapter, str(path))


def _read_folder(folder: Path, adapter: Path | None) -> tuple[str, ModelConfig, Detector]:
    from .checkpoints.assemble import load_folder

    name, config, net = load_folder(folder)
    return _adapted(name, config, net, adapter, str(folder))


def _adapted(
    name: str, config: ModelConfig, net: Detector, adapter: Path | None, where: str
) -> tuple[str, ModelConfig, Detector]:
    """A model with the changes of an adapter, which its name tells."""
    if adapter is None:
        return name, config, net
    from .checkpoints.adapter import Adapter

    changes = Adapter.load(adapter)
    changes.apply(config, net, where)
    return f"{name}+{changes.name}", config, net


def _check_names(name: Any, given: dict[str, Any]) -> None:
    """Check the types of arguments that name a model and its files."""
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip():
        raise ArgumentError(
            f"a model is a name of list_models() or a saved folder; got {shorten(name)}"
        )
    for argument in ("checkpoint", "base"):
        value = given[argument]
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise ArgumentError(f"{argument} is the path of a file; got {shorten(value)}")
    if given["text"] is not None and not isinstance(given["text"], str):
        raise ArgumentError(f"text is the name of a text encoder; got {shorten(given['text'])}")

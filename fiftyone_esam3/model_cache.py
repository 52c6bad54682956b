"""One copy of each loaded model in a process, shared by zoo models, operators and the panel."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import efficientsam3 as es3
from efficientsam3.checkpoints.adapter import adapter_path
from efficientsam3.variants import VARIANTS, WEIGHTS_FILE, Packaged

MODEL_LOCK = threading.RLock()
"""Held while a model is loaded or computes. The App serves requests from several threads; two
computations at the same time are no faster and need twice the memory."""

_models: weakref.WeakValueDictionary[tuple[Any, ...], es3.ImageModel] = (
    weakref.WeakValueDictionary()
)
_last_used: list[es3.ImageModel] = []


def load_core(name: str, **options: Any) -> es3.ImageModel:
    """Load a model with ``efficientsam3.load``, or give the copy that is already in memory.

    Args:
        name: a model name, or the folder of a saved model.
        **options: further arguments of ``efficientsam3.load``.
    """
    stamps = file_stamp(name), adapter_stamp(options.get("adapter"))
    key = (str(name), stamps, *((k, str(v)) for k, v in sorted(options.items())))
    with MODEL_LOCK:
        model = _models.get(key)
        if model is None:
            model = _models[key] = es3.load(name, **options)
    return model


def load_for_run(name: str, **options: Any) -> es3.ImageModel:
    """Load a model and keep it in memory until another one is loaded, for the next run.

    Args:
        name: a model name, or the folder of a saved model.
        **options: further arguments of ``efficientsam3.load``.

    Raises:
        WeightsNotFoundError: the weights are not on this machine and cannot be downloaded.
    """
    with MODEL_LOCK:
        try:
            model = load_core(name, **options)
        except es3.WeightsNotFoundError as error:
            # Forms and the panel take a name or a folder, and no file of weights.
            raise es3.WeightsNotFoundError(
                error.reason,
                f". To use a file that you have, run "
                f"efficientsam3.load({name!r}, checkpoint='<the file>').save('<a folder>') once in "
                "Python, and give the folder as the model",
            ) from error
        _last_used[:] = [model]
    return model


def is_loaded(name: str) -> bool:
    """Whether this process has the model in memory.

    Args:
        name: a model name, or the folder of a saved model.
    """
    return any(key[0] == str(name) for key in list(_models))


def file_stamp(name: str) -> tuple[str, int] | None:
    """The path and the modification time of a saved model's weights, or None for other models.

    It changes when a model is saved over another one.

    Args:
        name: a model name, or the folder of a saved model.
    """
    folder = Path(name)
    row = VARIANTS.get(str(name))
    if row is not None and isinstance(row.weights, Packaged):
        folder = row.weights.location
    file = folder / WEIGHTS_FILE
    return (str(file.resolve()), file.stat().st_mtime_ns) if file.is_file() else None


def adapter_stamp(adapter: Any) -> tuple[str, int] | None:
    """The path and the modification time of an adapter, or None without one.

    Args:
        adapter: the file of an adapter, the folder of a run, or None.
    """
    if not adapter:
        return None
    file = adapter_path(adapter)
    return str(file.resolve()), file.stat().st_mtime_ns

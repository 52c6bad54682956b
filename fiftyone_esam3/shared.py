"""One copy of a model's weights in a process, whoever asks for it: zoo, operators, panel."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Any

import efficientsam3 as es3
from efficientsam3.variants import VARIANTS, WEIGHTS_FILE, Packaged

COMPUTING = threading.RLock()
"""Held while a model answers. The App serves requests from several threads; a second answer at
the same time would be no sooner, and would need the memory twice."""

_models: weakref.WeakValueDictionary[tuple[Any, ...], es3.ImageModel] = (
    weakref.WeakValueDictionary()
)
_last: list[es3.ImageModel] = []


def load_core(name: str, **options: Any) -> es3.ImageModel:
    """``efficientsam3.load``, but a model that somebody still has is not read again.

    Args:
        **options: of ``efficientsam3.load``.
    """
    key = (str(name), stamp(name), *((k, str(v)) for k, v in sorted(options.items())))
    model = _models.get(key)
    if model is None:
        model = _models[key] = es3.load(name, **options)
    return model


def keep(model: es3.ImageModel) -> None:
    """Holds on to a model until another one is kept, so that the next run finds it loaded."""
    _last[:] = [model]


def is_loaded(name: str) -> bool:
    """Whether some process-wide copy of this model exists."""
    return any(key[0] == str(name) for key in list(_models))


def stamp(name: str) -> tuple[str, int] | None:
    """Tells a saved model from another one that was saved over it."""
    folder = Path(name)
    row = VARIANTS.get(str(name))
    if row is not None and isinstance(row.weights, Packaged):
        folder = row.weights.location
    file = folder / WEIGHTS_FILE
    return (str(file.resolve()), file.stat().st_mtime_ns) if file.is_file() else None

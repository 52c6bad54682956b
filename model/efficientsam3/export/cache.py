"""Exports that ``load(..., backend=...)`` makes once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .. import __version__
from ..predictor import ImageModel
from ..runtime.manifest import FORMAT, is_exported, read_manifest
from .folder import export_model


def cache_folder() -> Path:
    """The folder of the exports: ``efficientsam3/exports`` in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "efficientsam3" / "exports"


def cached_export(model: ImageModel, backend: str, precision: str) -> Path:
    """Return the export of a model, which is made if it is not in the cache.

    Args:
        model: The model.
        backend: "onnx" or "openvino".
        precision: As in ``export_model``.

    Returns:
        The exported folder. It is found by name, configuration and weights.
    """
    digest = hashlib.sha256(repr((FORMAT, model.key[0], model.config)).encode())
    safe = "".join(c if c.isalnum() or c in "-._" else "-" for c in Path(model.name).name)
    parts = (safe, backend, precision, model.speed, __version__, digest.hexdigest()[:12])
    place = cache_folder() / "-".join(parts)
    # Exports of earlier versions have fewer abilities.
    if not is_exported(place) or set(read_manifest(place).abilities) != model.abilities:
        export_model(model, place, backend, precision)
    return place

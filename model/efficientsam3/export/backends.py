"""A model in every runtime that is installed, for comparison."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ..predictor import ImageModel
from ..runtime.model import ExportedModel
from .cache import cached_export
from .folder import PACKAGES, export_model

COMPARED = (("onnx", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"))
"""Backends with a precision; others have the same arithmetic or need pictures."""


def exports_of(
    model: ImageModel, *, cached: bool, report: Callable[[str], None]
) -> Iterator[tuple[str, ExportedModel, str]]:
    """Load a model's exports, one after the other.

    Args:
        model: The model.
        cached: Whether exports are kept in the cache, as by ``load(..., backend=...)``.
        report: Called with what is being done.

    Yields:
        A name, the exported model, and its mask IoU with PyTorch as text, "" where it has no masks.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for backend, precision in COMPARED:
            if any(importlib.util.find_spec(name) is None for name in PACKAGES[backend]):
                continue
            report(f"exporting to {backend} in {precision}")
            if cached:
                place = cached_export(model, backend, precision)
            else:
                place = Path(temporary, f"{backend}-{precision}")
                export_model(model, place, backend, precision)
            found = ExportedModel(place)
            overlap = found.manifest.agreement.get("mask IoU", "")
            yield f"{backend} {precision}", found, str(overlap)

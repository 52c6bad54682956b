"""Errors of exports."""

from __future__ import annotations

from ..errors import EfficientSam3Error


class ExportError(EfficientSam3Error, RuntimeError):
    """A model cannot be exported."""

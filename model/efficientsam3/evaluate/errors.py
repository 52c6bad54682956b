"""Errors of evaluation."""

from __future__ import annotations

from ..errors import EfficientSam3Error


class PredictionError(EfficientSam3Error, ValueError):
    """Predictions cannot be read, or do not belong to the ground truth."""

"""What can be wrong with files that are to be evaluated."""

from __future__ import annotations

from ..errors import EfficientSam3Error


class AnnotationError(EfficientSam3Error, ValueError):
    """Ground truth that cannot be read, or contradicts itself; names the file and the record."""


class PredictionError(EfficientSam3Error, ValueError):
    """Predictions that cannot be read, or are not of this ground truth."""


class ResumeError(EfficientSam3Error, RuntimeError):
    """A run that was stopped cannot go on: the model or the ground truth is another."""

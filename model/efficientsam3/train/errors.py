"""Errors of training. Each message states the value, the rule and the way out."""

from __future__ import annotations

from ..errors import EfficientSam3Error


class FeatureFileError(EfficientSam3Error, ValueError):
    """Saved teacher features are damaged, cut short, or of another teacher or data set."""


class SettingsError(EfficientSam3Error, ValueError):
    """A setting does not exist, or has a value that is not allowed."""


class RecipeError(EfficientSam3Error, ValueError):
    """A recipe or stage does not exist, or an earlier stage is not done."""


class TrainingError(EfficientSam3Error, RuntimeError):
    """Training cannot go on: losses that are not finite, batches that end, a folder in use."""


class TrainingStopped(EfficientSam3Error):
    """A signal stopped training; everything is saved."""

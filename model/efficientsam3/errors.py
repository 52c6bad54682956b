"""What can go wrong, by name. Each message says the value, the rule and the way out."""

from __future__ import annotations


class EfficientSam3Error(Exception):
    """Base of all errors of this package."""


class ImageError(EfficientSam3Error, ValueError):
    """An image that cannot be read, or is not an image."""


class PromptError(EfficientSam3Error, ValueError):
    """A prompt that means nothing: empty concept, wrong shape, labels that do not match."""


class CheckpointError(EfficientSam3Error, ValueError):
    """A weight file that is damaged, unsafe, or of another model."""


class MissingAbilityError(EfficientSam3Error, RuntimeError):
    """The loaded weights lack the part that answers this question."""


class WeightsNotFoundError(EfficientSam3Error, FileNotFoundError):
    """Weights are neither on this machine nor to be had from the hub."""

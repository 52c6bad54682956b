"""What can go wrong with what training reads and writes. Each message tells the way out."""

from __future__ import annotations

from ..errors import EfficientSam3Error


class DataError(EfficientSam3Error, ValueError):
    """A data set that is missing, empty, damaged, or contradicts itself."""


class FeatureFileError(EfficientSam3Error, ValueError):
    """Saved teacher features that are damaged, cut short, or of another teacher or data set."""

"""EfficientSAM3: every instance of a concept, in images and video, on the machine you have.

>>> import efficientsam3 as es3
>>> model = es3.load("efficientsam3-tinyvit-11m")
>>> out = model.segment("bus.jpg", ["person", "bus"])
>>> out.masks, out.boxes, out.scores, out.labels
"""

from .errors import (
    CheckpointError,
    EfficientSam3Error,
    ImageError,
    MissingAbilityError,
    PromptError,
    WeightsNotFoundError,
)
from .image import EncodedImage, Grounding, ImageModel, load
from .types import Instances
from .variants import list_models

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "EfficientSam3Error",
    "EncodedImage",
    "Grounding",
    "ImageError",
    "ImageModel",
    "Instances",
    "MissingAbilityError",
    "PromptError",
    "WeightsNotFoundError",
    "__version__",
    "list_models",
    "load",
]

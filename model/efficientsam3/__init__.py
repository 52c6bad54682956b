"""EfficientSAM3: every instance of a concept, in images and video, on the machine you have.

>>> import efficientsam3 as es3
>>> model = es3.load("efficientsam3-tinyvit-11m")
>>> out = model.segment("bus.jpg", ["person", "bus"])
>>> out.masks, out.boxes, out.scores, out.labels
"""

from typing import TYPE_CHECKING

from .errors import (
    ArgumentError,
    CheckpointError,
    EfficientSam3Error,
    ImageError,
    MissingAbilityError,
    PromptError,
    WeightsNotFoundError,
)
from .lazy import lazy_names as _lazy_names
from .variants import list_models

if TYPE_CHECKING:
    from .loading import load
    from .outputs import EncodedExemplars, EncodedImage, Grounding
    from .predictor import ImageModel
    from .types import Instances
    from .video.concept_tracker import ConceptTracker
    from .video.interactive import InteractiveTracker
    from .video.objects import ObjectPrompt
    from .video.settings import MemorySettings, TrackSettings
    from .video.track import track
    from .video.types import TrackedFrame

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "ConceptTracker",
    "EfficientSam3Error",
    "EncodedExemplars",
    "EncodedImage",
    "Grounding",
    "ImageError",
    "ImageModel",
    "Instances",
    "InteractiveTracker",
    "MemorySettings",
    "MissingAbilityError",
    "ObjectPrompt",
    "PromptError",
    "TrackSettings",
    "TrackedFrame",
    "WeightsNotFoundError",
    "__version__",
    "list_models",
    "load",
    "track",
]

# Torch takes seconds to import, and the command line's help needs none of it.
_MODULES = {
    ".loading": "load",
    ".outputs": "EncodedExemplars EncodedImage Grounding",
    ".predictor": "ImageModel",
    ".types": "Instances",
    ".video.concept_tracker": "ConceptTracker",
    ".video.interactive": "InteractiveTracker",
    ".video.objects": "ObjectPrompt",
    ".video.settings": "MemorySettings TrackSettings",
    ".video.track": "track",
    ".video.types": "TrackedFrame",
}

__getattr__, __dir__ = _lazy_names(__name__, _MODULES)

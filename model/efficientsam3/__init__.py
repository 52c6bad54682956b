"""EfficientSAM3: every instance of a concept, in images and video, on the machine you have.

>>> import efficientsam3 as es3
>>> model = es3.load("efficientsam3-tinyvit-11m")
>>> out = model.segment("bus.jpg", ["person", "bus"])
>>> out.masks, out.boxes, out.scores, out.labels
"""

from typing import TYPE_CHECKING

from .errors import (
    CheckpointError,
    EfficientSam3Error,
    ImageError,
    MissingAbilityError,
    PromptError,
    WeightsNotFoundError,
)
from .variants import list_models

if TYPE_CHECKING:
    from .image import EncodedImage, Grounding, ImageModel
    from .loading import load
    from .types import Instances
    from .video.bank import MemorySettings
    from .video.concepts import ConceptTracker, TrackedFrame
    from .video.interactive import InteractiveTracker
    from .video.settings import TrackSettings
    from .video.track import track

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConceptTracker",
    "EfficientSam3Error",
    "EncodedImage",
    "Grounding",
    "ImageError",
    "ImageModel",
    "Instances",
    "InteractiveTracker",
    "MemorySettings",
    "MissingAbilityError",
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
_LATER = {
    "ConceptTracker": "video.concepts",
    "EncodedImage": "image",
    "Grounding": "image",
    "ImageModel": "image",
    "Instances": "types",
    "InteractiveTracker": "video.interactive",
    "MemorySettings": "video.bank",
    "TrackSettings": "video.settings",
    "TrackedFrame": "video.concepts",
    "load": "loading",
    "track": "video.track",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

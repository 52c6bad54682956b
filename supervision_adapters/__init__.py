"""EfficientSAM3 in Supervision: concepts, masks and identities as `supervision.Detections`.

>>> import efficientsam3 as es3
>>> from supervision_adapters import ConceptDetector
>>> detector = ConceptDetector(es3.load("efficientsam3-tinyvit-11m"), ["person", "bus"])
>>> detections = detector.predict("street.jpg")

Ultralytics is in `supervision_adapters.ultralytics`, the plugin of McByte in
`supervision_adapters.mcbyte`. Nothing of Supervision, Ultralytics or trackers is imported before
it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .coco import CocoWriter
    from .detections import from_detections, to_detections
    from .detector import ConceptDetector
    from .errors import AdapterError, MissingPackageError
    from .memory import MemoryTracker
    from .tracking import MaskTracker, PerClassTracker, iter_track, register_with_trackers
    from .yolo import YoloWriter, yolo_rows

__all__ = [
    "AdapterError",
    "CocoWriter",
    "ConceptDetector",
    "MaskTracker",
    "MemoryTracker",
    "MissingPackageError",
    "PerClassTracker",
    "YoloWriter",
    "from_detections",
    "iter_track",
    "register_with_trackers",
    "to_detections",
    "yolo_rows",
]

_LATER = {
    "AdapterError": "errors",
    "CocoWriter": "coco",
    "ConceptDetector": "detector",
    "MaskTracker": "tracking",
    "MemoryTracker": "memory",
    "MissingPackageError": "errors",
    "PerClassTracker": "tracking",
    "YoloWriter": "yolo",
    "from_detections": "detections",
    "iter_track": "tracking",
    "register_with_trackers": "tracking",
    "to_detections": "detections",
    "yolo_rows": "yolo",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_LATER[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

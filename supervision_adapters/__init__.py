"""EfficientSAM3 for Supervision: concepts, masks and identities as `supervision.Detections`.

>>> import efficientsam3 as es3
>>> from supervision_adapters import ConceptDetector
>>> detector = ConceptDetector(es3.load("efficientsam3-tinyvit-11m"), ["person", "bus"])
>>> detections = detector.predict("street.jpg")

`supervision_adapters.ultralytics` works with Ultralytics, `supervision_adapters.mcbyte` with the
McByte tracker. Supervision, Ultralytics and trackers are imported when they are first used.
"""

from typing import TYPE_CHECKING

from efficientsam3.lazy import lazy_names

if TYPE_CHECKING:
    from .coco import CocoWriter
    from .detections import from_detections, to_detections
    from .detector import ConceptDetector
    from .errors import AdapterError, MissingPackageError
    from .memory import VideoMemoryTracker
    from .tracking import MaskIoUTracker, PerClassTracker, iter_track, register_with_trackers
    from .yolo import YoloWriter, yolo_rows

__all__ = [
    "AdapterError",
    "CocoWriter",
    "ConceptDetector",
    "MaskIoUTracker",
    "MissingPackageError",
    "PerClassTracker",
    "VideoMemoryTracker",
    "YoloWriter",
    "from_detections",
    "iter_track",
    "register_with_trackers",
    "to_detections",
    "yolo_rows",
]

_MODULES = {
    ".coco": "CocoWriter",
    ".detections": "from_detections to_detections",
    ".detector": "ConceptDetector",
    ".errors": "AdapterError MissingPackageError",
    ".memory": "VideoMemoryTracker",
    ".tracking": "MaskIoUTracker PerClassTracker iter_track register_with_trackers",
    ".yolo": "YoloWriter yolo_rows",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

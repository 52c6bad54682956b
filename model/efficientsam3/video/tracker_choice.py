"""Which tracker follows the objects: the video memory, or the overlap of detections."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingAbilityError, MissingPackageError, TrackError
from .settings import MemorySettings, TrackSettings

if TYPE_CHECKING:
    from ..predictor import ImageModel
    from .masklet_tracker import MaskletTracker
    from .memory_tracker import MemoryTracker

TRACKERS = ("auto", "memory", "iou")


def choose_tracker(
    model: ImageModel | None, tracker: str | MemoryTracker, settings: TrackSettings
) -> MaskletTracker | None:
    """Make what tracks objects by memory.

    Args:
        model: The model; None where detections are given.
        tracker: One of ``TRACKERS``, or a ``MemoryTracker``.
        settings: Settings of the tracker.

    Returns:
        The tracker; None where objects are tracked by the overlap of detections.

    Raises:
        TrackError: ``tracker`` has another value.
        MissingAbilityError: The model has no video memory, and ``tracker`` asks for it.
        MissingPackageError: PyTorch is not installed.
    """
    if not isinstance(tracker, str):
        from .masklet_tracker import MaskletTracker

        return MaskletTracker(tracker, settings)
    if tracker not in TRACKERS:
        raise TrackError(f"tracker is {', '.join(map(repr, TRACKERS))}; got {tracker!r}")
    has_memory = model is not None and {"video", "masks"} <= model.abilities
    if tracker == "iou" or (tracker == "auto" and not has_memory):
        return None
    if model is None or not has_memory:
        raise MissingAbilityError(
            f"{'no model' if model is None else model.name} has no video memory, so "
            "tracker='memory' cannot follow objects by it; take tracker='iou', which needs "
            "none, or a model that has one (`efficientsam3 models`)"
        )
    try:
        from .masklet_tracker import MaskletTracker
        from .multiplex_tracker import make_tracker
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "tracking by the video memory needs PyTorch, for exported models too: pip install "
            f"{error.name}, or take tracker='iou', which follows objects by the overlap of "
            "detections"
        ) from error
    memory = MemorySettings(memory_mask_size="memory")
    return MaskletTracker(make_tracker(model, memory), settings)

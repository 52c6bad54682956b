"""The settings of trackers, from the arguments that runs, forms and zoo models share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from efficientsam3.errors import ArgumentError
from efficientsam3.variants import UnknownModelError, find_variant
from efficientsam3.video.settings import CutSettings, TrackSettings


def make_settings(
    threshold: float | None,
    nms: float | None = None,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
    cuts: bool = True,
    presence: str = "multiply",
    model: Any = None,
) -> TrackSettings:
    """The settings with which concepts are tracked.

    Args:
        threshold: the lowest score of a detection, in [0, 1]. New tracks begin at the same score,
            so that a lower threshold also tracks weaker detections. None: as the model's release
            has it.
        nms: see ``TrackSettings.nms``. None: its default.
        class_agnostic: see ``TrackSettings``.
        overlap_metric: see ``TrackSettings``. "iou": as the model's release has it.
        cuts: whether tracks end where another scene begins.
        presence: see ``TrackSettings``.
        model: the model that tracks, whose release gives the other settings.

    Raises:
        TrackError: a value is out of its range.
        PromptError: ``presence`` is neither "multiply" nor "separate".
        ArgumentError: ``cuts`` is not True or False.
    """
    given: dict[str, Any] = {} if nms is None else {"nms": nms}
    given |= {} if overlap_metric == "iou" else {"overlap_metric": overlap_metric}
    usual = TrackSettings.of(model)
    if threshold is None:
        threshold = usual.detection_threshold
    return TrackSettings.of(
        model,
        detection_threshold=threshold,
        presence=presence,
        class_agnostic=class_agnostic,
        cuts=cut_settings(cuts),
        iou=replace(usual.iou, new_track_threshold=threshold),
        **given,
    )


def release_threshold(name: str) -> float:
    """The lowest score of a detection in videos, as the release of a model of the table has it.

    Args:
        name: name of the model; any other text has SAM3's threshold.
    """
    try:
        release = find_variant(name).release
    except UnknownModelError:
        release = "3.0"
    return TrackSettings.of_release(release).detection_threshold


def cut_settings(cuts: bool) -> CutSettings | None:
    """The settings of cuts; None where tracks go on through them.

    Args:
        cuts: whether tracks end where another scene begins.

    Raises:
        ArgumentError: it is not True or False.
    """
    if not isinstance(cuts, bool):
        raise ArgumentError(f"cuts is {cuts!r}; it can be True or False")
    return CutSettings() if cuts else None

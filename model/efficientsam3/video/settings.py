"""Settings of the trackers. The defaults are SAM3's; ``TrackSettings.of`` gives those of a model.

The names in parentheses are SAM3's: parameters of ``Sam3VideoBase`` (sam3/model/sam3_video_base.py)
or, for the memory, of ``Sam3TrackerBase`` (sam3/model/sam3_tracker_base.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from ..errors import TrackError, shorten
from ..masks.nms import check_overlap
from ..prompts import check_presence
from ..values import is_share, is_whole


def check_ranges(
    settings: object,
    shares: Sequence[str] = (),
    counts: Sequence[str] = (),
    positive: Sequence[str] = (),
    numbers: Sequence[str] = (),
    switches: Sequence[str] = (),
) -> None:
    """Raise TrackError for a value out of its range.

    Args:
        settings: A settings object.
        shares: Fields that are between 0 and 1.
        counts: Fields that are whole numbers from 0.
        positive: Fields that are whole numbers from 1.
        numbers: Fields that are numbers.
        switches: Fields that are True or False.
    """
    for name in numbers:
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TrackError(f"{name} is a number; got {shorten(value)}")
    for name in switches:
        if not isinstance(getattr(settings, name), bool):
            raise TrackError(f"{name} is True or False; got {shorten(getattr(settings, name))}")
    for name in shares:
        value = getattr(settings, name)
        if not is_share(value):
            raise TrackError(f"{name} is between 0 and 1; got {shorten(value)}")
    for name in (*counts, *positive):
        value, least = getattr(settings, name), int(name in positive)
        if not is_whole(value, least):
            raise TrackError(f"{name} is a whole number from {least}; got {shorten(value)}")


@dataclass(frozen=True)
class CutSettings:
    """When a frame begins another scene; see ``video.cuts``. All conditions must hold."""

    min_similarity: float = 0.65
    """The frame has less than this correlation with the frame before, moved onto it, in [0, 1]."""
    times_usual: float = 2.0
    """The frame differs from the one before by more than this number of times the median of the
    last eight frames, from 1."""
    min_shared_colors: float = 0.7
    """The two frames share less than this part of their color histograms, in [0, 1], or have less
    than half of ``min_similarity``."""

    def __post_init__(self) -> None:
        shares = ("min_similarity", "min_shared_colors")
        check_ranges(self, shares, numbers=("times_usual",))
        if not self.times_usual >= 1:
            raise TrackError(f"times_usual is 1 or more; got {self.times_usual}")


@dataclass(frozen=True)
class IoUSettings:
    """How ``IoUTracker`` joins the detections of frames to tracks."""

    match_iou: float = 0.1
    """A detection can continue a track when its mask has at least this IoU with the mask that is
    expected of the track, in [0, 1]."""
    shape_iou: float = 0.15
    """A detection elsewhere can continue a track when the two masks, moved onto each other, have
    at least this IoU, in [0, 1]. ``TrackSettings.of`` sets 0.25 for models with late fusion."""
    max_distance: float = 5.0
    """How far elsewhere that can be, in lengths of the object, from 0; it grows with the square
    root of the updates since the track was seen. 0: tracks continue by overlap alone."""
    new_track_threshold: float = 0.5
    """A detection that continues no track begins one when it has at least this score, in [0, 1]."""
    min_hits: int = 1
    """Number of updates, from 1, in which a track is detected before it gets an identity. Its
    identity is -1 until then."""
    max_age: int = 30
    """A track ends when it has not been detected for more than this number of frames, from 0."""

    def __post_init__(self) -> None:
        shares = ("match_iou", "shape_iou", "new_track_threshold")
        check_ranges(self, shares, ("max_age",), ("min_hits",), numbers=("max_distance",))
        if not self.max_distance >= 0:
            raise TrackError(f"max_distance is 0 or more lengths; got {self.max_distance}")


@dataclass(frozen=True)
class MemorySettings:
    """How much of the past the memory tracker keeps and reads for each object."""

    max_cond_frames: int = 4
    """Number of conditioning frames that are read, from 1: the nearest in time of those on which
    the object was given by a mask or by points (SAM3: ``max_cond_frames_in_attn``)."""
    max_object_pointers: int = 16
    """Number of frames whose object pointers are read, from 2, the current frame included (SAM3:
    ``max_obj_ptrs_in_encoder``, or the length of the clip where that is less)."""
    memory_selection: bool | None = None
    """Whether the latest frames on which the object was seen well are read, instead of the latest
    frames (SAM3: ``use_memory_selection``). None: as the model's release does; SAM3 yes, SAM3.1
    no."""
    min_memory_score: float = 0.01
    """An object was seen well on a frame when the presence times the predicted IoU of its mask is
    more than this, in [0, 1] (SAM3: ``mf_threshold``)."""
    memory_mask_size: str = "input"
    """Size at which mask logits become probabilities before they are encoded. "input": that of the
    model's input, as SAM3 tracks objects that are clicked. "memory": that of the memory encoder,
    as SAM3 tracks concepts; it saves an interpolation."""
    bidirectional: bool = False
    """Whether all conditioning frames are kept, for a tracker that goes forward and backward in
    time; else only those that frames in the direction of travel can still read."""

    def __post_init__(self) -> None:
        check_ranges(
            self,
            shares=("min_memory_score",),
            positive=("max_cond_frames",),
            switches=("bidirectional",),
        )
        if self.memory_selection is not None:
            check_ranges(self, switches=("memory_selection",))
        pointers = self.max_object_pointers
        if not is_whole(pointers, 2):
            raise TrackError(f"max_object_pointers is a whole number from 2; got {pointers!r}")
        if self.memory_mask_size not in ("input", "memory"):
            raise TrackError(
                f"memory_mask_size is 'input' or 'memory'; got {self.memory_mask_size!r}"
            )


RULES = ("sam3", "sam3.1")

# In upstream's configuration ``suppress_unmatched_only_within_hotstart`` is False too, but what it
# hides is not read anywhere.
_SAM31 = {
    "detection_threshold": 0.4,
    "overlap_metric": "iom",
    "new_track_threshold": 0.65,
    "border_margin": 0.025,
    "max_objects": 16,
    "rules": "sam3.1",
    "recondition_iou": 0.5,
    "recondition_presence": math.log(4),
    "min_hits": 3,
    "fill_hole_area": 0,
}
"""Where SAM3.1 differs from SAM3 (``build_sam3_multiplex_video_predictor``)."""

_LATE: dict[str, Any] = {
    "confirm_window": 5,
    "confirm_score": 0.4,
    "least_left": 0.1,
    "iou": IoUSettings(shape_iou=0.25),
}
"""Where models with late fusion differ. They follow objects well, those of wrong detections too,
which would be shown for long. Right detections are repeated on the next frames. A wrong detection
can cover several objects, so the shape of a detection elsewhere has to be more similar to
continue it."""


@dataclass(frozen=True)
class TrackSettings:
    """How concepts are tracked through a video: detection, association, removal and masks."""

    detection_threshold: float = 0.5
    """Score in [0, 1] above which the detector's instances are used (SAM3:
    ``score_threshold_detection``)."""
    presence: str = "multiply"
    """"multiply": scores of detections contain the presence of their concept as a factor, as in
    SAM3. "separate": they do not."""
    nms: float = 0.1
    """Of two detections of a class whose masks overlap by more than this, in [0, 1], the one with
    the lower score is dropped (SAM3: ``det_nms_thresh``)."""
    class_agnostic: bool = False
    """Whether detections of different classes are compared too, and the objects of a frame."""
    overlap_metric: str = "iou"
    """How overlap is measured: "iou", or "iom": the intersection over the smaller mask."""
    new_track_threshold: float = 0.7
    """A detection that matches no object begins one when it has at least this score, in [0, 1]
    (SAM3: ``new_det_thresh``). While a concept has no object, every detection begins one."""
    border_margin: float = 0.0
    """Detections whose box center is within this share of the image's border begin no object; 0
    turns the rule off (SAM3: ``suppress_det_close_to_boundary``, with a margin of 0.025). With
    SAM3.1's rules such detections match no object either, and while a concept has no object the
    rule is off."""
    max_objects: int = 10_000
    """Number of objects that are tracked at once, from 1; of new ones those with the highest
    scores are taken (SAM3: ``max_num_objects``)."""

    rules: str = "sam3"
    """How detections are joined with objects: "sam3" or "sam3.1". SAM3.1 compares masks by the
    intersection over the smaller one, wherever an IoU is named here. Where a detection fits
    several objects by ``recondition_iou``, or several detections one object, they do not match.
    The first detections of a concept need ``new_track_threshold``, too. An object is a duplicate of
    any that began earlier, not only of the first. An object that is reconditioned takes over the
    mask of the detection."""
    match_iou: float = 0.1
    """A detection matches an object, and so begins none, when their masks have at least this IoU,
    in [0, 1] (SAM3: ``assoc_iou_thresh``)."""
    confirm_iou: float = 0.5
    """An object is unmatched on a frame when no detection has at least this mask IoU with it, in
    [0, 1] (SAM3: ``trk_assoc_iou_thresh``)."""
    recondition_every: int = 16
    """Every n-th frame, good detections become conditioning frames of their objects; 0: never
    (SAM3: ``recondition_every_nth_frame``)."""
    recondition_score: float = 0.8
    """Least score of such a detection, in [0, 1] (SAM3: ``HIGH_CONF_THRESH``)."""
    recondition_iou: float = 0.8
    """Least mask IoU of such a detection with its object, in [0, 1] (SAM3:
    ``iou_thresh_recondition``)."""
    recondition_presence: float = 0.8
    """That happens only when the tracker's presence logit of the object is more than this (SAM3:
    ``_recondition_masklets``)."""
    adopt_detection_iou: float | None = None
    """An object takes over the mask of a detection, in results and in its memory, when the two
    have at least this IoU, in [0, 1]; each detection goes to one object. Detections are then joined
    with objects as by the tracker "iou" first, with the settings ``iou``, and by the masks of the
    memory where that leaves any. 0: masks are those of the memory, as in SAM3. None:
    ``MemoryConfig.adopt_detection_iou`` of the model, which is 0 for all released models."""
    correction_window: int = 16
    """When a person corrects an object, detections that conditioned it within this number of
    frames, from 0, are removed from its memory (SAM3: 16 frames)."""

    hotstart_delay: int = 15
    """Number of frames, from 0, by which results are delayed, so that an object that proves wrong
    can be removed from all of them. 0: results are not delayed, and no object is removed (SAM3:
    ``hotstart_delay``)."""
    hotstart_unmatched: int = 8
    """An object is removed when it was unmatched on this number of frames since it began, from 1
    to ``hotstart_delay`` (SAM3: ``hotstart_unmatch_thresh``)."""
    hotstart_duplicates: int = 8
    """An object is removed as a duplicate when it shared its detection with an earlier object on
    this number of frames, from 1 to ``hotstart_delay`` (SAM3: ``hotstart_dup_thresh``)."""
    min_hits: int = 0
    """Number of consecutive frames, from 0, on which an object is detected before it is shown; 0:
    it is shown from its first frame (SAM3: ``masklet_confirmation_consecutive_det_thresh``)."""
    keep_alive_init: int = 30
    """Keep-alive count of a new object. A matched frame adds 1, an unmatched frame subtracts 1
    (SAM3: ``init_trk_keep_alive``)."""
    keep_alive_max: int = 30
    """Upper limit of the keep-alive count (SAM3: ``max_trk_keep_alive``)."""
    keep_alive_min: int = -1
    """Lower limit of the keep-alive count (SAM3: ``min_trk_keep_alive``)."""
    hide_unmatched: bool = False
    """Whether an object is hidden while its keep-alive count is 0 or less (SAM3: the opposite of
    ``suppress_unmatched_only_within_hotstart``)."""
    confirm_window: int = 0
    """Number of frames before and after a frame, from 0, on which detections decide whether an
    object is shown: the mean of their scores is at least ``confirm_score``. A frame on which the
    object is visible and no detection confirms it counts as 0. Frames after it count as far as
    results are delayed, see ``hotstart_delay``. 0: every object is shown, as in SAM3."""
    confirm_score: float = 0.5
    """Least mean score of these detections, in [0, 1]."""
    max_age: int = 300
    """An object ends when it has not been visible for more than this number of frames, so that
    time and memory do not grow with all objects of a video. 0: never, as in SAM3."""

    occlusion_iou: float = 0.7
    """Of two objects of a concept whose masks have at least this IoU, in [0, 1], the one that was
    occluded more recently is hidden; 0 turns the rule off (SAM3:
    ``suppress_overlapping_based_on_recent_occlusion_threshold``)."""
    min_area_kept: float = 0.3
    """An object of which stronger objects of its concept leave less than this share of its mask,
    in [0, 1], is remembered as absent (SAM3: ``shrink_threshold``)."""
    fill_hole_area: int = 16
    """Holes and specks of up to this area, in pixels of a 288 x 288 mask, are removed; 0: none
    (SAM3: ``fill_hole_area``)."""
    least_left: float = 0.0
    """An object is not shown on a frame where more certain objects of its concept leave less than
    this share of its mask, in [0, 1], because only specks would be seen. 0: it is shown wherever
    one pixel is left, as in SAM3."""
    allow_overlap: bool = False
    """Whether objects of one concept may share pixels in results. Else a pixel belongs to the
    object of which the tracker is more certain, as in SAM3."""

    cuts: CutSettings | None = field(default_factory=CutSettings)
    """When a frame begins another scene. There all tracks end, whatever the tracker: identities are
    new, and the memory is empty. None: tracks go on through cuts, as in SAM3."""

    iou: IoUSettings = field(default_factory=IoUSettings)
    """Settings of the tracker "iou". From here it uses ``detection_threshold``,
    ``presence``, ``nms``, ``class_agnostic``, ``overlap_metric`` and ``cuts``, and no other."""

    def __post_init__(self) -> None:
        shares = ["detection_threshold", "nms", "new_track_threshold", "border_margin"]
        shares += ["match_iou", "confirm_iou", "recondition_score", "recondition_iou"]
        shares += ["occlusion_iou", "min_area_kept", "confirm_score", "least_left"]
        if self.adopt_detection_iou is not None:
            shares.append("adopt_detection_iou")
        counts = ("recondition_every", "correction_window", "hotstart_delay", "min_hits")
        check_ranges(
            self,
            shares,
            (*counts, "confirm_window", "max_age", "fill_hole_area"),
            ("max_objects",),
            ("recondition_presence", "keep_alive_init", "keep_alive_max", "keep_alive_min"),
            ("hide_unmatched", "allow_overlap"),
        )
        if not isinstance(self.iou, IoUSettings):
            raise TrackError(f"iou is IoUSettings(...); got {shorten(self.iou)}")
        if self.cuts is not None and not isinstance(self.cuts, CutSettings):
            raise TrackError(f"cuts is CutSettings(...) or None; got {shorten(self.cuts)}")
        if self.rules not in RULES:
            raise TrackError(f"rules are 'sam3' or 'sam3.1'; got {shorten(self.rules)}")
        check_overlap(self.class_agnostic, self.overlap_metric)
        check_presence(self.presence)
        if self.hotstart_delay:
            for name in ("hotstart_unmatched", "hotstart_duplicates"):
                value = getattr(self, name)
                if not is_whole(value, 1) or value > self.hotstart_delay:
                    raise TrackError(
                        f"{name} is from 1 to hotstart_delay, {self.hotstart_delay} frames; "
                        f"got {shorten(value)}"
                    )

    @classmethod
    def of(cls, model: Any, **changes: Any) -> TrackSettings:
        """The settings of a model, with some changes: of SAM3, SAM3.1, or of late fusion.

        Args:
            model: A model; None: SAM3's settings.
            **changes: Fields to set.
        """
        config = getattr(model, "config", None)
        if getattr(config, "late", None) is not None:
            changes = {**_LATE, **changes}
        return cls.of_release("3.1" if getattr(config, "multiplexed", False) else "3.0", **changes)

    @classmethod
    def of_release(cls, release: str, **changes: Any) -> TrackSettings:
        """The settings of a release, with some changes.

        Args:
            release: Release of SAM3, "3.1" or another; see ``Variant.release``.
            **changes: Fields to set.
        """
        return cls(**{**(_SAM31 if release == "3.1" else {}), **changes})

    def segment_options(self, has_masks: bool) -> dict[str, Any]:
        """Return the arguments of ``ImageModel.segment`` for the detections of a frame.

        Args:
            has_masks: Whether the model has masks, which suppression compares.
        """
        options = {"threshold": self.detection_threshold, "nms": self.nms if has_masks else None}
        chosen = {"overlap_metric": self.overlap_metric, "presence": self.presence}
        usual = {"overlap_metric": "iou", "presence": "multiply"}
        return options | {name: value for name, value in chosen.items() if value != usual[name]}

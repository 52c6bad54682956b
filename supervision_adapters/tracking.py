"""Trackers with the convention of the `trackers` package: `update(detections, frame)`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from efficientsam3.types import Array

from .detections import from_detections
from .errors import AdapterError, require

PENDING = -1
"""The ``tracker_id`` of a detection that has no identity, or none yet."""

REGISTERED = "efficientsam3-masks"


class MaskTracker:
    """Identities by the overlap of masks: no weights, a few milliseconds a frame.

    Trackers of the `trackers` package look at boxes alone; this one at what is in them. An object
    keeps its class. Identities are from 0 and never used again before ``reset``.

    >>> tracker = MaskTracker()
    >>> detections = tracker.update(detector.predict(frame))

    Args:
        lost_track_buffer: frames, at 30 a second, after which what is not seen is forgotten.
        frame_rate: of the video.
        minimum_consecutive_frames: that an object is seen in before it has an identity; until
            then it has -1.
        track_activation_threshold: score from which a detection can begin a track. Weaker ones
            go on with tracks that are there, or get -1.
        options: further numbers of ``efficientsam3.video.settings.MaskSettings``.
    """

    def __init__(
        self,
        lost_track_buffer: int = 30,
        frame_rate: float = 30.0,
        minimum_consecutive_frames: int = 1,
        track_activation_threshold: float = 0.0,
        **options: Any,
    ) -> None:
        from efficientsam3.video.mask_tracker import MaskTracker as Core
        from efficientsam3.video.settings import MaskSettings

        settings = MaskSettings(
            start=track_activation_threshold,
            confirm=minimum_consecutive_frames,
            forget=count_frames(lost_track_buffer, frame_rate),
            **options,
        )
        self._core = Core(settings)
        self._size: tuple[int, int] | None = None
        self._last: Any = None

    def update(
        self, detections: Any, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Give the detections of the next frame their identities.

        Args:
            detections: ``sv.Detections``; an empty one where nothing was found. Without masks,
                boxes stand for them, and a frame is needed, for its size.
            frame: its pixels are not looked at. timestamp: not used.

        Returns:
            The same detections in the same order, with ``tracker_id``. The input is not changed.
        """
        if detections.mask is not None:
            self._size = (int(detections.mask.shape[1]), int(detections.mask.shape[2]))
        elif frame is not None:
            self._size = (int(frame.shape[0]), int(frame.shape[1]))
        elif self._size is None and len(detections):
            raise AdapterError(
                "detections without masks do not know their image: update(detections, frame)"
            )
        size = self._size or (1, 1)
        ids = self._core.update(from_detections(detections, size)).track_ids
        self._last = with_ids(detections, ids)
        return self._last

    def reset(self) -> None:
        """Forget everything: identities start from 0 again."""
        self._core.reset()
        self._size, self._last = None, None

    @property
    def tracked_objects(self) -> Any:
        """The last frame's detections that have an identity."""
        return identified(self._last)

    def update_with_detections(self, detections: Any) -> Any:
        """As ``update``, under the name of Supervision's former trackers."""
        return self.update(detections)


class PerClassTracker:
    """A tracker of its own for each class, around any tracker: identities never change class.

    The trackers of the `trackers` package and of Ultralytics look at boxes alone, so a dog can go
    on as the cat that stood there. Masks, data and boxes come out as they went in.

    >>> tracker = PerClassTracker(ByteTrackTracker)

    Args:
        factory: makes a tracker with ``update(detections, frame)`` or
            ``update_with_detections(detections)``.
    """

    def __init__(self, factory: Any) -> None:
        if not callable(factory):
            raise AdapterError(
                f"factory makes a tracker when it is called: pass its class, or a lambda; got "
                f"{factory!r}"
            )
        self.factory = factory
        self._last: Any = None
        self.reset()

    def update(
        self,
        detections: Any,
        frame: Array | None = None,
        timestamp: float | None = None,
    ) -> Any:
        """Give the detections of the next frame their identities, over all classes from 0.

        Returns:
            The same detections in the same order, with ``tracker_id``. The input is not changed.
        """
        count = len(detections)
        classes = detections.class_id
        if classes is None:
            classes = np.zeros(count, int)
        for number in classes.tolist():
            if number not in self._trackers:
                self._trackers[number] = self.factory()
        ids = np.full(count, PENDING)
        for number, tracker in self._trackers.items():
            rows = np.flatnonzero(classes == number)
            said = call(tracker, bare(detections, rows), frame, timestamp)
            for place, given in rows_of(said):
                if given >= 0:
                    key = (number, given)
                    ids[rows[place]] = self._ids.setdefault(key, len(self._ids))
        self._last = with_ids(detections, ids)
        return self._last

    def reset(self) -> None:
        """Forget everything: identities start from 0 again."""
        self._trackers: dict[int, Any] = {}
        self._ids: dict[tuple[int, int], int] = {}
        self._last = None

    @property
    def tracked_objects(self) -> Any:
        """The last frame's detections that have an identity."""
        return identified(self._last)

    def update_with_detections(self, detections: Any) -> Any:
        """As ``update``, under the name of Supervision's former trackers."""
        return self.update(detections)


def iter_track(frames: Any, tracker: Any, detector: Any = None) -> Iterator[tuple[int, Array, Any]]:
    """Frames in, tracked detections out, one frame in memory.

    >>> for index, frame, detections in iter_track("street.mp4", MaskTracker(), detector):
    ...     scene = annotator.annotate(frame.copy(), detections)

    Args:
        frames: an iterable of (H, W, 3) uint8 arrays, such as
            ``sv.get_video_frames_generator(path)``; or a video file, a folder of images, a list
            of image files, the number or address of a camera.
        tracker: with ``update(detections, frame)``.
        detector: from a frame to ``sv.Detections``: a ``ConceptDetector``, or any function.
            None for a tracker that detects by itself.

    Yields:
        Number of the frame from 0, the frame, its detections. Frames that are read here have the
        channels in the order of the detector's (or tracker's) ``color``, "rgb" without one.
    """
    from efficientsam3.video.frames import read_frames

    order = getattr(detector if detector is not None else tracker, "color", "rgb")
    first = frames[0] if isinstance(frames, (list, tuple)) and frames else frames
    to_read = isinstance(first, (str, os.PathLike, int))
    reader: Any = (_ordered(f.image, order) for f in read_frames(frames)) if to_read else frames
    for index, frame in enumerate(reader):
        found = None if detector is None else detector(frame)
        yield index, frame, call(tracker, found, frame)


def _ordered(rgb: Array, color: str) -> Array:
    return np.ascontiguousarray(rgb[..., ::-1]) if color == "bgr" else rgb


def call(tracker: Any, detections: Any, frame: Any = None, timestamp: float | None = None) -> Any:
    """Hand the next frame to any tracker; a frame that it does not need is no news."""
    if not hasattr(tracker, "update"):
        return tracker.update_with_detections(detections)
    given = {} if timestamp is None else {"timestamp": timestamp}
    if frame is None:
        return tracker.update(detections, **given)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*received a frame argument but does not use it")
        return tracker.update(detections, frame, **given)


ROW = "_row"


def bare(detections: Any, rows: Array) -> Any:
    """Some detections without their data, but with their place among themselves."""
    sv = require("supervision", "supervision")
    count = len(rows)
    scores = detections.confidence
    return sv.Detections(
        xyxy=detections.xyxy[rows],
        mask=None if detections.mask is None else detections.mask[rows],
        confidence=np.ones(count, np.float32) if scores is None else scores[rows],
        class_id=np.zeros(count, int) if detections.class_id is None else detections.class_id[rows],
        data={ROW: np.arange(count)},
    )


def rows_of(said: Any) -> list[tuple[int, int]]:
    """(place, identity) of what a tracker returned of ``bare`` detections, in any order."""
    if said.tracker_id is None or not len(said):
        return []
    return list(zip(said.data[ROW].tolist(), said.tracker_id.astype(int).tolist(), strict=True))


def with_ids(detections: Any, ids: Any) -> Any:
    """A copy with identities; columns are shared with the original."""
    sv = require("supervision", "supervision")
    return sv.Detections(
        xyxy=detections.xyxy,
        mask=detections.mask,
        confidence=detections.confidence,
        class_id=detections.class_id,
        tracker_id=np.asarray(ids, int).reshape(len(detections)),
        data=dict(detections.data),
        metadata=dict(detections.metadata),
    )


def identified(detections: Any) -> Any:
    """Those with an identity; none before the first frame."""
    if detections is None:
        empty = require("supervision", "supervision").Detections.empty()
        return with_ids(empty, np.zeros(0, int))
    return detections[detections.tracker_id != PENDING]


def count_frames(buffer: int, rate: float) -> int:
    """Frames of a video that last as long as ``buffer`` frames at 30 a second; at least one."""
    if not math.isfinite(rate) or rate <= 0 or buffer < 0:
        raise AdapterError(
            f"lost_track_buffer is 0 or more, and frame_rate more than 0; got {buffer} and {rate}"
        )
    return max(math.ceil(buffer * rate / 30), 1) if buffer else 0


def register_with_trackers() -> type[Any]:
    """Make ``MaskTracker`` one of the `trackers` package's own, by the name "efficientsam3-masks".

    Then its command line and its registry know it, in this process. Returns the class.
    """
    base = require("trackers.core.base", "trackers").BaseTracker
    known = base._lookup_tracker(REGISTERED)
    if known is not None:
        return known.tracker_class

    class EfficientSam3MaskTracker(MaskTracker, base):  # type: ignore[misc, valid-type]
        tracker_id = REGISTERED
        __doc__ = MaskTracker.__doc__
        tracked_objects = MaskTracker.tracked_objects

        def __init__(
            self,
            lost_track_buffer: int = 30,
            frame_rate: float = 30.0,
            minimum_consecutive_frames: int = 1,
            track_activation_threshold: float = 0.0,
        ) -> None:
            self.tracks: list[Any] = []
            super().__init__(
                lost_track_buffer,
                frame_rate,
                minimum_consecutive_frames,
                track_activation_threshold,
            )

    return EfficientSam3MaskTracker

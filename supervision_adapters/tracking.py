"""Trackers with the interface of the `trackers` package: `update(detections, frame)`."""

from __future__ import annotations

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np

from efficientsam3.types import Array

from .detections import from_detections
from .errors import AdapterError, require

NO_ID = -1
"""The ``tracker_id`` of a detection that has no identity, or not yet."""

REGISTERED_NAME = "efficientsam3-mask-iou"
"""Name of ``MaskIoUTracker`` in the registry of the `trackers` package."""


class Tracker(ABC):
    """Base of the trackers: identities are from 0, and inputs are not changed."""

    _last: Any = None

    @abstractmethod
    def update(
        self, detections: Any, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Assign identities to the detections of the next frame.

        Args:
            detections: ``sv.Detections`` of the frame; empty where nothing was found.
            frame: (H, W, 3) uint8.
            timestamp: Accepted for the interface and not used.

        Returns:
            The same detections in the same order, with ``tracker_id``; -1 where a detection has
            no identity.
        """

    @abstractmethod
    def reset(self) -> None:
        """Forget all tracks. Identities start from 0 again."""

    @property
    def tracked_objects(self) -> Any:
        """The last frame's detections that have an identity; empty before the first frame."""
        if self._last is None:
            empty = require("supervision", "supervision").Detections.empty()
            return with_ids(empty, np.zeros(0, int))
        return self._last[self._last.tracker_id != NO_ID]

    def update_with_detections(self, detections: Any) -> Any:
        """Call ``update``. Supervision's former trackers have this name.

        Args:
            detections: ``sv.Detections`` of the next frame.

        Returns:
            What ``update`` returns.
        """
        return self.update(detections)


class CutTest:
    """Tells for frames of a tracker which of them begin another scene.

    Args:
        wanted: Whether any does.
    """

    def __init__(self, wanted: bool = True) -> None:
        from efficientsam3.video.cuts import CutDetector

        self._detector = CutDetector() if wanted else None

    def is_cut(self, frame: Any) -> bool:
        """Take the next frame.

        Args:
            frame: (H, W, 3) uint8 in any channel order; None where there is none.
        """
        return self._detector is not None and frame is not None and self._detector.is_cut(frame)

    def reset(self) -> None:
        """Forget all frames."""
        if self._detector is not None:
            self._detector.reset()


class MaskIoUTracker(Tracker):
    """Tracks by the overlap of masks, without weights, in a few milliseconds a frame.

    The trackers of the `trackers` package compare boxes; this one compares masks. An object keeps
    its class. An identity is not used again before ``reset``.

    >>> tracker = MaskIoUTracker()
    >>> detections = tracker.update(detector.predict(frame))

    Args:
        lost_track_buffer: A track ends after this many frames without a detection, counted at
            30 frames a second.
        frame_rate: Frames a second of the video.
        minimum_consecutive_frames: Frames in which an object is detected before it gets an
            identity.
        track_activation_threshold: Score from which a detection starts a track. A weaker one
            continues an existing track or gets -1.
        end_at_cuts: Whether all tracks end where a frame begins another scene. Only frames that
            are handed to ``update`` tell.
        **options: Further fields of ``efficientsam3.video.settings.IoUSettings``.
    """

    def __init__(
        self,
        lost_track_buffer: int = 30,
        frame_rate: float = 30.0,
        minimum_consecutive_frames: int = 1,
        track_activation_threshold: float = 0.0,
        end_at_cuts: bool = True,
        **options: Any,
    ) -> None:
        from efficientsam3.video.iou_tracker import IoUTracker
        from efficientsam3.video.settings import IoUSettings

        settings = IoUSettings(
            new_track_threshold=track_activation_threshold,
            min_hits=minimum_consecutive_frames,
            max_age=_count_frames(lost_track_buffer, frame_rate),
            **options,
        )
        self._core = IoUTracker(settings)
        self._cuts = CutTest(end_at_cuts)
        self._size: tuple[int, int] | None = None

    def update(
        self, detections: Any, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Assign identities to the detections of the next frame.

        Args:
            detections: ``sv.Detections``. Boxes take the place of missing masks.
            frame: Needed for its size where detections have no masks, and to find cuts.
            timestamp: Not used.

        Returns:
            The same detections in the same order, with ``tracker_id``.

        Raises:
            AdapterError: Detections have no masks, and no frame gives the image size.
        """
        if detections.mask is not None:
            self._size = (int(detections.mask.shape[1]), int(detections.mask.shape[2]))
        elif frame is not None:
            self._size = (int(frame.shape[0]), int(frame.shape[1]))
        elif self._size is None and len(detections):
            raise AdapterError(
                "detections without masks have no image size: call update(detections, frame)"
            )
        if self._cuts.is_cut(frame):
            self._core.end_tracks()
        tracked = self._core.update(from_detections(detections, self._size or (1, 1)))
        self._last = with_ids(detections, tracked.track_ids)
        return self._last

    def reset(self) -> None:
        """Forget all tracks. Identities start from 0 again."""
        self._core.reset()
        self._cuts.reset()
        self._size, self._last = None, None


class PerClassTracker(Tracker):
    """Runs one tracker for each class, so an identity never changes its class.

    The trackers of the `trackers` package and of Ultralytics compare boxes, so a dog can continue
    the track of a cat at the same place. Masks, data and boxes stay as they are.

    >>> tracker = PerClassTracker(ByteTrackTracker)

    Args:
        factory: Makes a tracker with ``update(detections, frame)`` or
            ``update_with_detections(detections)``.
        end_at_cuts: Whether all tracks end where a frame begins another scene. Only frames that
            are handed to ``update`` tell.

    Raises:
        AdapterError: ``factory`` cannot be called.
    """

    def __init__(self, factory: Any, end_at_cuts: bool = True) -> None:
        if not callable(factory):
            raise AdapterError(
                f"factory must make a tracker when it is called: pass its class, or a lambda; got "
                f"{factory!r}"
            )
        self.factory = factory
        self._cuts = CutTest(end_at_cuts)
        self.reset()

    def update(
        self, detections: Any, frame: Array | None = None, timestamp: float | None = None
    ) -> Any:
        """Assign identities to the detections of the next frame, from 0 over all classes.

        Args:
            detections: ``sv.Detections`` of the frame.
            frame: (H, W, 3) uint8, handed to each tracker.
            timestamp: Handed to each tracker.

        Returns:
            The same detections in the same order, with ``tracker_id``.
        """
        if self._cuts.is_cut(frame):
            self._trackers.clear()
            self._scene += 1
        count = len(detections)
        classes = detections.class_id
        if classes is None:
            classes = np.zeros(count, int)
        for number in classes.tolist():
            if number not in self._trackers:
                self._trackers[number] = self.factory()
        ids = np.full(count, NO_ID)
        for number, tracker in self._trackers.items():
            rows = np.flatnonzero(classes == number)
            tracked = call_tracker(tracker, _select(detections, rows), frame, timestamp)
            for row, track_id in _read_ids(tracked):
                if track_id >= 0:
                    key = (self._scene, number, track_id)
                    ids[rows[row]] = self._ids.setdefault(key, len(self._ids))
        self._last = with_ids(detections, ids)
        return self._last

    def reset(self) -> None:
        """Forget all tracks. Identities start from 0 again."""
        self._cuts.reset()
        self._scene = 0
        self._trackers: dict[int, Any] = {}
        self._ids: dict[tuple[int, int, int], int] = {}
        self._last = None


def iter_track(frames: Any, tracker: Any, detector: Any = None) -> Iterator[tuple[int, Array, Any]]:
    """Detect and track in each frame, with one frame in memory.

    >>> for index, frame, detections in iter_track("street.mp4", MaskIoUTracker(), detector):
    ...     scene = annotator.annotate(frame.copy(), detections)

    Args:
        frames: An iterable of (H, W, 3) uint8 arrays, such as
            ``sv.get_video_frames_generator(path)``; or a video file, a folder of images, a list
            of image files, or the number or address of a camera.
        tracker: A tracker with ``update(detections, frame)``.
        detector: Maps a frame to ``sv.Detections``: a ``ConceptDetector`` or any function. None
            for a tracker that detects by itself.

    Yields:
        The frame's number from 0, the frame, and its detections with identities. Frames that are
        read here have the channel order of ``detector.color``, else of ``tracker.color``, else
        RGB.
    """
    from efficientsam3.io.frames import read_frames

    color = getattr(detector if detector is not None else tracker, "color", "rgb")
    first = frames[0] if isinstance(frames, (list, tuple)) and frames else frames
    images = frames
    if isinstance(first, (str, os.PathLike, int)):
        step = -1 if color == "bgr" else 1
        images = (np.ascontiguousarray(frame.image[..., ::step]) for frame in read_frames(frames))
    for index, image in enumerate(images):
        detections = None if detector is None else detector(image)
        yield index, image, call_tracker(tracker, detections, image)


def call_tracker(
    tracker: Any, detections: Any, frame: Any = None, timestamp: float | None = None
) -> Any:
    """Hand the next frame to any tracker.

    Args:
        tracker: Has ``update(detections, frame)`` or ``update_with_detections(detections)``.
        detections: ``sv.Detections`` of the frame.
        frame: (H, W, 3) uint8. A tracker's warning that it does not use it is silenced.
        timestamp: Time of the frame in seconds, for trackers that use it.

    Returns:
        What the tracker returns.
    """
    if not hasattr(tracker, "update"):
        return tracker.update_with_detections(detections)
    options = {} if timestamp is None else {"timestamp": timestamp}
    if frame is None:
        return tracker.update(detections, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*received a frame argument but does not use it")
        return tracker.update(detections, frame, **options)


def with_ids(detections: Any, ids: Any) -> Any:
    """Copy detections and set their identities. Arrays are shared with the original.

    Args:
        detections: ``sv.Detections``.
        ids: (N,) identities.

    Returns:
        The copy.
    """
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


def register_with_trackers() -> type[Any]:
    """Add ``MaskIoUTracker`` to the registry of the `trackers` package, in this process.

    Its command line then knows it by the name "efficientsam3-mask-iou".

    Returns:
        The registered class.

    Raises:
        MissingPackageError: The `trackers` package is not installed.
    """
    base = require("trackers.core.base", "trackers").BaseTracker
    known = base._lookup_tracker(REGISTERED_NAME)
    if known is not None:
        return known.tracker_class

    class EfficientSam3MaskIoUTracker(MaskIoUTracker, base):  # type: ignore[misc, valid-type]
        tracker_id = REGISTERED_NAME
        __doc__ = MaskIoUTracker.__doc__
        tracked_objects = MaskIoUTracker.tracked_objects

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

    return EfficientSam3MaskIoUTracker


_ROW = "_row"


def _select(detections: Any, rows: Array) -> Any:
    """Select detections without their data; ``data["_row"]`` is their place in the selection."""
    sv = require("supervision", "supervision")
    count = len(rows)
    scores = detections.confidence
    return sv.Detections(
        xyxy=detections.xyxy[rows],
        mask=None if detections.mask is None else detections.mask[rows],
        confidence=np.ones(count, np.float32) if scores is None else scores[rows],
        class_id=np.zeros(count, int) if detections.class_id is None else detections.class_id[rows],
        data={_ROW: np.arange(count)},
    )


def _read_ids(tracked: Any) -> list[tuple[int, int]]:
    """Read (row, identity) from what a tracker returned of ``_select``, in any order."""
    if tracked.tracker_id is None or not len(tracked):
        return []
    return list(
        zip(tracked.data[_ROW].tolist(), tracked.tracker_id.astype(int).tolist(), strict=True)
    )


def _count_frames(buffer: int, frame_rate: float) -> int:
    """Frames that last as long as ``buffer`` frames at 30 a second; at least 1 unless 0."""
    if not math.isfinite(frame_rate) or frame_rate <= 0 or buffer < 0:
        raise AdapterError(
            f"lost_track_buffer must be 0 or more, and frame_rate more than 0; got {buffer} and "
            f"{frame_rate}"
        )
    return max(math.ceil(buffer * frame_rate / 30), 1) if buffer else 0

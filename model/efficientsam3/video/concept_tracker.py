"""``ConceptTracker``: concepts in a stream of frames that are given one at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bpe import clean
from ..concepts import Concepts, plain_concepts, read_classes, read_phrase
from ..errors import (
    MissingAbilityError,
    PromptError,
    TrackError,
    join_names,
    shorten,
)
from ..io.frame_types import Frame
from ..io.pixel_values import SourceRange
from ..io.samples import read_rgb_array
from ..masks.shapes import read_shape
from ..outputs import OBJECT
from ..prompts import check_labeled, read_boxes, read_labels
from ..segmenter import VISUAL
from ..types import Array, Instances, join
from ..values import is_whole
from .association import suppress_across_classes
from .clicks import read_clicks
from .cuts import CutDetector
from .frame_instances import to_instances
from .iou_tracker import NO_ID, IoUTracker
from .settings import TrackSettings
from .tracker_choice import choose_tracker
from .types import FrameObjects, TrackedFrame

if TYPE_CHECKING:
    from ..outputs import EncodedExemplars, EncodedImage
    from ..predictor import ImageModel
    from .masklet_tracker import MaskletTracker
    from .memory_tracker import MemoryTracker


@dataclass(eq=False)
class _DelayedFrame:
    """A frame that waits for ``TrackSettings.hotstart_delay`` frames."""

    frame: Frame
    result: FrameObjects
    presence: dict[str, float]
    lost: tuple[int, ...] | None = None  # at a cut

    def drop(self, ids: Sequence[int] | set[int]) -> None:
        """Remove objects."""
        for id in ids:
            self.result.objects.pop(id, None)


@dataclass(frozen=True, eq=False)
class _Exemplars:
    """Exemplar boxes of a concept in one frame."""

    concept: str | None
    boxes: Array  # (K, 4) xyxy pixels
    labels: Array  # (K,) 1 positive, 0 negative


class ConceptTracker:
    """Tracks concepts through frames that are given one at a time, forward or backward.

    All tracks end at a cut (``settings.cuts``), also those of objects that a person pointed at:
    ``TrackedFrame.lost`` names them.

    With tracker="memory" results are delayed by ``settings.hotstart_delay`` frames, with "iou" they
    are immediate. Memory holds the last frame, the tracked objects and the delayed frames.

    Args:
        model: Detects the concepts. None where all detections are given to ``step``; the tracker
            is then "iou" or a ``MemoryTracker``.
        concepts: Phrases, or a mapping from classes to their phrases. Concepts can be added and
            removed at any time.
        exemplars: Exemplars of other images, as ``ImageModel.segment`` takes them, for each frame.
        tracker: "memory" tracks objects by the model's video memory, "iou" by the overlap of
            detections; "auto" is "memory" where the model has one. Or a ``MemoryTracker``.
        settings: Thresholds and numbers of frames; None: those of the model's release.
        detect_every: The detector runs on every n-th frame; between them, the tracker alone
            follows the objects.
        keep_images: Whether results hold the pixels of their frames.

    Attributes:
        model: As given.
        settings: As given.
        detect_every: As given.
        keep_images: As given.

    Raises:
        TrackError: ``tracker`` or ``detect_every`` is not one of these values.
        MissingAbilityError: The model has no video memory, and tracker="memory".
        PromptError: A concept is empty.
    """

    def __init__(
        self,
        model: ImageModel | None,
        concepts: Concepts | None = None,
        *,
        exemplars: EncodedExemplars | Sequence[EncodedExemplars] | None = None,
        tracker: str | MemoryTracker = "auto",
        settings: TrackSettings | None = None,
        detect_every: int = 1,
        keep_images: bool = False,
    ) -> None:
        if not is_whole(detect_every, 1):
            raise TrackError(
                f"detect_every is a whole number of frames from 1; got {detect_every!r}"
            )
        self.model = model
        self.settings = settings or TrackSettings.of(model)
        self.detect_every, self.keep_images = detect_every, keep_images
        self._classes = {} if concepts is None else read_classes(concepts) or {}
        self._others: dict[str, Any] = {} if exemplars is None else {"exemplars": exemplars}
        if exemplars is not None:
            self._classes = self._classes or {VISUAL: [VISUAL]}
        self._exemplars: dict[int | None, list[_Exemplars]] = {}  # by frame; None: the next one
        self._iou = IoUTracker(self.settings.iou)
        self._masklets = choose_tracker(model, tracker, self.settings)
        cuts = self.settings.cuts
        self._cuts = None if cuts is None else CutDetector(cuts)
        self._values = SourceRange()
        self._delayed: deque[_DelayedFrame] = deque()
        # ``FrameObjects.confirmed`` of the frames before the oldest delayed one.
        self._finished: deque[dict[int, float]] = deque(maxlen=self.settings.confirm_window)
        self._last: Frame | None = None
        self._direction = 0  # 1 forward, -1 backward, 0 not known yet
        self._steps = 0
        self._since_detection = 0

    @property
    def tracker(self) -> str:
        """What objects are tracked by: "memory" or "iou"."""
        return "iou" if self._masklets is None else "memory"

    @property
    def ids(self) -> list[int]:
        """Identities of the objects that are tracked at present, in rising order."""
        return self._iou.ids if self._masklets is None else sorted(self._masklets.tracks)

    # Prompts ---------------------------------------------------------------------------

    @property
    def concepts(self) -> tuple[str, ...]:
        """Classes that are looked for in each frame: phrases, where they were given as such."""
        return tuple(self._classes)

    def add_concept(self, concept: str, phrases: str | Sequence[str] | None = None) -> None:
        """Look for one more concept, from the next frame on.

        Args:
            concept: A phrase, or the name of a class.
            phrases: The phrases of the class; its name if omitted.

        Raises:
            PromptError: A phrase is wrong, or the class is tracked with other phrases.
        """
        added = read_classes([concept] if phrases is None else {concept: phrases}) or {}
        for name, words in added.items():
            known = self._name_of(name)
            if known is None:
                self._classes[name] = words
                self._since_detection = 0  # the detector runs on the next frame
            elif phrases is not None and self._classes[known] != words:
                raise PromptError(
                    f"{shorten(known)} is tracked with the phrases "
                    f"{join_names(self._classes[known])}; remove_concept it first"
                )

    def remove_concept(self, concept: str) -> None:
        """Look for a concept no more, and remove its objects, also from delayed frames.

        Args:
            concept: One of ``concepts``.

        Raises:
            PromptError: The concept is not tracked.
        """
        given = read_phrase(concept)
        name = self._name_of(given)
        if name is None:
            raise PromptError(
                f"{shorten(given)} is not tracked; concepts are "
                f"{join_names(self._classes) or 'none'}"
            )
        del self._classes[name]
        self._iou.remove_label(name)
        if self._masklets is not None:
            self._remove([id for id, s in self._masklets.tracks.items() if s.label == name])

    def _name_of(self, name: str) -> str | None:
        """The class of this name, in the spelling in which it is tracked."""
        return next((known for known in self._classes if clean(known) == clean(name)), None)

    def add_exemplars(
        self,
        boxes: Any,
        box_labels: Any = None,
        *,
        concept: str | None = None,
        frame: int | None = None,
    ) -> None:
        """Show what to look for by boxes in one frame that is still to come.

        Args:
            boxes: (K, 4) xyxy pixels.
            box_labels: (K,) 1 for a positive box, 0 for a negative one; all 1 if omitted.
            concept: The concept that they refine in that frame. None: the boxes alone say what is
                looked for, and what is found in that frame is tracked.
            frame: Index of the frame that they are drawn on; the next one if omitted.

        Raises:
            MissingAbilityError: There is no concept, and the tracker is "iou".
            TrackError: The frame has passed.
            PromptError: The boxes or labels have a wrong shape or value.
        """
        check_labeled(box_labels, boxes, "box_labels", "boxes")
        if concept is None and self._masklets is None:
            raise MissingAbilityError(
                "boxes without a concept find objects in their frame, which the memory then "
                "tracks; this tracker is 'iou' (tracker='iou', or weights without a memory). Name "
                "a concept that the boxes refine"
            )
        last, direction = self._last, self._direction or 1
        if frame is not None and last is not None and (frame - last.index) * direction <= 0:
            raise TrackError(
                f"frame {frame} has passed (the last was {last.index}) and frames are not kept; "
                "draw exemplars on a frame to come, or point at an object in the last one with "
                "add_object"
            )
        name = None if concept is None else read_phrase(concept)
        name = name and (self._name_of(name) or name)
        corners = read_boxes(boxes)
        labels = read_labels(box_labels, (len(corners),), "box_labels")
        self._exemplars.setdefault(frame, []).append(_Exemplars(name, corners, labels))

    def add_object(
        self,
        *,
        points: Any = None,
        point_labels: Any = None,
        box: Any = None,
        mask: Any = None,
        track_id: int | None = None,
        concept: str = OBJECT,
    ) -> Instances:
        """Point at an object in the last frame: a new one, or one that is tracked, to correct it.

        Args:
            points: (K, 2) xy pixels.
            point_labels: (K,) 1 on the object, 0 off it; all 1 if omitted.
            box: (4,) xyxy pixels around the object.
            mask: (H, W) bool, run lengths or a polygon, instead of points and box.
            track_id: Identity of the object to correct; None: a new object.
            concept: Label of a new object.

        Returns:
            The object in the last frame, with its identity.

        Raises:
            MissingAbilityError: The tracker is "iou".
            TrackError: No frame was given yet, or no such object is tracked.
            PromptError: The prompt has a wrong shape or value.
        """
        masklets = self.require_memory()
        if self._last is None:
            raise TrackError("no frame was given yet; call step with the frame that you point at")
        check_labeled(point_labels, points, "point_labels", "points")
        track_id = None if track_id is None else _read_id(track_id)
        size = _size(self._last)
        label = read_phrase(concept)
        if mask is not None:
            if points is not None or box is not None:
                raise PromptError("a mask says all: pass it without points and box")
            id, added = masklets.add_mask(track_id, label, read_shape(mask, size))
        else:
            xy, labels = read_clicks(size, points, point_labels, box)
            id, added = masklets.add_points(track_id, label, xy, labels)
        for delayed in self._delayed:
            if delayed.frame is self._last:
                delayed.result.objects[id] = added
                delayed.result.hidden.discard(id)
            delayed.result.unconfirmed.discard(id)
        return to_instances({id: added}, size, self._classes, {})

    def require_memory(self) -> MaskletTracker:
        """Return what tracks objects by the video memory.

        Raises:
            MissingAbilityError: The tracker is "iou".
        """
        if self._masklets is None:
            raise MissingAbilityError(
                "objects that are pointed at are tracked by memory; this tracker is 'iou' "
                "(tracker='iou', or weights without a memory)"
            )
        return self._masklets

    def remove_object(self, track_id: int) -> None:
        """Track an object no more, and remove it from delayed frames.

        Args:
            track_id: Identity of the object.
        """
        known = _read_id(track_id)
        self._iou.remove(known)
        self._remove([known])

    def _remove(self, ids: Sequence[int]) -> None:
        if self._masklets is not None:
            self._masklets.remove(ids)
        for delayed in self._delayed:
            delayed.drop(ids)

    # Frames ----------------------------------------------------------------------------

    def step(self, frame: Any, found: Instances | None = None) -> list[TrackedFrame]:
        """Take the next frame.

        Args:
            frame: A ``Frame``, or an image of any kind, which gets the next index. Indices rise,
                or all fall, and may skip some.
            found: Detections of another detector, instead of the model's.

        Returns:
            The frames that are no longer delayed, in order.

        Raises:
            TrackError: The frame is out of order; or there is no model, and no ``found``.
        """
        taken = self._in_order(frame)
        image: EncodedImage | Array = taken.image
        done, lost = self._end_scene(taken)
        concepts, span = self._concepts_of(found), 1
        due = self._since_detection % self.detect_every == 0
        if found is None and (due or self._exemplars_on(taken.index)):
            found, image = self._detect(taken)
            concepts, span = list(dict.fromkeys(found.concepts)), self.detect_every
        self._since_detection += 1
        if self._masklets is None:
            return [self._step_iou(taken, found, lost)]
        result = self._masklets.step(self._steps, image, found, concepts, span)
        self._steps += 1
        presence = {} if found is None else found.concept_presence
        self._delayed.append(_DelayedFrame(taken, result, presence, lost))
        for delayed in self._delayed:
            delayed.drop(result.removed)
        while self._delayed and len(self._delayed) >= self.settings.hotstart_delay:
            done.append(self._finish())
        return done

    def flush(self) -> list[TrackedFrame]:
        """The frames that are still delayed when the stream ends."""
        return [self._finish() for _ in range(len(self._delayed))]

    def _end_scene(self, frame: Frame) -> tuple[list[TrackedFrame], tuple[int, ...] | None]:
        """End all tracks where a frame begins another scene.

        Returns:
            The frames that are no longer delayed, and the identities that ended; None without cut.
        """
        if self._cuts is None or not self._cuts.is_cut(frame.image):
            return [], None
        lost = tuple(self.ids)
        done = self.flush()
        self._iou.end_tracks()
        if self._masklets is not None:
            self._masklets.remove(lost)
        self._since_detection = 0  # the detector runs on this frame
        return done, lost

    def _step_iou(
        self, frame: Frame, found: Instances | None, lost: tuple[int, ...] | None
    ) -> TrackedFrame:
        if found is None:
            shown = self._iou.expected(frame.index)
        else:
            shown = self._iou.update(found, frame.index)
            shown = shown[shown.track_ids != NO_ID]
        if shown is None:
            shown = to_instances({}, _size(frame), self._classes, {})
        return self._tracked(frame, shown, lost)

    def _finish(self) -> TrackedFrame:
        """The oldest of the delayed frames."""
        # Whether an object is confirmed is looked up on the first frame that could confirm it.
        ahead = min(max(self.settings.min_hits, 1), len(self._delayed)) - 1
        unconfirmed = self._delayed[ahead].result.unconfirmed
        oldest = self._delayed.popleft()
        hidden = unconfirmed | oldest.result.hidden
        if self._masklets is not None and self._finished.maxlen:
            later = islice(self._delayed, self._finished.maxlen)
            around = [*self._finished, oldest.result.confirmed]
            around += [delayed.result.confirmed for delayed in later]
            hidden |= self._masklets.tracks.doubtful(oldest.result.objects, around)
            self._finished.append(oldest.result.confirmed)
        objects = {id: o for id, o in sorted(oldest.result.objects.items()) if id not in hidden}
        shown = to_instances(
            objects,
            _size(oldest.frame),
            self._classes,
            oldest.presence,
            allow_overlap=self.settings.allow_overlap,
            least_left=self.settings.least_left,
        )
        return self._tracked(oldest.frame, shown, oldest.lost)

    def _tracked(
        self, frame: Frame, shown: Instances, lost: tuple[int, ...] | None
    ) -> TrackedFrame:
        shown = suppress_across_classes(shown, self.settings)
        image = frame.image if self.keep_images else None
        return TrackedFrame(frame.index, frame.time, shown, image, lost is not None, lost or ())

    def _in_order(self, frame: Any) -> Frame:
        """The frame, which comes after the last one in the direction of travel."""
        last = self._last
        if not isinstance(frame, Frame):
            index = 0 if last is None else last.index + (self._direction or 1)
            frame = Frame(index, None, read_rgb_array(frame, self._values))
        if last is not None:
            direction = int(np.sign(frame.index - last.index))
            if not direction or (self._direction and direction != self._direction):
                raise TrackError(
                    f"frame {frame.index} after frame {last.index}: a stream has each frame once, "
                    "in one direction"
                )
            self._direction = direction
        self._last = frame
        return frame

    def _exemplars_on(self, index: int) -> list[_Exemplars]:
        return [*self._exemplars.get(None, ()), *self._exemplars.get(index, ())]

    def _detect(self, frame: Frame) -> tuple[Instances, EncodedImage]:
        """Instances of all concepts, with the exemplars of this frame."""
        if self.model is None:
            raise TrackError("there is no model to detect with; give step(frame, found=...)")
        image = self.model.encode(frame.image)
        by_concept: dict[str | None, list[_Exemplars]] = {}
        for exemplars in self._exemplars_on(frame.index):
            by_concept.setdefault(exemplars.concept, []).append(exemplars)
        self._exemplars.pop(None, None)
        self._exemplars.pop(frame.index, None)
        options = self.settings.segment_options("masks" in self.model.abilities)
        words = {name: p for name, p in self._classes.items() if name not in by_concept}
        parts = []
        asked: Concepts | None
        if words:
            asked = plain_concepts(words)
            parts.append(self.model.segment(image, asked, **self._others, **options))
        for concept, sets in by_concept.items():
            boxes = np.concatenate([e.boxes for e in sets])
            labels = np.concatenate([e.labels for e in sets])
            asked = concept
            if concept is not None and self._classes.get(concept, [concept]) != [concept]:
                asked = {concept: self._classes[concept]}
            parts.append(
                self.model.segment(image, asked, boxes=boxes, box_labels=labels, **options)
            )
        if not parts:
            return to_instances({}, image.size, [], {}), image
        found = join(parts)
        order = [*self._classes, *found.labels]
        rows = sorted(range(len(found)), key=lambda i: order.index(found.labels[i]))
        return suppress_across_classes(found[rows], self.settings), image

    def _concepts_of(self, found: Instances | None) -> list[str]:
        """The concepts that another detector looked for: all that it ever found."""
        if found is None or self._masklets is None:
            return []
        tracks = self._masklets.tracks.values()
        known = [state.label for state in tracks if not state.from_person]
        return list(dict.fromkeys((*self._classes, *found.concepts, *found.labels, *known)))


def _read_id(track_id: Any) -> int:
    if not is_whole(track_id):
        raise TrackError(f"track_id is the whole number of an object; got {shorten(track_id)}")
    return int(track_id)


def _size(frame: Frame) -> tuple[int, int]:
    return frame.image.shape[0], frame.image.shape[1]

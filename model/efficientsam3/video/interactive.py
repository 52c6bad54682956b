"""``InteractiveTracker``: objects that a person points at, tracked in both directions."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PromptError, TrackError
from ..io.frame_types import Frame
from ..masks.postprocess import fill_holes
from ..masks.shapes import read_shape
from ..outputs import OBJECT
from ..predictor import ImageModel
from ..types import Instances, LogitPatch
from ..values import is_whole
from .clicks import read_clicks
from .cuts import CutDetector
from .frame_cache import FrameCache
from .memory_tracker import MAX_PROMPT_LOGIT
from .multiplex_tracker import make_tracker
from .settings import CutSettings, MemorySettings
from .types import TrackedFrame, TrackerFeatures, TrackerOutput

log = logging.getLogger(__name__)

DEFAULT_CUTS = CutSettings()

DIRECTIONS = ("forward", "backward", "both")

MAX_POINTS = 16
"""Points on one frame that are used: of more, the first and the last eight, as in SAM3."""

CACHED_FEATURES = 4
"""Frames whose features are kept, so that more points on a frame need no encoding."""

CACHED_MASKS = 32
"""Tracked frames whose masks are kept, to be corrected and shown again."""

FILL_HOLE_AREA = 16
"""Area of holes and specks that are removed in results, in pixels of a 288 x 288 mask."""


@dataclass(eq=False)
class _Clicks:
    """Points of one object on one frame; none where a mask was given."""

    xy: Tensor = field(default_factory=lambda: torch.zeros(0, 2))  # (K, 2) in [0, 1]
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # (K,)


@dataclass(eq=False)
class _ObjectMask:
    """One object on one frame."""

    logits: Tensor  # (4g, 4g) mask logits
    presence: float  # a logit
    quality: float  # predicted IoU, in [0, 1]


class InteractiveTracker:
    """Track objects through a video from points, boxes or masks on any frame.

        tracker = InteractiveTracker(model, "street.mp4")
        tracker.add_points(0, 1, [[420, 260]])          # frame 0, object 1
        for frame in tracker.propagate():
            ...                                         # frame.index, frame.instances
        tracker.add_points(31, 1, [[400, 300]], [0])    # a negative point: a correction
        for frame in tracker.propagate(start=31):
            ...

    A source that can be read again (a file, a folder, a list) takes prompts on any frame, in any
    order, and can be tracked in both directions. Of a stream (a camera, a generator) only the
    latest frames are cached, and it is tracked forward.

    Memory does not grow with the length of the video. It holds the features of 4 frames, some
    pictures, the masks of the last 32 tracked frames, a bounded memory of each object, and for
    each prompted frame of each object a mask and a memory entry (one megabyte at full size in
    bfloat16). A correction on a frame whose mask is no longer kept uses its points alone.

    Args:
        model: A model with the ability "video".
        source: As ``read_frames`` takes it.
        settings: How much of the past is read; ``bidirectional`` is always on.
        max_cached_frames: Largest number of pictures that are cached, which is how far back a
            stream can be prompted; at most 256 MB of them.
        cuts: When a frame begins another scene. There objects are lost until a prompt shows them in
            the new scene; ``TrackedFrame.lost`` and a logged warning name them. None: objects are
            tracked through cuts.

    Attributes:
        model: As given.
        engine: The ``MemoryTracker``.
        frames: The ``FrameCache`` of the source.

    Raises:
        MissingAbilityError: The model has no video memory.
        VideoError: The source cannot be read.
    """

    def __init__(
        self,
        model: ImageModel,
        source: Any,
        settings: MemorySettings | None = None,
        *,
        max_cached_frames: int = 32,
        cuts: CutSettings | None = DEFAULT_CUTS,
    ) -> None:
        settings = replace(settings or MemorySettings(), bidirectional=True)
        self.engine = make_tracker(model, settings)
        self.model = model
        self.frames = FrameCache(source, max_cached_frames)
        self._cut_settings = cuts
        self._cuts: set[int] = set()  # first frames of scenes that were found so far
        self._features: OrderedDict[int, TrackerFeatures] = OrderedDict()
        self._clicks: dict[int, dict[int, _Clicks]] = {}  # by object and prompted frame
        self._prompted: dict[tuple[int, int], _ObjectMask] = {}  # by object and prompted frame
        self._tracked: OrderedDict[int, dict[int, _ObjectMask]] = OrderedDict()  # by tracked frame

    @property
    def ids(self) -> list[int]:
        """Identities of the objects, in the order in which they were added."""
        return list(self._clicks)

    def prompted(self, track_id: int) -> list[int]:
        """Indices of the frames with a prompt of an object, in order.

        Args:
            track_id: Identity of the object.
        """
        self._check_known(track_id)
        return sorted(self._clicks[track_id])

    def frame(self, index: int) -> Frame:
        """The frame of an index, with its pixels.

        Args:
            index: Index of the frame, from 0.
        """
        return self.frames.get(index)

    # Prompts ------------------------------------------------------------------------------

    def add_points(
        self,
        frame: int,
        track_id: int,
        points: Any,
        point_labels: Any = None,
        *,
        box: Any = None,
        replace: bool = False,
    ) -> Instances:
        """Point at an object, new or known; points on one frame add up.

        Args:
            frame: Index of the frame.
            track_id: Identity of the object, any whole number from 0.
            points: (K, 2) xy pixels.
            point_labels: (K,) 1 on the object, 0 off it; all 1 if omitted.
            box: (4,) xyxy pixels around the object, in addition to the points.
            replace: Whether earlier points on this frame are dropped. A box drops them too.

        Returns:
            The known objects of the frame, this one as the prompt makes it.

        Raises:
            PromptError: The prompt has a wrong shape or value.
            TrackError: The frame cannot be read.
        """
        _check_id(track_id)
        features = self._read(frame)
        xy, labels = map(torch.from_numpy, read_clicks(features.size, points, point_labels, box))
        earlier = self._clicks.get(track_id, {}).get(frame, _Clicks())
        if replace or box is not None:
            earlier = _Clicks()
        clicks = _Clicks(torch.cat([earlier.xy, xy]), torch.cat([earlier.labels, labels]))
        xy, labels = clicks.xy, clicks.labels
        if len(xy) > MAX_POINTS:
            half = MAX_POINTS // 2
            xy, labels = (torch.cat([t[:half], t[-half:]]) for t in (xy, labels))
        previous = None
        # A box, or points that replace others, say all: the earlier mask is not used.
        if not replace and box is None:
            known = self._known(track_id, frame)
            previous = None if known is None else known.logits
        output = self.engine.add_points(frame, features, track_id, xy, labels, previous)
        return self._add_prompt(frame, clicks, output)

    def add_box(self, frame: int, track_id: int, box: Any) -> Instances:
        """Draw a box around an object, new or known; it replaces points on this frame.

        Args:
            frame: Index of the frame.
            track_id: Identity of the object, any whole number from 0.
            box: (4,) xyxy pixels.

        Returns:
            As ``add_points``.

        Raises:
            PromptError: The box has a wrong shape or value.
            TrackError: The frame cannot be read.
        """
        return self.add_points(frame, track_id, None, box=box, replace=True)

    def add_mask(self, frame: int, track_id: int, mask: Any) -> Instances:
        """Give the mask of an object, new or known, on a frame.

        Args:
            frame: Index of the frame.
            track_id: Identity of the object, any whole number from 0.
            mask: (H, W) bool of any size, of the whole frame; or run lengths or a polygon, in
                pixels of the frame.

        Returns:
            As ``add_points``.

        Raises:
            PromptError: The mask has a wrong shape or value.
            TrackError: The frame cannot be read.
        """
        _check_id(track_id)
        features = self._read(frame)
        array = mask.cpu().numpy() if isinstance(mask, Tensor) else mask
        if not isinstance(array, np.ndarray) or (array.dtype != bool and array.shape[1:] == (2,)):
            array = read_shape(array, features.size)
        if array.ndim != 2 or not array.size:
            raise PromptError(f"a mask is (H, W) bool; got shape {array.shape}")
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            raise PromptError("a mask is bool, or 0 and 1; for logits pass logits > 0")
        if not array.any():
            raise PromptError("a mask has no pixel: pass one that covers the object")
        given = torch.from_numpy(np.ascontiguousarray(array.astype(bool)))[None]
        output = self.engine.add_masks(frame, features, [track_id], given)
        return self._add_prompt(frame, _Clicks(), output)

    def _add_prompt(self, frame: int, clicks: _Clicks, output: TrackerOutput) -> Instances:
        (id,) = output.ids
        self._clicks.setdefault(id, {})[frame] = clicks
        self._prompted[id, frame] = _object_mask(output, 0)
        self._tracked.get(frame, {}).pop(id, None)
        return self.known(frame)

    def remove_prompt(self, frame: int, track_id: int) -> None:
        """Remove the prompt of an object on a frame; with its last, the object is removed.

        Args:
            frame: Index of the frame.
            track_id: Identity of the object.

        Raises:
            TrackError: There is no such object, or no prompt of it on the frame.
        """
        frames = self.prompted(track_id)
        if frame not in frames:
            raise TrackError(
                f"object {track_id} has no prompt on frame {frame}; it has on these: {frames}"
            )
        if len(frames) == 1:
            self.remove_object(track_id)
            return
        self.engine.release(frame, track_id)
        del self._clicks[track_id][frame], self._prompted[track_id, frame]

    def remove_object(self, track_id: int) -> None:
        """Forget an object.

        Args:
            track_id: Identity of the object.

        Raises:
            TrackError: There is no such object.
        """
        self._check_known(track_id)
        self.engine.remove(track_id)
        for frame in self._clicks.pop(track_id):
            del self._prompted[track_id, frame]
        for objects in self._tracked.values():
            objects.pop(track_id, None)

    def reset(self) -> None:
        """Forget all objects; the video stays open."""
        for id in self.ids:
            self.remove_object(id)
        self._tracked.clear()

    def close(self) -> None:
        """Close the video."""
        self.frames.close()

    # Through the video --------------------------------------------------------------------

    def propagate(
        self,
        direction: str = "forward",
        *,
        start: int | None = None,
        stop: int | None = None,
        ids: Sequence[int] | None = None,
    ) -> Iterator[TrackedFrame]:
        """Track objects from their prompts on; frames are given as they are tracked.

        An object is tracked from the first frame, in the direction of travel, that has a prompt of
        it. After a correction or a pause, propagate again with ``start``: what was tracked shortly
        before that frame is read, and what was tracked beyond it is forgotten.

        Args:
            direction: "forward", "backward" or "both". "both" goes forward from the first prompt,
                then backward from the last object's first prompt, and gives each object once on
                each frame: frames that come a second time hold the objects that were not in them.
            start: Index of the first frame; None: the first prompted frame, or the last for
                "backward". Not for "both".
            stop: Index of the frame to end before; None: the end of the video. Not for "both".
            ids: Objects to track; None: all, also those that are added meanwhile.

        Yields:
            Each frame with its objects.

        Raises:
            TrackError: An argument is wrong, or there is no object; at the call.
        """
        if direction not in DIRECTIONS:
            raise TrackError(f"direction is one of {', '.join(DIRECTIONS)}; got {direction!r}")
        if direction == "both" and (start is not None or stop is not None):
            raise TrackError(
                '"both" goes through the whole video; start and stop go with one direction'
            )
        for id in ids or ():
            self._check_known(id)
        if not self._clicks:
            raise TrackError("no object was given yet: add_points, add_box or add_mask first")
        return self._propagate(direction, start, stop, None if ids is None else list(ids))

    def _propagate(
        self, direction: str, start: int | None, stop: int | None, ids: list[int] | None
    ) -> Iterator[TrackedFrame]:
        asked = [id for id in self.ids if ids is None or id in ids]
        firsts = {id: min(frames) for id, frames in self._clicks.items()}
        if direction == "backward":
            last = max(max(self._clicks[id]) for id in asked)
            yield from self._travel(last if start is None else start, stop, -1, ids)
            return
        yield from self._travel(
            min(firsts[id] for id in asked) if start is None else start, stop, 1, ids
        )
        if direction == "both":
            begin = max(firsts[id] for id in asked) - 1
            yield from self._travel(begin, stop, -1, ids, before=firsts)

    def _travel(
        self,
        begin: int,
        stop: int | None,
        step: int,
        ids: list[int] | None,
        before: dict[int, int] | None = None,
    ) -> Iterator[TrackedFrame]:
        """Track in one direction.

        Args:
            begin: Index of the first frame.
            stop: Index of the frame to end before.
            step: 1 forward, -1 backward.
            ids: Objects to track.
            before: By object, the index of the frame before which alone it is tracked.
        """
        for id in self.ids if ids is None else ids:
            joins = begin if before is None else before[id] - 1
            self.engine.rewind(joins, reverse=step < 0, ids=[id])
        frames = self.frames.forward(begin) if step > 0 else self.frames.backward(begin)
        detector = None if self._cut_settings is None else CutDetector(self._cut_settings)
        last, earlier = begin, list[int]()
        for frame in frames:
            t = frame.index
            if stop is not None and (stop - t) * step <= 0:
                return
            cut = detector is not None and detector.is_cut(frame.image)
            if cut:
                self._cuts.add(max(t, last))
            present = []
            for id, clicks in self._clicks.items():
                wanted = (ids is None or id in ids) and (before is None or t < before.get(id, 0))
                if wanted and any((t - f) * step >= 0 and self._one_scene(f, t) for f in clicks):
                    present.append(id)
            lost = tuple(id for id in earlier if id not in present) if cut else ()
            if lost:
                log.warning(
                    "frame %d of %s begins another scene: objects %s are lost. Prompt them there, "
                    "or track through cuts with cuts=None",
                    *(t, self.frames.info.name, ", ".join(map(str, lost))),
                )
            self._track(t, [id for id in present if (id, t) not in self._prompted], step)
            yield TrackedFrame(t, frame.time, self.known(t, present), cut=cut, lost=lost)
            last, earlier = t, present

    def _one_scene(self, prompted: int, frame: int) -> bool:
        """Whether no cut is known between two frames."""
        first, last = sorted((prompted, frame))
        return not any(first < cut <= last for cut in self._cuts)

    def _track(self, frame: int, ids: list[int], step: int) -> None:
        """Track the objects that have no prompt on a frame."""
        if not ids:
            return
        features = self._read(frame)
        output = self.engine.propagate(frame, features, reverse=step < 0, ids=ids)
        self.engine.remember(frame, features, output)
        objects = self._tracked.setdefault(frame, {})
        self._tracked.move_to_end(frame)
        objects |= {id: _object_mask(output, row) for row, id in enumerate(output.ids)}
        while len(self._tracked) > CACHED_MASKS:
            self._tracked.popitem(last=False)

    # What is known -------------------------------------------------------------------------

    def known(self, frame: int, ids: Sequence[int] | None = None) -> Instances:
        """The objects of a frame that were prompted there, or whose masks are still kept.

        Args:
            frame: Index of the frame.
            ids: Some of the objects; None: all.

        Returns:
            The objects that are in the frame and have a pixel. ``scores`` are the predicted IoU of
            the masks, ``presence`` the probability that an object is in the frame.
        """
        height, width = self.frame(frame).image.shape[:2]
        shown: list[tuple[int, _ObjectMask, LogitPatch]] = []
        for id in self.ids if ids is None else ids:
            known = self._known(id, frame)
            if known is not None and known.presence > 0:
                patch = LogitPatch.cut(fill_holes(known.logits.numpy(), FILL_HOLE_AREA))
                if patch.logits.size:
                    shown.append((id, known, patch))
        boxes = [patch.crop((height, width))[1] for _, _, patch in shown]
        presence = 1 / (1 + np.exp(-np.array([m.presence for _, m, _ in shown], np.float32)))
        return Instances(
            boxes=np.array(boxes, np.float32).reshape(len(shown), 4),
            scores=np.array([m.quality for _, m, _ in shown], np.float32),
            presence=presence.astype(np.float32),
            labels=[OBJECT] * len(shown),
            size=(height, width),
            patches=[patch for _, _, patch in shown],
            track_ids=np.array([id for id, _, _ in shown], np.int64),
        )

    def _known(self, id: int, frame: int) -> _ObjectMask | None:
        return self._prompted.get((id, frame), self._tracked.get(frame, {}).get(id))

    def _read(self, frame: int) -> TrackerFeatures:
        """The features of a frame; those of the last few frames are kept."""
        if frame not in self._features:
            self._features[frame] = self.engine.read(self.frames.get(frame).image)
        self._features.move_to_end(frame)
        while len(self._features) > CACHED_FEATURES:
            self._features.popitem(last=False)
        return self._features[frame]

    def _check_known(self, id: int) -> None:
        if id not in self._clicks:
            known = ", ".join(map(str, self._clicks)) or "none"
            raise TrackError(f"no object {id} was given; these are: {known}")


def _check_id(id: Any) -> None:
    if not is_whole(id):
        raise PromptError(f"an object's id is a whole number from 0; got {id!r}")


def _object_mask(output: TrackerOutput, row: int) -> _ObjectMask:
    logits = output.logits[row].float().clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT).cpu()
    return _ObjectMask(logits, float(output.presence[row]), float(output.quality[row]))

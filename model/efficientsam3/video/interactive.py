"""Objects that a person points at, followed both ways through a video, corrected anywhere."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import PromptError
from ..image import OBJECT, ImageModel
from ..nn.interactive import BOTTOM_RIGHT, TOP_LEFT
from ..prompts import read_boxes, read_labels, read_points
from ..types import Array, Instances, LogitPatch
from .bank import MemorySettings
from .concepts import TrackedFrame
from .frames import Frame
from .memory import LARGEST, MemoryTracker, Tracked, TrackerFeatures
from .mend import mend
from .settings import TrackError
from .shelf import Shelf

DIRECTIONS = ("forward", "backward", "both")

MOST_POINTS = 16
"""Clicks on one frame that are used: of more, the first and the last eight, as in SAM3."""

READ = 4
"""Frames whose features are kept, so that clicks on one frame cost no encoding."""

SEEN = 32
"""Frames whose masks are kept, to be corrected; and to be shown again."""

SMALL = 16
"""Cells, of 288 x 288, up to which holes are filled and specks removed in what is shown."""


@dataclass(eq=False)
class Given:
    """What a person gave of one object on one frame. xy: (K, 2) in [0, 1]; labels: (K,)."""

    xy: Tensor = field(default_factory=lambda: torch.zeros(0, 2))
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))


@dataclass(eq=False)
class Seen:
    """One object on one frame. logits: (4g, 4g). presence: a logit. quality: in [0, 1]."""

    logits: Tensor
    presence: float
    quality: float


class InteractiveTracker:
    """Click an object on any frame, and have its masks on all others.

        tracker = InteractiveTracker(model, "street.mp4")
        tracker.add_points(0, 1, [[420, 260]])          # frame 0, object 1
        for frame in tracker.propagate():
            ...                                         # frame.index, frame.instances
        tracker.add_points(31, 1, [[400, 300]], [0])    # not that: a correction
        for frame in tracker.propagate(start=31):
            ...

    What can be read again (a file, a folder, a list) takes prompts on any frame, in any order,
    and can be run in both directions; of a stream (a camera, a generator) only the latest frames
    are held, and time goes forward.

    Memory does not grow with the video: features of 4 frames, some pictures, masks of the last
    32 frames that were seen, a bounded memory for each object, and what was given: a mask and a
    memory for each prompted frame of each object (one megabyte at full size in bfloat16). A
    correction on a frame that was seen longer ago begins from its clicks alone.

    Args:
        model: with the ability "video".
        source: as ``read_frames`` takes it.
        settings: of the memory; both ways are kept whatever it says.
        held: pictures that are held at most (and at most 256 MB): how far back a stream goes.

    Raises:
        MissingAbilityError: the model's weights have no memory.
    """

    def __init__(
        self,
        model: ImageModel,
        source: Any,
        settings: MemorySettings | None = None,
        *,
        held: int = 32,
    ) -> None:
        settings = replace(settings or MemorySettings(), both_ways=True)
        self.engine = MemoryTracker(model, settings)
        self.model = model
        self.frames = Shelf(source, held)
        self._features: OrderedDict[int, TrackerFeatures] = OrderedDict()
        self._given: dict[int, dict[int, Given]] = {}
        self._kept: dict[tuple[int, int], Seen] = {}  # of given frames, by object and frame
        self._seen: OrderedDict[int, dict[int, Seen]] = OrderedDict()  # of tracked ones, by frame

    @property
    def ids(self) -> list[int]:
        """The objects, in the order in which they were given."""
        return list(self._given)

    def prompted(self, id: int) -> list[int]:
        """Frames on which something was given of an object, in order."""
        self._check_known(id)
        return sorted(self._given[id])

    def frame(self, index: int) -> Frame:
        """The picture of a frame."""
        return self.frames.get(index)

    # Prompts ------------------------------------------------------------------------------

    def add_points(
        self,
        frame: int,
        id: int,
        points: Any,
        labels: Any = None,
        *,
        box: Any = None,
        replace: bool = False,
    ) -> Instances:
        """Point at an object, new or known; clicks on one frame add up.

        Args:
            frame: number of the frame. id: of the object, any whole number from 0.
            points: (K, 2) xy pixels. labels: (K,) 1 on the object, 0 off it; all 1 if omitted.
            box: (4,) xyxy pixels, around the object, beside the points.
            replace: forget earlier clicks on this frame.

        Returns: what is known of the frame, this object as the prompt makes it.
        """
        features = self._read(frame)
        clicks = read_points(points, features.size)
        signs = read_labels(labels, (len(clicks),), "labels")
        return self._click(frame, id, features, clicks, signs, box, replace)

    def add_box(self, frame: int, id: int, box: Any) -> Instances:
        """Draw a box around an object, new or known; it takes the place of clicks on this frame.

        Args: box: (4,) xyxy pixels. For the others see ``add_points``.
        """
        features = self._read(frame)
        nothing = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
        return self._click(frame, id, features, *nothing, box, replace=True)

    def add_mask(self, frame: int, id: int, mask: Any) -> Instances:
        """Say what an object, new or known, looks like on a frame.

        Args: mask: (H, W) bool, of the frame's size or any other of the whole frame.
        """
        self._check_id(id)
        features = self._read(frame)
        array = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
        if array.ndim != 2 or not array.size:
            raise PromptError(f"a mask is (H, W) bool; got shape {array.shape}")
        if array.dtype != bool and not np.isin(array, (0, 1)).all():
            raise PromptError("a mask is bool, or 0 and 1; for logits pass logits > 0")
        wanted = torch.from_numpy(np.ascontiguousarray(array.astype(bool)))[None]
        told = self.engine.add_masks(frame, features, [id], wanted)
        return self._give(frame, Given(), told)

    def _click(
        self,
        frame: int,
        id: int,
        features: TrackerFeatures,
        clicks: Array,
        signs: Array,
        box: Any,
        replace: bool,
    ) -> Instances:
        self._check_id(id)
        earlier = self._given.get(id, {}).get(frame)
        if earlier is None or replace or box is not None:
            earlier = Given()
        size = torch.tensor([features.size[1], features.size[0]], dtype=torch.float32)
        xy = torch.cat([earlier.xy, torch.from_numpy(clicks) / size])
        labels = torch.cat([earlier.labels, torch.from_numpy(signs)])
        if box is not None:
            corners = read_boxes(np.asarray(box, np.float32).reshape(-1, 4), features.size)
            if len(corners) != 1:
                raise PromptError(f"one box goes around one object; got {len(corners)}")
            xy = torch.cat([torch.from_numpy(corners).view(2, 2) / size, xy])
            labels = torch.cat([torch.tensor([TOP_LEFT, BOTTOM_RIGHT]), labels])
        given = Given(xy, labels)
        if len(xy) > MOST_POINTS:
            half = MOST_POINTS // 2
            xy, labels = (torch.cat([t[:half], t[-half:]]) for t in (xy, labels))
        before = self._kept.get((id, frame), self._seen.get(frame, {}).get(id))
        previous = None
        # A box, or clicks that begin anew, say all there is to say.
        if before is not None and not replace and box is None:
            previous = before.logits
        told = self.engine.add_points(frame, features, id, xy, labels, previous)
        return self._give(frame, given, told)

    def _give(self, frame: int, given: Given, told: Tracked) -> Instances:
        (id,) = told.ids
        self._given.setdefault(id, {})[frame] = given
        self._kept[id, frame] = _keep(told, 0)
        self._seen.get(frame, {}).pop(id, None)
        return self.known(frame)

    def remove_prompt(self, frame: int, id: int) -> None:
        """Take back what was given of an object on a frame; with its last, the object goes."""
        self._check_known(id)
        if frame not in self._given[id]:
            raise TrackError(
                f"nothing was given of object {id} on frame {frame}; on these: {self.prompted(id)}"
            )
        if len(self._given[id]) == 1:
            self.remove_object(id)
            return
        self.engine.release(frame, id)
        del self._given[id][frame], self._kept[id, frame]

    def remove_object(self, id: int) -> None:
        """Forget an object."""
        self._check_known(id)
        self.engine.remove(id)
        for frame in self._given.pop(id):
            del self._kept[id, frame]
        for seen in self._seen.values():
            seen.pop(id, None)

    def reset(self) -> None:
        """Forget all objects; the video stays open."""
        for id in self.ids:
            self.remove_object(id)
        self._seen.clear()

    def close(self) -> None:
        """Let go of the video."""
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
        """Follow objects from where they were given; frames come as they are tracked.

        An object is followed from the first frame (in the direction of travel) on which
        something was given of it. "both" goes forward from the first that was given, then back
        from the last object's first, and gives each object once on each frame: frames that come
        a second time hold who was not in them yet.

        To go on after a correction, or a pause, run again with ``start``: what was tracked
        shortly before it is remembered, what was tracked beyond it is forgotten.

        Args:
            direction: "forward", "backward" or "both".
            start: first frame of the run; None: the first that was given, or for "backward"
                the last. Not for "both".
            stop: the run ends before this frame; None: with the video.
            ids: objects to follow; None: all, also those that join meanwhile.
        """
        if direction not in DIRECTIONS:
            raise TrackError(f"direction is one of {', '.join(DIRECTIONS)}; got {direction!r}")
        if direction == "both" and (start is not None or stop is not None):
            raise TrackError('"both" goes through the whole video; start and stop go with a run '
                             "in one direction")  # fmt: skip
        for id in ids or ():
            self._check_known(id)
        if not self._given:
            raise TrackError("no object was given yet: add_points, add_box or add_mask first")
        return self._run(direction, start, stop, None if ids is None else list(ids))

    def _run(
        self, direction: str, start: int | None, stop: int | None, ids: list[int] | None
    ) -> Iterator[TrackedFrame]:
        firsts = {id: min(given) for id, given in self._given.items()}
        lasts = {id: max(given) for id, given in self._given.items()}
        asked = [id for id in self.ids if ids is None or id in ids]
        if direction != "backward":
            begin = min(firsts[id] for id in asked) if start is None else start
            yield from self._travel(self.frames.forwards(begin), begin, stop, 1, ids)
        if direction == "backward":
            begin = max(lasts[id] for id in asked) if start is None else start
            yield from self._travel(self.frames.backwards(begin), begin, stop, -1, ids)
        elif direction == "both":
            begin = max(firsts[id] for id in asked) - 1
            frames = self.frames.backwards(begin) if begin >= 0 else iter(())
            yield from self._travel(frames, begin, stop, -1, ids, before=firsts)

    def _travel(
        self,
        frames: Iterator[Frame],
        begin: int,
        stop: int | None,
        sign: int,
        ids: list[int] | None,
        before: dict[int, int] | None = None,
    ) -> Iterator[TrackedFrame]:
        """A run in one direction. before: an object is followed only before this frame."""
        for id in self.ids if ids is None else ids:
            joins = begin if before is None else before[id] - 1
            self.engine.rewind(joins, reverse=sign < 0, ids=[id])
        for frame in frames:
            t = frame.index
            if stop is not None and (stop - t) * sign <= 0:
                return
            follow = []
            for id, given in self._given.items():
                wanted = (ids is None or id in ids) and (before is None or t < before.get(id, 0))
                if wanted and any((t - f) * sign >= 0 for f in given):
                    follow.append(id)
            yield self._visit(frame, follow, sign)

    def _visit(self, frame: Frame, ids: list[int], sign: int) -> TrackedFrame:
        t = frame.index
        unknown = [id for id in ids if (id, t) not in self._kept]
        if unknown:
            features = self._read(t)
            found = self.engine.propagate(t, features, reverse=sign < 0, ids=unknown)
            self.engine.remember(t, features, found)
            seen = self._seen.setdefault(t, {})
            self._seen.move_to_end(t)
            seen |= {id: _keep(found, row) for row, id in enumerate(found.ids)}
            while len(self._seen) > SEEN:
                self._seen.popitem(last=False)
        return TrackedFrame(t, frame.time, self.known(t, ids))

    # What is known -------------------------------------------------------------------------

    def known(self, frame: int, ids: Sequence[int] | None = None) -> Instances:
        """Objects on a frame, as far as they were given there or its masks are still kept.

        ``scores`` are the predicted IoU of the masks, ``presence`` the probability that the
        object is there; who is not there, or has an empty mask, is left out.
        """
        size = self.frame(frame).image.shape[:2]
        here = self._seen.get(frame, {})
        shown: list[tuple[int, Seen, LogitPatch]] = []
        for id in self.ids if ids is None else ids:
            seen = self._kept.get((id, frame), here.get(id))
            if seen is not None and seen.presence > 0:
                patch = LogitPatch.cut(mend(seen.logits.numpy(), SMALL))
                if patch.logits.size:
                    shown.append((id, seen, patch))
        patches = [patch for _, _, patch in shown]
        boxes = [patch.crop((size[0], size[1]))[1] for patch in patches]
        presence = 1 / (1 + np.exp(-np.array([s.presence for _, s, _ in shown], np.float32)))
        return Instances(
            boxes=np.array(boxes, np.float32).reshape(len(shown), 4),
            scores=np.array([s.quality for _, s, _ in shown], np.float32),
            presence=presence.astype(np.float32),
            labels=[OBJECT] * len(shown),
            size=(size[0], size[1]),
            patches=list(patches),
            track_ids=np.array([id for id, _, _ in shown], np.int64),
        )

    def _read(self, frame: int) -> TrackerFeatures:
        """Features of a frame, of the last few not computed again."""
        if frame not in self._features:
            self._features[frame] = self.engine.read(self.frames.get(frame).image)
        self._features.move_to_end(frame)
        while len(self._features) > READ:
            self._features.popitem(last=False)
        return self._features[frame]

    def _check_id(self, id: int) -> None:
        if isinstance(id, bool) or not isinstance(id, (int, np.integer)) or id < 0:
            raise PromptError(f"an object's id is a whole number from 0; got {id!r}")

    def _check_known(self, id: int) -> None:
        if id not in self._given:
            known = ", ".join(map(str, self._given)) or "none"
            raise TrackError(f"no object {id} was given; these are: {known}")


def _keep(tracked: Tracked, row: int) -> Seen:
    logits = tracked.logits[row].float().clamp(-LARGEST, LARGEST).cpu()
    return Seen(logits, float(tracked.presence[row]), float(tracked.quality[row]))

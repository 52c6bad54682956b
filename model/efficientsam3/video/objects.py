"""Objects followed by memory: SAM3's way through one frame, for several concepts at once.

Concepts do not see each other: detections confirm, and masks give way to, objects of their own
concept only. What costs is shared: the frame is read once, all objects go through together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..types import Array, Instances, LogitPatch, Patch
from .association import Matches, associate, off_edge, strongest
from .cells import Cells, cells_of, overlaps, tight
from .lives import ALWAYS, NEVER, Lives
from .mend import NOTHING, dense, hide_occluded, mend, mend_all, shrunk
from .settings import TrackError, TrackSettings

if TYPE_CHECKING:
    from .memory import MemoryTracker, Tracked, TrackerFeatures


TOGETHER = 64
"""Objects that begin together; the mask of each takes a megabyte meanwhile."""


class Part(NamedTuple):
    """An object in a frame.

    score: of the detection that began it. presence: how sure the tracker is of it here, in
    [0, 1]. detected: the mask is a detection's; pixels that it shares with memory's are its own.
    """

    label: str
    patch: Patch
    score: float
    presence: float
    detected: bool = False


@dataclass(eq=False)
class Outcome:
    """What a frame shows: objects by identity.

    gone: objects that turn out to have been none. hidden, unconfirmed: not to be shown here.
    """

    parts: dict[int, Part] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    hidden: set[int] = field(default_factory=set)
    unconfirmed: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Begun:
    """Objects that a frame's detections begin: identities, and rows of the detections."""

    label: str
    ids: list[int]
    rows: list[int]


class _Said(NamedTuple):
    """What the detections of a concept say.

    begun: objects to begin. refresh: objects, by identity, whose memory rows of detections may
    refresh. own: rows of objects that adopt the masks of rows of detections.
    """

    begun: _Begun
    refresh: list[tuple[int, int]]
    own: dict[int, int]


class MemoryFollower:
    """Follows objects frame by frame.

    Args:
        engine: that remembers objects and finds them again.
    """

    def __init__(self, engine: MemoryTracker, settings: TrackSettings) -> None:
        if settings.adopt is None:
            settings = replace(settings, adopt=engine.adopt)
        self.engine, self.settings = engine, settings
        self.lives = Lives(settings)
        self._next = 0
        self._now = -1
        self._features: TrackerFeatures | None = None
        self._masks: dict[int, Tensor] = {}
        self._adopted: dict[int, Patch] = {}

    def follow(
        self, now: int, image: Any, found: Instances | None, asked: Sequence[str], frames: int = 1
    ) -> Outcome:
        """One frame.

        Args:
            now: 0, 1, ... in the order of travel. image: of any kind that the engine reads.
            found: detections; None where none were asked for. asked: their concepts.
            frames: for which these detections stand.
        """
        s, engine = self.settings, self.engine
        self._now, self._features = now, engine.read(image)
        tracked = engine.propagate(now, self._features)
        tracked = tracked._replace(logits=mend_all(tracked.logits, s.fill))
        seen = [tight(mask > 0, 0, 0, mask.shape) for mask in _array(tracked.logits)]
        out, said = Outcome(), list[_Said]()
        self._adopted = {}
        if found is not None:
            cells = cells_of(found)
            for label in asked:
                said.append(self._judge(now, label, found, cells, tracked, seen, out.gone, frames))
            own = {row: detection for one in said for row, detection in one.own.items()}
            tracked = self._adopt(found, own, tracked)
            for row, detection in own.items():
                seen[row] = cells[detection].onto(seen[row].grid)
            if s.recondition and now % s.recondition == 0:
                self._refresh(found, [pair for one in said for pair in one.refresh])
        tracked = self._hide(tracked, seen, out.gone)
        self._remember(tracked, out.gone)
        if found is not None:
            for one in said:
                self._begin(one.begun, found, out)
        self._show(tracked, out)
        self._forget(out.gone)
        for id in self.lives.lost(now):
            self._forget([id])
        out.hidden, out.unconfirmed = self.lives.unshown(), self.lives.unconfirmed()
        return out

    # One frame, step by step -----------------------------------------------------------

    def _judge(
        self,
        now: int,
        label: str,
        found: Instances,
        cells: Sequence[Cells],
        tracked: Tracked,
        seen: Sequence[Cells],
        gone: set[int],
        frames: int,
    ) -> _Said:
        """Hear the detections of a concept."""
        s = self.settings
        rows = [row for row, name in enumerate(found.labels) if name == label]
        there = [i for i, id in enumerate(tracked.ids) if self.lives[id].label == label]
        ids = [tracked.ids[i] for i in there]
        overlap = np.zeros((len(rows), len(there)), np.float32)
        if overlap.size:
            grid = seen[0].grid
            overlap[:] = overlaps([cells[r].onto(grid) for r in rows], [seen[i] for i in there])
        areas = np.array([seen[i].area > 0 for i in there], bool)
        scores = found.scores[rows]
        match = associate(overlap, scores, areas, s)
        new = self._admit(found, rows, match)
        matched = [[ids[t] for t in of] for of in match.matched]
        gone |= self.lives.judge(now, matched, [ids[t] for t in match.unmatched], frames)
        begun = _Begun(label, list(range(self._next, self._next + len(new))), new)
        self._next += len(new)
        for id, row in zip(begun.ids, new, strict=True):
            self.lives.begin(id, label, float(found.scores[row]), now)
        self.lives.confirm([*ids, *begun.ids], {id for of in matched for id in of} | {*begun.ids})
        presence = tracked.presence.tolist()
        sure = [
            (ids[t], rows[d])
            for t, d in match.sure.items()
            if presence[there[t]] > s.sure_presence and ids[t] not in gone
        ]
        own = {there[t]: rows[d] for t, d in match.own.items() if ids[t] not in gone}
        return _Said(begun, sure, own)

    def _admit(self, found: Instances, rows: Sequence[int], match: Matches) -> list[int]:
        """Rows of the detections that may begin objects."""
        new = [rows[d] for d in match.new]
        if self.settings.edge and new:
            inside = off_edge(found.boxes[new], found.size, self.settings.edge)
            new = [row for row, keep in zip(new, inside, strict=True) if keep]
        return strongest(new, found.scores, self.settings.objects - len(self.lives))

    def _adopt(self, found: Instances, own: dict[int, int], tracked: Tracked) -> Tracked:
        """Let objects (rows) have the masks of their detections (rows) in this frame."""
        if not own:
            return tracked
        logits = tracked.logits.clone()
        for row, detection in own.items():
            patch, mask = self._mended(found, detection)
            if mask is None or mask.shape != logits.shape[1:]:
                whole = torch.from_numpy(found.mask(detection))
                mask = self.engine.logits_of(whole[None])[0]
            logits[row] = mask.to(logits)
            self._adopted[tracked.ids[row]] = patch
        return tracked._replace(logits=logits)

    def _mended(self, found: Instances, row: int) -> tuple[Patch, Tensor | None]:
        """A detection's mask, and its logits if it has any."""
        patch = found._patch(row)
        if not isinstance(patch, LogitPatch):
            return patch, None
        logits = mend(dense(patch), self.settings.fill)
        return LogitPatch.cut(logits), torch.from_numpy(logits)

    def _refresh(self, found: Instances, sure: Sequence[tuple[int, int]]) -> None:
        """Let objects be remembered by their detections of this frame."""
        for id, row in sure:
            self._condition([id], [row], found)
            self.lives[id].detected.add(self._now)

    def _condition(self, ids: Sequence[int], rows: Sequence[int], found: Instances) -> None:
        features = self._present()
        for first in range(0, len(ids), TOGETHER):
            some = slice(first, first + TOGETHER)
            masks = torch.from_numpy(np.stack([_full(found, row) for row in rows[some]]))
            self.engine.add_masks(self._now, features, list(ids[some]), masks)

    def _hide(self, tracked: Tracked, seen: Sequence[Cells], gone: set[int]) -> Tracked:
        """Empty the masks of objects that another covers."""
        hidden = []
        for _, rows in self._groups(tracked.ids).items():
            lives = [self.lives[tracked.ids[i]] for i in rows]
            times = [
                life.hidden
                if life.hidden is not None
                else (ALWAYS if tracked.ids[i] in gone else NEVER)
                for i, life in zip(rows, lives, strict=True)
            ]
            over: list[int] = []
            if self.settings.occlusion and len(rows) > 1:
                masks = [seen[i] for i in rows]
                overlap = overlaps(masks, masks).astype(np.float32)
                over = hide_occluded(overlap, times, self.settings.occlusion)
            hidden += [rows[i] for i in over]
            for place, (life, time) in enumerate(zip(lives, times, strict=True)):
                away = not seen[rows[place]].area or place in over
                life.hidden = self._now if away else time
                life.seen = life.seen if away else self._now
        if not hidden:
            return tracked
        logits = tracked.logits.clone()
        logits[hidden] = NOTHING
        return tracked._replace(logits=logits)

    def _groups(self, ids: Sequence[int]) -> dict[str, list[int]]:
        """Rows by concept."""
        groups: dict[str, list[int]] = {}
        for row, id in enumerate(ids):
            groups.setdefault(self.lives[id].label, []).append(row)
        return groups

    def _remember(self, tracked: Tracked, gone: set[int]) -> None:
        """Keep masks for the frames to come, without those that others mostly cover."""
        if not tracked.ids:
            return
        side = 4 * tracked.logits.shape[-1]
        lost, present = np.zeros((2, len(tracked.ids)), bool)
        for rows in self._groups(tracked.ids).values():
            lost[rows], present[rows] = shrunk(tracked.logits[rows], side, self.settings.shrink)
        logits = tracked.logits
        if lost.any():
            logits = logits.clone()
            logits[lost] = logits[lost].clamp(max=NOTHING)
        kept = [row for row, id in enumerate(tracked.ids) if id not in gone]
        if not kept:
            return
        self.engine.remember(
            self._now,
            self._present(),
            tracked._replace(logits=logits).take(kept),
            present=torch.from_numpy((present & ~lost)[kept]),
            overwrite=True,
        )

    def _begin(self, new: _Begun, found: Instances, out: Outcome) -> None:
        self._condition(new.ids, new.rows, found)
        for id, row in zip(new.ids, new.rows, strict=True):
            patch, logits = self._mended(found, row)
            if logits is not None:
                self._masks[id] = logits
            score = float(found.scores[row])
            adopts = bool(self.settings.adopt)
            out.parts[id] = Part(new.label, patch, score, score, adopts)

    def _show(self, tracked: Tracked, out: Outcome) -> None:
        shown = _array(tracked.logits)
        sureness = tracked.presence.float().sigmoid().tolist()
        self._masks = {id: m for id, m in self._masks.items() if id in out.parts}
        for row, id in enumerate(tracked.ids):
            self._masks[id] = tracked.logits[row]
            patch = LogitPatch.cut(shown[row])
            if patch.logits.size:
                life = self.lives[id]
                own = self._adopted.get(id)
                out.parts[id] = Part(
                    life.label, own or patch, life.score, sureness[row], own is not None
                )
        for id in out.gone:
            out.parts.pop(id, None)

    def _forget(self, ids: Sequence[int] | set[int]) -> None:
        known = set(self.engine.ids)
        self.engine.remove([id for id in ids if id in known])
        for id in ids:
            self.lives.pop(id, None)
            self._masks.pop(id, None)

    def _present(self) -> TrackerFeatures:
        if self._features is None:
            raise TrackError("no frame was given yet; call step with the frame that you point at")
        return self._features

    # What a person says of the last frame ------------------------------------------------

    def remove(self, ids: Sequence[int]) -> None:
        """Follow objects no more."""
        self._forget(ids)

    def point(self, id: int | None, label: str, xy: Array, signs: Array) -> tuple[int, Part]:
        """Point at an object in the last frame: a new one, or a known one to correct it.

        Args:
            xy: (K, 2) in [0, 1]. signs: (K,) of ``nn.interactive``.
        """
        features = self._present()
        id, label = self._name(id, label)
        said = self.engine.add_points(
            self._now,
            features,
            id,
            torch.from_numpy(np.asarray(xy, np.float32)),
            torch.from_numpy(np.asarray(signs, np.int64)),
            self._masks.get(id),
        )
        return id, self._given(id, label, said)

    def draw(self, id: int | None, label: str, mask: Array) -> tuple[int, Part]:
        """Say what an object looks like in the last frame. mask: (H, W) bool."""
        features = self._present()
        id, label = self._name(id, label)
        given = torch.from_numpy(np.ascontiguousarray(mask, bool))[None]
        return id, self._given(id, label, self.engine.add_masks(self._now, features, [id], given))

    def _name(self, id: int | None, label: str) -> tuple[int, str]:
        if id is None:
            if len(self.lives) >= self.settings.objects:
                raise TrackError(
                    f"{len(self.lives)} objects are followed, as many as settings.objects allows; "
                    "remove one first"
                )
            id, self._next = self._next, self._next + 1
            return id, label
        if id not in self.lives:
            known = ", ".join(map(str, self.lives)) or "none"
            raise TrackError(f"no object {id} is followed; these are: {known}")
        return id, self.lives[id].label

    def _given(self, id: int, label: str, said: Tracked) -> Part:
        life = self.lives.get(id) or self.lives.begin(id, label, 1.0, self._now)
        life.given, life.score, life.seen = True, 1.0, self._now
        near = {f for f in life.detected if abs(f - self._now) <= self.settings.release}
        for frame in near - {self._now}:
            if frame in self.engine.conditioned(id):
                self.engine.release(frame, id)
        life.detected -= near
        logits = mend_all(said.logits, self.settings.fill)
        self._masks[id] = logits[0]
        return Part(label, LogitPatch.cut(_array(logits)[0]), 1.0, 1.0)


def _array(logits: Tensor) -> Array:
    return np.asarray(logits.float().cpu().numpy())


def _full(found: Instances, row: int) -> Array:
    """A detection's mask for the engine: four times as fine as its logits, or as its pixels."""
    patch = found._patch(row)
    if not isinstance(patch, LogitPatch):
        return found.mask(row)
    height, width = patch.grid
    size = (4 * height, 4 * width)
    out = np.zeros(size, bool)
    pixels, (x0, y0, x1, y1) = patch.crop(size)
    out[y0:y1, x0:x1] = pixels
    return out

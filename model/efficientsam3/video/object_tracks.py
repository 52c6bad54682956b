"""Which objects of a frame are which tracked ones, by where they move and what they look like.

The object decoder of late fusion finds the objects of a frame without a prompt, and gives each a
vector that says what it is. Vectors of one object on two frames are much alike, those of different
things are not, and those of two things of one kind are, so that motion has to tell these apart.
Objects that nobody tracks are followed, too: else a tracked object is confused with one beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch.nn.functional as F

from ..masks.overlap import suppress
from ..types import Array
from .association import assign
from .types import FoundObjects

SAME_IOU = 0.85
"""IoU above which the less likely of two objects of a frame is the same object."""
LEAST_CELLS = 6
"""Cells of the mask below which an object is too small to be followed."""
REACH, REACH_GROWTH = 1.0, 0.3
"""Usual distance of an object from where it is expected, in its sides, and what each frame adds on
which it is not seen."""
MARGIN = 0.02
"""Added to the side of an object, as a share of the image's side."""
FRAMES_OF_MOTION = 3
"""Frames for which an object that is not seen goes on moving as before."""
UNLIKE, ALIKE = 0.3, 0.85
"""Cosines at which two objects are certainly different, and as alike as one is on two frames."""
LEAST_SCORE = 0.05
"""Score of a pair of an object and a track below which they are not joined."""
DOUBT = 0.7
"""Share of a pair's score that does not depend on the probability of the object."""
NEW_SCORE = 0.8
"""Probability from which an object that nobody tracks is followed."""
MAX_AGE = 3
"""Frames after which such an object is forgotten when it is not seen."""
SMOOTHING = 0.5
"""Share of the earlier velocity in the velocity after a new measurement."""
KEPT_LOOK = 0.9
"""Share of the earlier look in the look after a new measurement."""
MOST_PLACES = 8
"""Frames on which somebody decided where an object is, of which its place is kept."""


@dataclass(frozen=True)
class _Place:
    """Where an object is on a frame, in shares of the image."""

    frame: int
    center: Array  # (2,) rows and columns
    side: float  # of the square of the same area
    box: Array  # (4,) first and last rows and columns
    velocity: Array | None = None  # (2,) a frame

    def expected(self, frame: int) -> Array:
        """(2,) where the center is on another frame, if it goes on moving."""
        if self.velocity is None:
            return self.center
        frames = min(max(frame - self.frame, -FRAMES_OF_MOTION), FRAMES_OF_MOTION)
        return self.center + self.velocity * frames

    def moved(self, seen: _Place) -> _Place:
        """The object on another frame, where it was measured, with its velocity."""
        if seen.frame == self.frame:
            return _Place(seen.frame, seen.center, seen.side, seen.box, self.velocity)
        # One edge of an object that is being covered stands still, and the center follows it: of
        # both edges and the center, the median shows the motion.
        changes = np.vstack([(seen.box - self.box).reshape(2, 2), seen.center - self.center])
        velocity = np.median(changes, 0) / (seen.frame - self.frame)
        if self.velocity is not None:
            velocity = SMOOTHING * self.velocity + (1 - SMOOTHING) * velocity
        return _Place(seen.frame, seen.center, seen.side, seen.box, velocity)


@dataclass(eq=False)
class _Track:
    """An object that is followed."""

    place: _Place
    look: Array | None
    id: int | None  # None: nobody tracks it
    decided: dict[int, _Place] = field(default_factory=dict)  # by frame
    before: tuple[_Place, Array | None] | None = None  # place and look on the frame before

    def nearest(self, frame: int) -> _Place:
        """Its place that was known last, or decided on a frame nearer to another one."""
        places = [self.place, *self.decided.values()]
        return min(places, key=lambda place: abs(frame - place.frame))

    def see(self, place: _Place, look: Array | None) -> None:
        """Continue with an object of a frame, instead of another one of the same frame."""
        if place.frame != self.place.frame:
            self.before = self.place, self.look
        elif self.before is not None:
            self.place, self.look = self.before
        self.place = self.nearest(place.frame).moved(place)
        if look is None:
            return
        mean = look if self.look is None else KEPT_LOOK * self.look + (1 - KEPT_LOOK) * look
        self.look = mean / max(float(np.linalg.norm(mean)), 1e-6)

    def decide(self) -> None:
        """Keep the place: a person or a detection decided it."""
        self.decided[self.place.frame] = self.place
        while len(self.decided) > MOST_PLACES:
            del self.decided[max(self.decided, key=lambda f: abs(f - self.place.frame))]


class ObjectTracks:
    """Follows the objects of a stream's frames."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._frame: int | None = None
        self._seen: list[tuple[_Place, Array | None]] = []  # of the frame
        self._owners: dict[int, _Track] = {}  # of the objects of the frame, by row

    def read(self, frame: int, found: FoundObjects) -> None:
        """Take the objects of a frame, and decide which are followed ones.

        Args:
            frame: Number of the frame; the same one again is not read again.
            found: The objects, each once, see ``distinct``.
        """
        if frame == self._frame:
            return
        self._frame, self._seen, self._owners = frame, _measure(frame, found), {}
        rows = range(len(self._seen))
        certain = found.scores.float().numpy(force=True)
        if rows and self._tracks:
            scores = np.array([[self._score(track, row) for row in rows] for track in self._tracks])
            scores *= DOUBT + (1 - DOUBT) * certain
            for which, row in assign(np.where(scores < LEAST_SCORE, 0, scores)):
                self._tracks[which].see(*self._seen[row])
                self._owners[row] = self._tracks[which]
        for row in rows:
            if row not in self._owners and certain[row] > NEW_SCORE:
                self._owners[row] = _Track(*self._seen[row], None)
                self._tracks.append(self._owners[row])
        self._tracks = [
            track
            for track in self._tracks
            if track.id is not None or abs(frame - track.place.frame) <= MAX_AGE
        ]

    def rows_of(self, ids: Sequence[int]) -> dict[int, int]:
        """The objects of the frame that are tracked ones.

        Args:
            ids: Identities.

        Returns:
            Row by identity, for those that the frame shows.
        """
        found = {track.id: row for row, track in self._owners.items() if track.id is not None}
        return {id: found[id] for id in ids if id in found}

    def taken(self) -> set[int]:
        """Rows of the objects of the frame that somebody tracks."""
        return {row for row, track in self._owners.items() if track.id is not None}

    def knows(self, id: int) -> bool:
        """Whether an object is followed.

        Args:
            id: Its identity.
        """
        return self._track_of(id) is not None

    def has_look(self, id: int) -> bool:
        """Whether an object was one of the objects of a frame.

        Args:
            id: Its identity.
        """
        track = self._track_of(id)
        return track is not None and track.look is not None

    def bind(self, row: int, id: int, *, decided: bool = False) -> None:
        """Note that an object of the frame is a tracked one.

        Args:
            row: Row of the object.
            id: Identity of the tracked one.
            decided: Whether somebody decided so, and not the tracker.
        """
        owner, track = self._owners.get(row), self._track_of(id)
        if owner is not None and owner.id is None:  # an object that nobody tracked was this one
            owner.id = id
            if track is not None:
                owner.decided = track.decided
                if _likeness(track.look, owner.look):
                    owner.look = track.look
                self._tracks.remove(track)
            track = owner
        elif track is None:
            track = _Track(*self._seen[row], id)
            self._tracks.append(track)
        elif track is not owner:
            track.see(*self._seen[row])
        self._own(track, row)
        if decided:
            look = self._seen[row][1]
            if not _likeness(track.look, look):  # it was followed wrongly from the beginning
                track.look = look
            track.decide()

    def place(self, id: int, mask: Array) -> None:
        """Note where somebody decided that a tracked object is, of which the frame shows no object.

        Args:
            id: Its identity.
            mask: (h, w) bool, its mask on the frame that was read last.
        """
        if self._frame is None or not mask.any():
            return
        place, track = _place(self._frame, mask), self._track_of(id)
        if track is None:
            track = _Track(place, None, id)
            self._tracks.append(track)
        else:
            track.see(place, None)
        self._own(track, None)
        track.decide()

    def forget(self, id: int) -> None:
        """Forget that somebody tracks an object.

        Args:
            id: Its identity.
        """
        track = self._track_of(id)
        if track is not None:
            track.id = None

    def rename(self, id: int, new: int) -> None:
        """Let another identity have the object of one.

        Args:
            id: The identity that has it.
            new: The other one, which has none.
        """
        track = self._track_of(id)
        if track is not None:
            track.id = new

    def _track_of(self, id: int) -> _Track | None:
        return next((track for track in self._tracks if track.id == id), None)

    def _own(self, track: _Track, row: int | None) -> None:
        """Give a track one object of the frame, or none."""
        self._owners = {r: t for r, t in self._owners.items() if t is not track}
        if row is not None:
            self._owners[row] = track

    def _score(self, track: _Track, row: int) -> float:
        """How well an object of the frame continues a track, from 0 to 1."""
        place, look = self._seen[row]
        old = track.nearest(place.frame)
        distance = float(np.linalg.norm(place.center - old.expected(place.frame)))
        distance /= (place.side + old.side) / 2 + MARGIN
        reach = REACH + REACH_GROWTH * max(abs(place.frame - old.frame) - 1, 0)
        sizes = min(place.side, old.side) / max(place.side, old.side)
        near = float(np.exp(-0.5 * (distance / reach) ** 2))
        return near * _likeness(track.look, look) * sizes**0.5


def _likeness(a: Array | None, b: Array | None) -> float:
    """How alike two looks are, from 0 to 1; 1 where one is not known."""
    if a is None or b is None:
        return 1.0
    return float(np.clip((a @ b - UNLIKE) / (ALIKE - UNLIKE), 0, 1))


def distinct(found: FoundObjects) -> FoundObjects:
    """The objects of a frame without those that are too small, and without copies.

    Args:
        found: Objects, in any order.

    Returns:
        The others, the most certain ones first.
    """
    shown = (found.logits > 0).numpy(force=True)
    rows = [row for row in range(len(shown)) if shown[row].sum() >= LEAST_CELLS]
    rows.sort(key=lambda row: -float(found.scores[row]))
    chosen = [rows[i] for i in suppress(shown[rows], SAME_IOU).tolist()]
    looks = None if found.looks is None else found.looks[chosen]
    return FoundObjects(found.logits[chosen], found.scores[chosen], looks)


def _measure(frame: int, found: FoundObjects) -> list[tuple[_Place, Array | None]]:
    """Place and look of each object of a frame."""
    places = [_place(frame, mask) for mask in (found.logits > 0).numpy(force=True)]
    if found.looks is None:
        return [(place, None) for place in places]
    looks = F.normalize(found.looks.float(), dim=1).numpy(force=True)
    return list(zip(places, looks, strict=True))


def _place(frame: int, mask: Array) -> _Place:
    size = np.array(mask.shape)
    cells = np.argwhere(mask)
    box = np.concatenate([cells.min(0) / size, (cells.max(0) + 1) / size])
    side = float(np.sqrt(len(cells) / size.prod()))
    return _Place(frame, (cells.mean(0) + 0.5) / size, side, box)

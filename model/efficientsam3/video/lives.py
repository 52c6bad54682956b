"""What becomes of objects: SAM3's rules of hotstart, keep-alive, doubles and confirmation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .settings import TrackSettings

NEVER = -1
"""When an object was out of sight that never was."""
ALWAYS = 1 << 60
"""When an object was out of sight that is being taken back: later than any other."""


@dataclass(eq=False)
class Life:
    """What is known of an object. Times are frames in the order of travel.

    score: of the detection that began it. born: its first frame. seen: the last frame in which
    it was somewhere. lives: see ``TrackSettings.keep_alive``. unmatched: frames in which no
    detection confirmed it; doubles: by earlier object, frames in which both were of one
    detection. hidden: the last frame in which it was out of sight, ``NEVER``, or None before
    that was looked at. streak: frames in a row in which it was detected. given: by a person, who
    knows best. detected: frames in which its memory is a detection.
    """

    label: str
    score: float
    born: int
    seen: int
    lives: int
    unmatched: int = 0
    doubles: dict[int, int] = field(default_factory=dict)
    hidden: int | None = None
    streak: int = 0
    confirmed: bool = False
    given: bool = False
    detected: set[int] = field(default_factory=set)


class Lives(dict[int, Life]):
    """The objects that are followed, by identity."""

    def __init__(self, settings: TrackSettings) -> None:
        super().__init__()
        self.settings = settings

    def begin(self, id: int, label: str, score: float, now: int) -> Life:
        """A new object."""
        self[id] = life = Life(label, score, now, now, self.settings.keep_alive, detected={now})
        return life

    def judge(
        self,
        now: int,
        matched: Sequence[Sequence[int]],
        unmatched: Sequence[int],
        frames: int = 1,
    ) -> set[int]:
        """Note what detections say of the objects of a concept that were there before.

        Args:
            matched: for each detection the objects it is of. unmatched: objects.
            frames: for which these detections stand: those to the next that is detected on.

        Returns:
            Objects that are taken back.
        """
        s = self.settings
        for id in {id for ids in matched for id in ids}:
            self[id].lives = min(s.most_alive, self[id].lives + frames)
        gone: set[int] = set()
        for id in unmatched:
            life = self[id]
            life.unmatched += frames
            life.lives = max(s.least_alive, life.lives - frames)
            if life.unmatched >= s.hotstart_unmatched and self._young(life, now):
                gone.add(id)
        for ids in matched:
            if len(ids) < 2:
                continue
            first = min(ids, key=lambda id: self[id].born)
            for id in ids:
                life = self[id]
                if id == first:
                    continue
                life.doubles[first] = life.doubles.get(first, 0) + frames
                if life.doubles[first] >= s.hotstart_doubles and self._young(life, now):
                    gone.add(id)
        return gone

    def _young(self, life: Life, now: int) -> bool:
        return life.born > now - self.settings.hotstart and not life.given

    def confirm(self, ids: Sequence[int], detected: set[int]) -> None:
        """Note which objects of a concept were detected on a frame, new ones too."""
        for id in ids:
            life = self[id]
            life.streak = life.streak + 1 if id in detected else 0
            life.confirmed |= life.streak >= self.settings.confirm

    def unshown(self) -> set[int]:
        """Objects that are followed, and at present not to be shown."""
        if not self.settings.hide_unmatched:
            return set()
        return {id for id, life in self.items() if life.unmatched and life.lives <= 0}

    def unconfirmed(self) -> set[int]:
        """Objects that have not been detected often enough."""
        if not self.settings.confirm:
            return set()
        return {id for id, life in self.items() if not (life.confirmed or life.given)}

    def lost(self, now: int) -> list[int]:
        """Objects that were nowhere for too long."""
        if not self.settings.forget:
            return []
        return [id for id, life in self.items() if now - life.seen > self.settings.forget]

"""Which objects are removed, hidden or ended: SAM3's hotstart, keep-alive and confirmation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .settings import TrackSettings


@dataclass(eq=False)
class TrackState:
    """The history of one object. Frames are numbered in the direction of travel."""

    label: str
    """Its concept."""
    score: float
    """Score of the detection that began it."""
    first_frame: int
    """Frame on which it began."""
    last_visible: int
    """Last frame on which it had a pixel."""
    keep_alive: int
    """See ``TrackSettings.keep_alive_init``."""
    unmatched: int = 0
    """Number of frames on which no detection confirmed it."""
    duplicates: dict[int, int] = field(default_factory=dict)
    """By earlier object, the number of frames on which both matched one detection."""
    last_occluded: int | None = None
    """Last frame on which it had no pixel or was hidden as occluded; ``NEVER_OCCLUDED``; None
    before its first check."""
    hits: int = 0
    """Number of consecutive frames on which it was detected."""
    confirmed: bool = False
    """Whether ``hits`` has reached ``TrackSettings.min_hits``."""
    from_person: bool = False
    """Whether a person pointed at it. It is then never removed."""
    conditioned: set[int] = field(default_factory=set)
    """Frames on which a detection conditioned its memory."""
    phrase: str | None = None
    """The phrase that found it; None: the label."""


class TrackManager(dict[int, TrackState]):
    """The tracked objects, by identity.

    Args:
        settings: Numbers of frames after which objects are removed, hidden or ended.
    """

    def __init__(self, settings: TrackSettings) -> None:
        super().__init__()
        self.settings = settings

    def begin(
        self, id: int, label: str, score: float, frame: int, phrase: str | None = None
    ) -> TrackState:
        """Begin an object on a frame, and return its state.

        Args:
            id: Identity of the object.
            label: Its concept.
            score: Score of its detection.
            frame: Number of the frame.
            phrase: The phrase that found it; None: the label.
        """
        keep_alive = self.settings.keep_alive_init
        self[id] = state = TrackState(
            label, score, frame, frame, keep_alive, conditioned={frame}, phrase=phrase
        )
        return state

    def update_matches(
        self,
        frame: int,
        matched: Sequence[Sequence[int]],
        unmatched: Sequence[int],
        span: int = 1,
    ) -> set[int]:
        """Note how the detections of a concept match its earlier objects.

        SAM3: ``Sam3VideoBase._process_hotstart``; SAM3.1: ``_process_hotstart_gpu``.

        Args:
            frame: Number of the frame.
            matched: For each detection, the identities of the objects that it matches.
            unmatched: Identities of the objects that no detection confirms.
            span: Number of frames that these detections stand for: up to the next detection.

        Returns:
            Identities of the objects that are removed.
        """
        s = self.settings
        for id in {id for ids in matched for id in ids}:
            self[id].keep_alive = min(s.keep_alive_max, self[id].keep_alive + span)
        removed: set[int] = set()
        for id in unmatched:
            state = self[id]
            state.unmatched += span
            state.keep_alive = max(s.keep_alive_min, state.keep_alive - span)
            if state.unmatched >= s.hotstart_unmatched and self._in_hotstart(state, frame):
                removed.add(id)
        for ids in matched:
            for earlier, id in self._duplicates(ids):
                state = self[id]
                count = state.duplicates[earlier] = state.duplicates.get(earlier, 0) + span
                if count >= s.hotstart_duplicates and self._in_hotstart(state, frame):
                    removed.add(id)
        return removed

    def _duplicates(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Pairs of objects, of which the second may be a duplicate of the first."""
        began = {id: self[id].first_frame for id in ids}
        if self.settings.rules == "sam3.1":
            return [(a, b) for a in ids for b in ids if began[a] < began[b]]
        first = min(ids, key=began.__getitem__, default=None)
        return [] if first is None else [(first, id) for id in ids if id != first]

    def _in_hotstart(self, state: TrackState, frame: int) -> bool:
        return state.first_frame > frame - self.settings.hotstart_delay and not state.from_person

    def update_hits(self, ids: Sequence[int], detected: set[int]) -> None:
        """Note which objects of a concept were detected on a frame, new ones included.

        SAM3: ``Sam3VideoBase.update_masklet_confirmation_status``.

        Args:
            ids: Identities of all objects of the concept.
            detected: Identities of those that were detected.
        """
        for id in ids:
            state = self[id]
            state.hits = state.hits + 1 if id in detected else 0
            state.confirmed |= state.hits >= self.settings.min_hits

    def hidden(self) -> set[int]:
        """Objects that are tracked and, by ``hide_unmatched``, not shown."""
        if not self.settings.hide_unmatched:
            return set()
        return {
            id
            for id, state in self.items()
            if state.unmatched and state.keep_alive <= 0 and not state.from_person
        }

    def doubtful(self, ids: Iterable[int], around: Sequence[Mapping[int, float]]) -> set[int]:
        """Objects of a frame that the detections of the frames around it confirm too rarely.

        Args:
            ids: The objects of the frame.
            around: Scores of the detections that confirm objects, 0 for those that none confirms,
                on the frames that count.
        """
        out = set()
        for id in ids:
            scores = [found[id] for found in around if id in found]
            rare = sum(scores) < self.settings.confirm_score * len(scores)
            if rare and not (id in self and self[id].from_person):
                out.add(id)
        return out

    def unconfirmed(self) -> set[int]:
        """Objects that have not been detected on enough consecutive frames."""
        if not self.settings.min_hits:
            return set()
        return {id for id, state in self.items() if not (state.confirmed or state.from_person)}

    def expired(self, frame: int) -> list[int]:
        """Objects that have not been visible for more than ``max_age`` frames.

        Args:
            frame: Number of the frame.
        """
        limit = self.settings.max_age
        return [id for id, s in self.items() if limit and frame - s.last_visible > limit]

"""The numbers of tracking: SAM3's own, and those of the tracker by overlap alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import EfficientSam3Error


class TrackError(EfficientSam3Error, ValueError):
    """A number of tracking that is out of its range, or a frame out of its turn."""


@dataclass(frozen=True)
class MaskSettings:
    """How ``MaskTracker`` joins the detections of frames to tracks.

    overlap: IoU with where a track is expected, from which a detection can be its own.
    likeness: IoU of two masks laid on each other, from which a detection elsewhere can be it.
    reach: how far elsewhere, in lengths of the object; it grows by the root of the updates that
        it was not seen in. 0: tracks go on by overlap alone.
    start: score from which a detection that is no track's begins one.
    confirm: updates in which a track is seen before it has an identity; those before get -1.
    forget: frames after which a track that is not seen ends.
    """

    overlap: float = 0.1
    likeness: float = 0.15
    reach: float = 5.0
    start: float = 0.5
    confirm: int = 1
    forget: int = 30

    def __post_init__(self) -> None:
        check(
            self,
            shares=("overlap", "likeness", "start"),
            counts=("forget",),
            least_one=("confirm",),
        )
        if self.reach < 0:
            raise TrackError(f"reach is 0 or more lengths; got {self.reach}")


def check(
    settings: object,
    shares: Sequence[str] = (),
    counts: Sequence[str] = (),
    least_one: Sequence[str] = (),
) -> None:
    """Raise TrackError where a share is outside [0, 1], or a count is none."""
    for name in shares:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise TrackError(f"{name} is between 0 and 1; got {value}")
    for name in (*counts, *least_one):
        value, least = getattr(settings, name), int(name in least_one)
        if not isinstance(value, int) or value < least:
            raise TrackError(f"{name} is a whole number from {least}; got {value!r}")


@dataclass(frozen=True)
class TrackSettings:
    """How concepts are followed through frames; the defaults are SAM3's.

    Detections:
        detection: score above which an instance that the detector finds counts.
        nms: mask IoU above which the weaker of two detections of a concept is dropped.
        begin: score from which a detection that is no tracked object's begins one. As in SAM3,
            while a concept has no object any detection does.
        edge: detections whose box has its centre within this share of the image's border begin
            no object; 0: they do.
        objects: most objects that are followed at once; of new ones the best are taken.

    Detections and objects, by IoU of their masks:
        match: from which a detection is (also) of an object, and so no new one.
        support: from which a detection confirms an object; one without is unmatched.
        sure_score, sure_overlap, sure_presence: a detection of this score, of this IoU with an
            object of more than this presence (a logit), may refresh the object's memory.
        recondition: frames from one such refreshing to the next; 0: never.
        adopt: from which an object has the mask of its detection, in what is shown and in what is
            remembered, each detection for one object; 0: objects are as the memory draws them,
            as in SAM3. None: as the model's ``MemoryConfig`` says, 0 for all that are released.
        release: when a person corrects an object, detections within this many frames are no
            longer what it is remembered by.

    Objects that turn out to be none:
        hotstart: frames by which results wait, so that an object can still be taken back in the
            frames since it began; 0: results leave at once, and no object is taken back.
        hotstart_unmatched: unmatched frames in that time after which it is taken back.
        hotstart_doubles: frames in that time in which it shares its detection with an earlier
            object, after which it is taken back as that one's double.
        confirm: frames in a row in which an object is detected before it is shown; 0: shown from
            its first.
        keep_alive: lives that an object begins with; each matched frame gives it one.
        most_alive, least_alive: the bounds of its lives; each unmatched frame takes one.
        hide_unmatched: do not show an object that has no lives left, though it is followed.
        forget: frames in which an object is nowhere before it is followed no more, so that time
            and memory do not grow with all that ever passed; 0: never, as SAM3.

    Masks:
        occlusion: mask IoU of two objects of a concept from which the one that was out of sight
            more recently is taken for the other, and hidden.
        shrink: share of its mask that an object must keep against stronger ones of its concept,
            else nothing of it is remembered.
        fill: holes and specks of up to this many cells of a 288 x 288 mask are mended.
        overlap: whether objects of one concept may share pixels in the results; else they go to
            the one that the tracker is surer of.

    masks: of the tracker by overlap alone; it takes ``detection`` and ``nms`` from here.
    """

    detection: float = 0.5
    nms: float = 0.1
    begin: float = 0.7
    edge: float = 0.0
    objects: int = 10_000
    match: float = 0.1
    support: float = 0.5
    sure_score: float = 0.8
    sure_overlap: float = 0.8
    sure_presence: float = 0.8
    recondition: int = 16
    adopt: float | None = None
    release: int = 16
    hotstart: int = 15
    hotstart_unmatched: int = 8
    hotstart_doubles: int = 8
    confirm: int = 0
    keep_alive: int = 30
    most_alive: int = 30
    least_alive: int = -1
    hide_unmatched: bool = False
    forget: int = 300
    occlusion: float = 0.7
    shrink: float = 0.3
    fill: int = 16
    overlap: bool = False
    masks: MaskSettings = field(default_factory=MaskSettings)

    def __post_init__(self) -> None:
        shares = ["detection", "nms", "begin", "edge", "match", "support", "sure_score"]
        shares += ["sure_overlap", "occlusion", "shrink"]
        if self.adopt is not None:
            shares.append("adopt")
        counts = ("recondition", "release", "hotstart", "confirm", "forget", "fill")
        check(self, shares, counts, ("objects",))
        if self.hotstart:
            for name in ("hotstart_unmatched", "hotstart_doubles"):
                if not 1 <= getattr(self, name) <= self.hotstart:
                    raise TrackError(
                        f"{name} is from 1 to hotstart, {self.hotstart} frames; "
                        f"got {getattr(self, name)!r}"
                    )

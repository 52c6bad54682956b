"""The numbers of tracking: SAM3's own, and those of the tracker by overlap alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import EfficientSam3Error


class TrackError(EfficientSam3Error, ValueError):
    """A number of tracking that is out of its range, or a frame out of its turn."""


@dataclass(frozen=True)
class MaskSettings:
    """How ``MaskTracker`` joins the detections of frames to tracks.

    overlap: IoU with where a track is expected, from which a detection can be its own.
    likeness: IoU of two masks laid on each other, from which a detection elsewhere can be it.
    reach: how far elsewhere, in lengths of the object, for each update that it was not seen in;
        0: tracks go on by overlap alone.
    start: score from which a detection that is no track's begins one.
    confirm: updates in which a track is seen before it has an identity; those before get -1.
    forget: frames after which a track that is not seen ends.
    """

    overlap: float = 0.1
    likeness: float = 0.3
    reach: float = 1.5
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
    shares: tuple[str, ...] = (),
    counts: tuple[str, ...] = (),
    least_one: tuple[str, ...] = (),
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
    """How concepts are followed through frames.

    detection: score above which the detector's instances count.
    nms: IoU of masks above which the weaker of two detections of a concept is dropped.
    masks: of the tracker by overlap alone.
    """

    detection: float = 0.5
    nms: float = 0.1
    masks: MaskSettings = field(default_factory=MaskSettings)

    def __post_init__(self) -> None:
        check(self, shares=("detection", "nms"))

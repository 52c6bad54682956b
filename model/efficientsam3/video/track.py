"""``es3.track``: concepts through any source of frames, one frame in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import PromptError
from .concepts import ConceptTracker, TrackedFrame
from .frames import FrameReader, read_frames
from .settings import TrackSettings

if TYPE_CHECKING:
    from ..image import ImageModel

__all__ = ["ConceptTracker", "TrackedFrame", "track"]


def track(
    model: ImageModel,
    source: Any,
    concepts: str | Sequence[str] | None = None,
    *,
    boxes: Any = None,
    box_labels: Any = None,
    tracker: str = "auto",
    settings: TrackSettings | None = None,
    every: int = 1,
    threshold: float | None = None,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    newest: bool | None = None,
    keep_images: bool = False,
) -> Iterator[TrackedFrame]:
    """Follow every instance of some concepts through a video.

    Args:
        source: a video file, a folder of images, a list of images, the number or address of a
            camera, or any iterable of images; read as the result is.
        concepts: phrases. All are asked together; an object keeps its concept.
        boxes: (K, 4) xyxy pixels: exemplars drawn on the first frame, of the one concept, or,
            without a concept, of what is to be found.
        box_labels: (K,) 1 for "like this", 0 for "not like this"; all 1 if omitted.
        tracker: "memory" follows objects by the model's video memory, "masks" by the overlap of
            detections; "auto": by memory where the weights have one.
        settings: thresholds and delays. threshold: the settings' ``detection`` alone.
        every: the detector runs on every n-th frame.
        start, stop, stride: which frames of the source. newest: pass over those that come while
            one is worked on; as cameras and broadcasts are read if nothing is said.
        keep_images: give the pixels with each frame.

    Yields:
        Each frame with its instances and their identities.

    Raises:
        PromptError, MissingAbilityError, TrackError: at the call, before any frame is read.
    """
    chosen = settings or TrackSettings()
    if threshold is not None:
        chosen = replace(chosen, detection=threshold)
    if concepts is None and boxes is None:
        raise PromptError("nothing to follow: pass concepts=['person'], or boxes of exemplars")
    follower = ConceptTracker(
        model, concepts, tracker=tracker, settings=chosen, every=every, keep_images=keep_images
    )
    if boxes is not None:
        names = follower.concepts
        if len(names) > 1:
            raise PromptError(
                f"boxes show one concept; got {len(names)}: {', '.join(names)}. Make a "
                "ConceptTracker and call add_exemplars for each"
            )
        follower.add_exemplars(boxes, box_labels, concept=names[0] if names else None)
    frames = read_frames(source, start=start, stop=stop, stride=stride, newest=newest)
    return _run(follower, frames)


def _run(follower: ConceptTracker, frames: FrameReader) -> Iterator[TrackedFrame]:
    with frames:
        for frame in frames:
            yield from follower.step(frame)
    yield from follower.flush()

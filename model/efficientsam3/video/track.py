"""``es3.track``: concepts through any source of frames, one frame in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..concepts import Concepts
from ..errors import PromptError, TrackError, join_names, shorten
from ..io.frames import FrameReader, read_frames
from ..outputs import read_encoded
from .concept_tracker import ConceptTracker
from .objects import ObjectAdder, ObjectPrompt, check_objects
from .settings import TrackSettings
from .types import TrackedFrame

if TYPE_CHECKING:
    from ..outputs import EncodedExemplars
    from ..predictor import ImageModel


def track(
    model: ImageModel,
    source: Any,
    concepts: Concepts | None = None,
    *,
    boxes: Any = None,
    box_labels: Any = None,
    exemplars: EncodedExemplars | Sequence[EncodedExemplars] | None = None,
    objects: Sequence[ObjectPrompt] | None = None,
    tracker: str = "auto",
    settings: TrackSettings | None = None,
    detect_every: int = 1,
    threshold: float | None = None,
    start: int = 0,
    stop: int | None = None,
    stride: int = 1,
    latest_only: bool | None = None,
    value_range: Any = None,
    reconnect: float | None = None,
    keep_images: bool = False,
) -> Iterator[TrackedFrame]:
    """Track every instance of some concepts through a video.

    Args:
        model: Detects the concepts.
        source: A video file, a folder of images, a pattern such as "frames/*.jpg", a list of
            images, an array (T, H, W, C), the number or address of a camera, or any iterable of
            images. It is read as results are taken.
        concepts: Phrases, or a mapping from classes to their phrases, as in
            ``ImageModel.segment``. All are looked for together, and an object keeps its class.
        boxes: (K, 4) xyxy pixels: exemplars drawn on the first frame, of the one concept, or,
            without a concept, of what is looked for.
        box_labels: (K,) 1 for a positive box, 0 for a negative one; all 1 if omitted.
        exemplars: Exemplars of other images, from ``ImageModel.exemplar``, of the one concept, or,
            without a concept, of what is looked for on each frame.
        objects: Objects that are shown on given frames, by masks, polygons, boxes or points, and
            tracked from there on, with or without concepts. ``InteractiveTracker`` tracks such
            objects backward too.
        tracker: "memory" tracks objects by the model's video memory, "iou" by the overlap of
            detections; "auto" is "memory" where the model has one.
        settings: Thresholds and numbers of frames; None: ``TrackSettings.of(model)``, as the
            model's release has them, SAM3 or SAM3.1.
        detect_every: The detector runs on every n-th frame.
        threshold: ``settings.detection_threshold`` alone.
        start: Index of the first frame, from 0.
        stop: Index of the frame to end before; None: the end of the source.
        stride: Take every n-th frame.
        latest_only: Skip frames that arrive while one is processed. None: do so for cameras and
            broadcasts, and read all of other sources.
        value_range: The values that are black and white, for images that have not 8 bits; None:
            the range of the source.
        reconnect: Seconds for which a camera or an address that goes away is waited for. None: 30
            for cameras and broadcasts, 0 for other addresses (http, tcp), whose films have an end.
        keep_images: Whether results hold the pixels of their frames.

    Yields:
        Each frame with its instances and their identities.

    Raises:
        PromptError: There is nothing to track, or a prompt has a wrong shape or value.
        MissingAbilityError: The model lacks what the call needs.
        TrackError: A setting is out of its range.
        VideoError: The source cannot be read.
    """
    chosen = TrackSettings.of(model) if settings is None else settings
    if not isinstance(chosen, TrackSettings):
        raise TrackError(f"settings is TrackSettings(...) or None; got {shorten(settings)}")
    if not isinstance(tracker, str) and not hasattr(tracker, "propagate"):
        raise TrackError(f"tracker is 'auto', 'memory' or 'iou'; got {shorten(tracker)}")
    if threshold is not None:
        chosen = replace(chosen, detection_threshold=threshold)
    if concepts is None and boxes is None and exemplars is None and not objects:
        raise PromptError(
            "nothing to track: pass concepts=['person'], boxes of exemplars, exemplars of another "
            "image, or objects"
        )
    concept_tracker = ConceptTracker(
        model,
        concepts,
        exemplars=exemplars,
        tracker=tracker,
        settings=chosen,
        detect_every=detect_every,
        keep_images=keep_images,
    )
    names = concept_tracker.concepts
    if exemplars is not None:
        read_encoded(exemplars, model)
        if len(names) > 1:
            raise PromptError(
                f"exemplars show one concept; got {len(names)}: {join_names(names)}. Track once "
                "for each"
            )
    if boxes is not None:
        if len(names) > 1:
            raise PromptError(
                f"boxes show one concept; got {len(names)}: {join_names(names)}. Make a "
                "ConceptTracker and call add_exemplars for each"
            )
        concept_tracker.add_exemplars(boxes, box_labels, concept=names[0] if names else None)
    if objects is not None:
        check_objects(objects, start, stop, stride)
    adder = None if objects is None else ObjectAdder(concept_tracker, objects)
    frames = read_frames(
        source,
        start=start,
        stop=stop,
        stride=stride,
        latest_only=latest_only,
        value_range=value_range,
        reconnect=reconnect,
    )
    if objects is not None:
        info = frames.info
        check_objects(objects, 0, info.frames if info.frames else None, 1, info.size)
    return _track(concept_tracker, frames, adder)


def _track(
    concept_tracker: ConceptTracker, frames: FrameReader, adder: ObjectAdder | None
) -> Iterator[TrackedFrame]:
    last = None
    with frames:
        for frame in frames:
            done, last = concept_tracker.step(frame), frame.index
            if adder is not None:
                adder.add(last, done)
            yield from done
    yield from concept_tracker.flush()
    if adder is not None:
        adder.warn_of_missed(last)

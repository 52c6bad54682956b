"""Track concepts through videos and ordered images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import fiftyone.core.labels as fol
import fiftyone.core.media as fomm

from efficientsam3.concepts import Concepts, plain_concepts, read_classes
from efficientsam3.prompts import check_limits

from ..model_cache import MODEL_LOCK, load_for_run
from ..ownership.merge import OVERLAP, REFUSE, check_existing
from .checks import check_field, check_samples
from .clips import Clip, read_clips
from .run import class_settings, digest_settings
from .run_over_clips import run_over_clips
from .steps import Step, Steps

if TYPE_CHECKING:
    from efficientsam3.video.types import TrackedFrame


def track_video(
    samples: Any,
    concepts: Concepts,
    *,
    label_field: str = "esam3_tracks",
    model: str,
    tracker: str = "auto",
    threshold: float | None = None,
    detect_every: int = 1,
    nms: float | None = None,
    class_agnostic: bool = False,
    overlap_metric: str = "iou",
    cuts: bool = True,
    presence: str = "multiply",
    order_field: str | None = None,
    sequence_field: str | None = None,
    existing: str = REFUSE,
    overlap: float = OVERLAP,
    restart: bool = False,
    **options: Any,
) -> Steps:
    """Track all instances of concepts through videos, or through images in order.

    Labels have ``index``, the identity within their video, and an ``fo.Instance``, by which the
    App links them over frames. The labels of a clip are written when all of its frames are
    tracked: a clip that fails or is stopped keeps what it had, and begins again in the next run.
    Concepts that an earlier run with the same settings tracked through a clip stay as people left
    them; the field ``<label_field>_run`` of its sample holds the keys of the runs that finished it.

    Args:
        samples: videos, or images of which each sequence is one clip.
        concepts: phrases, or a mapping of class names to phrases: the labels get the class.
        label_field: a field of the frames of videos, or of the samples of images.
        model: a model name, or the folder of a saved model.
        tracker: see ``efficientsam3.track``.
        threshold: the lowest score of a detection, in [0, 1]. None: as the model's release has it,
            0.5 for SAM3 and 0.4 for SAM3.1.
        detect_every: see ``efficientsam3.track``.
        nms: of two detections of a class that overlap by more, the weaker one is dropped. None:
            ``TrackSettings.nms``.
        class_agnostic: whether detections of different classes are compared too.
        overlap_metric: how overlap is measured, "iou" or "iom"; see ``ImageModel.segment``.
        cuts: whether tracks end where another scene begins.
        presence: see ``TrackSettings``.
        order_field: the field by which images are sorted, such as "filepath". Images need it.
        sequence_field: a field whose values tell which clip an image belongs to. None: all images
            are one clip.
        existing: what happens to labels that the field holds; see ``segment_concepts``.
        overlap: see ``segment_concepts``.
        restart: also track concepts that were tracked with these settings.
        **options: further arguments of ``efficientsam3.load``.

    Returns:
        the summary of the run, with ``frames``, ``identities`` and ``cuts``.

    Raises:
        RunError: the samples or fields cannot be used.
        ExistingLabelsError: the field holds labels of people, and ``existing`` is "refuse".
        PromptError: a concept or a limit is invalid.
    """
    from efficientsam3.video.concept_tracker import ConceptTracker

    from ..tracking import make_settings

    is_video = samples.media_type == fomm.VIDEO
    check_samples(samples, "video" if is_video else "image")
    check_existing(existing, overlap)
    label_field = label_field.removeprefix("frames.")
    classes = read_classes(concepts) or {}
    if threshold is not None:
        check_limits(threshold)
    values = (nms, class_agnostic, overlap_metric, cuts, presence)
    make_settings(threshold, *values)  # raises before the model is loaded
    check_field(samples, label_field, kinds=(fol.Detections,), new=True, frames=is_video)
    clips = list(read_clips(samples, is_video, order_field, sequence_field))
    yield Step(0, len(clips), f"loading {model}")
    core = load_for_run(model, **options)
    tracking = make_settings(threshold, *values, core)
    threshold = tracking.detection_threshold
    chosen = {"tracker": tracker, "threshold": threshold, "detect_every": detect_every, **options}
    others = {"nms": nms, "class_agnostic": class_agnostic, "overlap_metric": overlap_metric}
    defaults = {"nms": None, "class_agnostic": False, "overlap_metric": "iou", "cuts": True}
    others |= {"cuts": cuts, "presence": presence}
    defaults["presence"] = "multiply"
    chosen |= {k: v for k, v in others.items() if v != defaults[k]}
    settings = digest_settings(model, chosen)
    questions = class_settings(classes, settings)
    request = {"track": questions, "concepts": plain_concepts(classes), "model": model, **chosen}

    def track(clip: Clip, asked: Sequence[str]) -> Iterator[TrackedFrame]:
        clip_tracker = ConceptTracker(
            core,
            plain_concepts({name: classes[name] for name in asked}),
            tracker=tracker,
            detect_every=detect_every,
            settings=tracking,
        )
        return track_clip(clip_tracker, clip.source)

    return (
        yield from run_over_clips(
            samples._root_dataset,
            clips,
            label_field,
            track,
            questions,
            request=request,
            existing=existing,
            overlap=overlap,
            restart=restart,
        )
    )


def track_clip(tracker: Any, source: Any) -> Iterator[TrackedFrame]:
    """Track through the frames of a clip.

    Args:
        tracker: a ``ConceptTracker``.
        source: the path of a video, or the paths of images.
    """
    from efficientsam3.io.frames import read_frames

    with read_frames(source) as reader:
        frames = iter(reader)
        while True:
            with MODEL_LOCK:
                frame = next(frames, None)
                done = tracker.flush() if frame is None else tracker.step(frame)
            yield from done
            if frame is None:
                return

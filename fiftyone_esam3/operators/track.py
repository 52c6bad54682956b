"""The operators that track: concepts, or objects that labels on some frames show."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.media as fomm

from ..runs.checks import SHAPE_LABELS, check_field
from ..runs.steps import Summary
from ..runs.track import track_video
from ..runs.track_objects import track_objects
from ..tracking import release_threshold
from .base import RunOperator, describe_counts
from .form import CLASS_PHRASES, Form
from .texts import read_numbers

TRACKERS = {
    "auto": "By memory where the model has one, else by overlap",
    "memory": "By the model's video memory",
    "iou": "By overlap of masks: cheaper, and for every model",
}

DIRECTION_LABELS = {
    "both": "Both",
    "forward": "Forward",
    "backward": "Backward",
}


def describe_tracks(summary: Summary) -> str:
    """Describe what was tracked, as one sentence.

    Args:
        summary: the summary of the run.
    """
    text = (
        f"{describe_counts(summary, 'clips')}. {summary['identities']} objects in "
        f"{summary['frames']} frames, in {summary['field']}"
    )
    cuts = summary["cuts"]
    return f"{text}; tracks end at {cuts} cut{'s' if cuts > 1 else ''}" if cuts else text


class TrackVideo(RunOperator):
    """Track all instances of concepts."""

    NAME = "track_video"
    LABEL = "EfficientSAM3: track through videos"
    DESCRIPTION = "Finds every instance of the things that you name and tracks it through the video"
    ICON = "timeline"
    RUN = staticmethod(track_video)

    def fill(self, form: Form) -> None:
        """Ask for concepts, a model, a tracker, and the order of images.

        Args:
            form: the form.
        """
        is_video = form.ctx.target_view(require_flat=True).media_type == fomm.VIDEO
        form.target("video" if is_video else "image")
        form.concepts(required=not form.get(CLASS_PHRASES))
        form.classes()
        form.model()
        form.text(
            "label_field",
            "Field for the tracks",
            "Of the frames" if is_video else "Of the samples",
            default="esam3_tracks",
        )
        form.check(
            "label_field",
            check_field,
            form.samples,
            str(form.get("label_field", "")).removeprefix("frames."),
            kinds=(fol.Detections,),
            new=True,
            frames=is_video,
        )
        if not is_video:
            fields = list(form.samples.get_field_schema())
            for key, label, description in (
                ("order_field", "Order", "Images are sorted by this field, such as filepath"),
                ("sequence_field", "Sequences", "Images with the same value are one clip"),
            ):
                form.choice(key, label, description, fields, required=key == "order_field")
                form.check(key, check_field, form.samples, form.get(key))
        form.options("tracker", "Tracker", "How objects are tracked", TRACKERS)
        form.integer(
            "detect_every",
            "Detect on every n-th frame",
            "On the other frames the tracker works alone",
            min=1,
            default=1,
        )
        form.threshold(default=release_threshold(str(form.get("model"))))
        form.suppression()
        form.cuts()
        form.existing()
        form.restart()

    def describe(self, summary: Summary) -> str:
        """Describe what was tracked.

        Args:
            summary: the summary of the run.
        """
        return describe_tracks(summary)


class TrackObjects(RunOperator):
    """Track the objects that labels on some frames show."""

    NAME = "track_objects"
    LABEL = "EfficientSAM3: track labeled objects"
    DESCRIPTION = (
        "Tracks the objects that boxes, masks or keypoints on some frames show through the video, "
        "into a field of their own"
    )
    ICON = "moving"
    RUN = staticmethod(track_objects)

    def arguments(self, ctx: Any) -> dict[str, Any]:
        """The arguments of the run; with ``only_selected``, the App's selection are the prompts.

        Args:
            ctx: FiftyOne's execution context.
        """
        values = super().arguments(ctx)
        if "frame_numbers" in values:
            values["frame_numbers"] = read_numbers(values["frame_numbers"])
        chosen = list(ctx.selected_labels or []) if ctx.params.get("only_selected") else []
        return {"selected": chosen, **values}

    def fill(self, form: Form) -> None:
        """Ask for the field with prompts, its frames, a direction, a model and a field.

        Args:
            form: the form.
        """
        form.target("video")
        schema = form.samples.get_frame_field_schema(embedded_doc_type=SHAPE_LABELS) or {}
        form.choice(
            "prompt_field",
            "Boxes, masks or keypoints",
            "A field of the frames; it is not changed",
            sorted(schema),
            required=True,
        )
        field = str(form.get("prompt_field", "")).removeprefix("frames.")
        form.check(
            "prompt_field", check_field, form.samples, field, kinds=SHAPE_LABELS, frames=True
        )
        count = len(form.ctx.selected_labels or [])
        if count:
            form.inputs.bool(
                "only_selected", default=True, label=f"Only the {count} selected labels"
            )
        form.text("frame_numbers", "Frames", "Optional: only labels on these frames: 1, 50")
        form.check("frame_numbers", read_numbers, form.get("frame_numbers"))
        form.options("direction", "Direction", "From the frames with labels", DIRECTION_LABELS)
        form.text("label_field", "Field for the tracks", "Of the frames", default="esam3_objects")
        target = str(form.get("label_field", "")).removeprefix("frames.")
        kinds = (fol.Detections,)
        form.check(
            "label_field", check_field, form.samples, target, kinds=kinds, new=True, frames=True
        )
        if field and field == target:
            form.mark_invalid("label_field", "this field holds the prompts; name another one")
        form.model()
        form.cuts()
        form.existing()
        form.restart()

    def describe(self, summary: Summary) -> str:
        """Describe what was tracked.

        Args:
            summary: the summary of the run.
        """
        return describe_tracks(summary)

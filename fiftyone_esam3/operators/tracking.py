"""track_video: identities through videos and ordered images."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.media as fomm
from fiftyone.operators import types

from ..runs import Steps, Summary
from ..track import track_video
from .form import Form, chosen_model, split
from .task import Task, counted

TRACKERS = {
    "auto": "By memory where the model has one, else by overlap",
    "memory": "By the model's video memory",
    "masks": "By overlap of masks: cheaper, and for every model",
}


class TrackVideo(Task):
    """Every instance of some words, with identities."""

    NAME = "track_video"
    LABEL = "EfficientSAM3: track through videos"
    ABOUT = "Finds every instance of the things that you name and follows it through the video"
    ICON = "timeline"

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form, for videos or for images in order."""
        form = Form(ctx, self.LABEL, self.ABOUT)
        kind = ctx.target_view(require_flat=True).media_type
        form.target(media="video" if kind == fomm.VIDEO else "image")
        self.ask(form)
        return form.done()

    def ask(self, form: Form) -> None:
        """Concepts, a model, how to follow, and what gives images their order."""
        is_video = form.samples.media_type == fomm.VIDEO
        form.concepts()
        form.model()
        form.inputs.str(
            "label_field",
            default="esam3_tracks",
            required=False,
            label="Field for the tracks",
            description="Of the frames" if is_video else "Of the samples",
        )
        if form.get("label_field") and not is_video:
            form.check("label_field", kinds=(fol.Detections,), new=True)
        if not is_video:
            view = types.AutocompleteView(allow_user_input=False)
            for name in form.samples.get_field_schema():
                view.add_choice(name, label=name)
            form.inputs.str(
                "order_field",
                required=True,
                label="Order",
                description="Images are sorted by this field; filepath will often do",
                view=view,
            )
            form.inputs.str(
                "sequence_field",
                required=False,
                label="Sequences",
                description="Images with the same value here are one clip; nothing: all are one",
                view=view,
            )
            for key in ("order_field", "sequence_field"):
                if form.get(key):
                    form.check(key)
        choices = types.DropdownView()
        for value, label in TRACKERS.items():
            choices.add_choice(value, label=label)
        form.inputs.enum(
            "tracker",
            choices.values(),
            default="auto",
            required=False,
            label="How objects are followed",
            view=choices,
        )
        form.inputs.int(
            "every",
            min=1,
            default=1,
            required=False,
            label="Detect on every n-th frame",
            description="In between, objects go on by what the tracker knows",
        )
        form.threshold()
        form.again()

    def start(self, ctx: Any, samples: Any) -> Steps:
        """Follows the concepts."""
        p = ctx.params
        return track_video(
            samples,
            split(p.get("concepts") or []),
            label_field=p.get("label_field") or "esam3_tracks",
            model=chosen_model(ctx),
            tracker=p.get("tracker") or "auto",
            threshold=float(p.get("threshold", 0.5)),
            every=int(p.get("every") or 1),
            order_field=p.get("order_field") or None,
            sequence_field=p.get("sequence_field") or None,
            again=bool(p.get("again")),
        )

    def say(self, summary: Summary) -> str:
        """What was followed."""
        return (
            f"{counted(summary, 'clips')}. {summary['identities']} objects in "
            f"{summary['frames']} frames, in {summary['field']}"
        )

"""segment_prompts: boxes and keypoints become masks."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol

from ..runs import Steps, Summary
from ..segment import SHAPES, segment_prompts
from .form import Form, chosen_model, workers
from .task import Task, counted, found


class SegmentPrompts(Task):
    """A mask for each box or keypoint."""

    NAME = "segment_prompts"
    LABEL = "EfficientSAM3: masks for boxes or keypoints"
    ABOUT = "Gives each box, or each keypoint's points, the mask of the object that it shows"
    ICON = "gesture"

    def ask(self, form: Form) -> None:
        """The field with prompts, a field for the masks, a model."""
        form.field("prompt_field", "Boxes or keypoints", "A field of the samples", SHAPES)
        form.field(
            "label_field",
            "Field for the masks",
            "By default the name of the first with _masks",
            (fol.Detections,),
            required=False,
            new=True,
        )
        if form.get("label_field") and form.get("label_field") == form.get("prompt_field"):
            form.wrong("label_field", "this field holds the prompts; name another one")
        form.model()
        form.again()
        form.workers()

    def start(self, ctx: Any, samples: Any) -> Steps:
        """Labels the samples."""
        p = ctx.params
        return segment_prompts(
            samples,
            p["prompt_field"],
            label_field=p.get("label_field") or None,
            model=chosen_model(ctx),
            again=bool(p.get("again")),
            num_workers=workers(ctx),
        )

    def say(self, summary: Summary) -> str:
        """What was made."""
        return f"{counted(summary)}. {found(summary)}"

"""segment_concepts: every instance of some words."""

from __future__ import annotations

from typing import Any

import fiftyone.core.fields as fof
import fiftyone.core.labels as fol
from fiftyone.operators import types

from efficientsam3 import EfficientSam3Error

from ..runs import Steps, Summary
from ..segment import WORDS, check_words, segment_concepts
from .form import Form, chosen_model, label_fields, split, workers
from .task import Task, counted, found


class SegmentConcepts(Task):
    """Words in, masks of all their instances out."""

    NAME = "segment_concepts"
    LABEL = "EfficientSAM3: segment concepts"
    ABOUT = "Finds every instance of the things that you name, with masks"
    ICON = "category"

    def ask(self, form: Form) -> None:
        """Concepts or a field with them, a model, a field for the masks, limits."""
        form.concepts(instead="text_field")
        view = types.AutocompleteView()
        texts = form.samples.get_field_schema(ftype=(fof.StringField, fof.ListField))
        for name in sorted({*texts, *label_fields(form.samples, WORDS)} - {"filepath", "tags"}):
            view.add_choice(name, label=name)
        form.inputs.str(
            "text_field",
            required=False,
            label="Or a field with each sample's own concepts",
            description="Text, a list of texts, or labels",
            view=view,
        )
        if form.get("text_field"):
            try:
                check_words(form.samples, form.get("text_field"))
            except EfficientSam3Error as error:
                form.wrong("text_field", error)
        form.model()
        form.field(
            "label_field",
            "Field for the masks",
            "A new one, or one of Detections",
            (fol.Detections,),
            default="esam3",
            new=True,
        )
        form.threshold()
        form.inputs.int(
            "max_instances",
            min=1,
            required=False,
            label="At most",
            description="Instances in an image, the best ones",
        )
        form.again()
        form.workers()

    def start(self, ctx: Any, samples: Any) -> Steps:
        """Labels the samples."""
        p = ctx.params
        return segment_concepts(
            samples,
            split(p.get("concepts") or []),
            text_field=p.get("text_field") or None,
            label_field=p.get("label_field") or "esam3",
            model=chosen_model(ctx),
            threshold=float(p.get("threshold", 0.5)),
            max_instances=p.get("max_instances"),
            again=bool(p.get("again")),
            num_workers=workers(ctx),
        )

    def say(self, summary: Summary) -> str:
        """What was found."""
        return f"{counted(summary)}. {found(summary)}"

"""find_similar: selected labels are examples of what is looked for."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol
from fiftyone.operators import types

from ..runs import Steps, Summary
from ..similar import find_similar
from .form import Form, chosen_model
from .task import Task, counted, found


class FindSimilar(Task):
    """Everything like the labels that are selected in the App."""

    NAME = "find_similar"
    LABEL = "EfficientSAM3: find everything like the selected labels"
    ABOUT = (
        "Searches images for what looks like the labels that you selected. Those that are tagged "
        "'negative' show what is not meant"
    )
    ICON = "image_search"

    def ask(self, form: Form) -> None:
        """Words that go with the examples, a class for what is found, a model, limits."""
        chosen = form.get("chosen") or form.ctx.selected_labels or []
        if chosen:
            form.inputs.view(
                "selected", types.Notice(label=f"{len(chosen)} selected labels are the examples")
            )
        else:
            form.inputs.view("selected", types.Error(label="No labels are selected"))
            form.wrong(
                "selected",
                "no labels are selected; open a sample, click on boxes or masks, and try again",
            )
        form.inputs.str(
            "concept",
            required=False,
            label="Words that go with them",
            description="Optional: what they are called. Without words their look alone counts",
        )
        form.inputs.str(
            "name",
            required=False,
            label="Class of what is found",
            description="By default the words, or the class of the examples",
        )
        form.model()
        form.field(
            "label_field",
            "Field for the masks",
            "A new one, or one of Detections",
            (fol.Detections,),
            default="similar",
            new=True,
        )
        form.threshold()
        form.again()

    def start(self, ctx: Any, samples: Any) -> Steps:
        """Searches the samples."""
        p = ctx.params
        return find_similar(
            samples,
            p.get("chosen") or ctx.selected_labels or [],
            negative=p.get("negative") or [],
            concept=p.get("concept") or None,
            name=p.get("name") or None,
            label_field=p.get("label_field") or "similar",
            model=chosen_model(ctx),
            threshold=float(p.get("threshold", 0.5)),
            again=bool(p.get("again")),
        )

    def say(self, summary: Summary) -> str:
        """What was found."""
        return f"{counted(summary)}. {found(summary)}, like {summary['examples']} examples"

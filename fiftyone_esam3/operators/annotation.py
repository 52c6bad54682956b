"""prepare_annotation: masks that open in the App's Annotate mode."""

from __future__ import annotations

from typing import Any

from fiftyone.operators import types

from ..annotate import prepare_annotation
from ..runs import Steps, Summary
from .form import Form, label_fields
from .task import Task


class PrepareAnnotation(Task):
    """Label schemas for fields."""

    NAME = "prepare_annotation"
    LABEL = "EfficientSAM3: prepare for annotation"
    ABOUT = "Makes label schemas, so that masks can be edited in the App's Annotate mode"
    ICON = "edit"
    FLAT = False

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form; it asks for no view, because schemas are the dataset's."""
        form = Form(ctx, self.LABEL, self.ABOUT)
        form.samples = ctx.dataset
        self.ask(form)
        return form.done()

    def ask(self, form: Form) -> None:
        """Fields."""
        view = types.AutocompleteView(allow_user_input=False, allow_duplicates=False)
        for name in label_fields(form.samples, ()):
            view.add_choice(name, label=name)
        form.inputs.list(
            "fields",
            types.String(),
            required=True,
            label="Fields",
            description="Fields of labels that are to be edited",
            view=view,
        )
        unknown = set(form.get("fields", [])) - set(label_fields(form.samples, ()))
        if unknown:
            form.wrong("fields", f"there is no field of labels {', '.join(sorted(unknown))}")

    def start(self, ctx: Any, samples: Any) -> Steps:
        """Makes the schemas."""
        return prepare_annotation(ctx.dataset, list(ctx.params["fields"]))

    def say(self, summary: Summary) -> str:
        """Which fields can be edited now."""
        return f"{', '.join(summary['fields'])}: open a sample and choose Annotate"

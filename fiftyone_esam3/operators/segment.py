"""The operators that segment images: by concepts, all things, by prompts, by selected examples."""

from __future__ import annotations

from typing import Any

import fiftyone.core.fields as fof
from fiftyone.operators import types

from efficientsam3.everything import MAX_POINTS

from ..runs.checks import SHAPE_LABELS, TEXT_LABELS, check_text_field, read_patches
from ..runs.find_similar import find_similar
from ..runs.segment import segment_concepts, segment_everything, segment_prompts
from ..runs.steps import Summary
from .base import RunOperator
from .form import CLASS_PHRASES, Form, label_fields


def selected_labels(ctx: Any) -> list[dict[str, Any]]:
    """The labels that are selected in the App; in a view of patches, the selected patches.

    Args:
        ctx: FiftyOne's execution context.
    """
    if ctx.selected_labels:
        return list(ctx.selected_labels)
    view = ctx.view
    if ctx.selected and view is not None and view._is_patches:
        return list(read_patches(view.select(ctx.selected)))
    return []


class SegmentConcepts(RunOperator):
    """Segment all instances of concepts."""

    NAME = "segment_concepts"
    LABEL = "EfficientSAM3: segment concepts"
    DESCRIPTION = "Finds every instance of the things that you name, with masks"
    ICON = "category"
    RUN = staticmethod(segment_concepts)

    def fill(self, form: Form) -> None:
        """Ask for concepts or a field with concepts, a model, a field for masks, and limits.

        Args:
            form: the form.
        """
        form.target()
        form.concepts(required=not (form.get("text_field") or form.get(CLASS_PHRASES)))
        form.classes()
        texts = form.samples.get_field_schema(ftype=(fof.StringField, fof.ListField, fof.DictField))
        names = {*texts, *label_fields(form.samples, TEXT_LABELS)} - {"filepath", "tags"}
        form.choice(
            "text_field",
            "Or a field with each sample's own concepts",
            "Text, a list of texts, labels, or a dictionary of classes and phrases",
            sorted(names),
        )
        form.check("text_field", check_text_field, form.samples, form.get("text_field"))
        form.model()
        form.masks_field("esam3")
        form.threshold()
        form.integer("max_instances", "At most", "The best instances of an image", min=1)
        form.suppression()
        form.tile()
        form.integer(
            "batch_size",
            "Images together",
            "Images that are encoded together; 1 on a CPU, 16 elsewhere",
            min=1,
        )
        form.existing()
        form.restart()
        form.workers()


class SegmentEverything(RunOperator):
    """Segment all things without a word."""

    NAME = "segment_everything"
    LABEL = "EfficientSAM3: segment everything"
    DESCRIPTION = "Gives each thing in the images a mask, without a word"
    ICON = "select_all"
    RUN = staticmethod(segment_everything)

    def fill(self, form: Form) -> None:
        """Ask for a model, a field for masks, the grid of points and limits.

        Args:
            form: the form.
        """
        form.target()
        form.model()
        form.masks_field("everything")
        form.integer(
            "points_per_side",
            "Points along each side",
            "More points find smaller things, and take longer",
            min=1,
            max=MAX_POINTS,
            default=32,
        )
        form.threshold("The lowest predicted IoU of a mask", default=0.8)
        form.share(
            "stability_threshold",
            "Stability",
            "The lowest stability of a mask where its logits are cut higher or lower",
            default=0.95,
        )
        form.share(
            "nms", "Overlap of masks", "Of two masks that overlap by more, one is kept", default=0.7
        )
        form.integer("max_instances", "At most", "The best masks of an image", min=1)
        form.tile()
        form.existing()
        form.restart()
        form.workers()


class SegmentPrompts(RunOperator):
    """Segment the object that each box or keypoint shows."""

    NAME = "segment_prompts"
    LABEL = "EfficientSAM3: masks for boxes or keypoints"
    DESCRIPTION = "Gives each box, or each keypoint's points, the mask of the object that it shows"
    ICON = "gesture"
    RUN = staticmethod(segment_prompts)

    def arguments(self, ctx: Any) -> dict[str, Any]:
        """The arguments of the run; with ``only_selected``, the App's selection are the prompts.

        Args:
            ctx: FiftyOne's execution context.
        """
        chosen = selected_labels(ctx) if ctx.params.get("only_selected") else []
        return {"selected": chosen, **super().arguments(ctx)}

    def fill(self, form: Form) -> None:
        """Ask for the field with prompts, a field for masks, and a model.

        Args:
            form: the form.
        """
        form.target(patches=True)
        count = len(form.ctx.selected_labels or [])
        if count:
            form.inputs.bool(
                "only_selected", default=True, label=f"Only the {count} selected labels"
            )
        form.field("prompt_field", "Boxes or keypoints", "A field of the samples", SHAPE_LABELS)
        form.field(
            "label_field",
            "Field for the masks",
            "By default the name of the first field with _masks",
            required=False,
            new=True,
        )
        if form.get("label_field") and form.get("label_field") == form.get("prompt_field"):
            form.mark_invalid("label_field", "this field holds the prompts; name another one")
        form.model()
        form.existing()
        form.restart()
        form.workers()


class FindSimilar(RunOperator):
    """Find everything that looks like the labels that are selected in the App."""

    NAME = "find_similar"
    LABEL = "EfficientSAM3: find everything like the selected labels"
    DESCRIPTION = (
        "Searches images for what looks like the labels that you selected. Labels with the tag "
        "'negative' show what is not meant"
    )
    ICON = "image_search"
    RUN = staticmethod(find_similar)

    def arguments(self, ctx: Any) -> dict[str, Any]:
        """The arguments of the run; the App's selection is used unless labels are named.

        Args:
            ctx: FiftyOne's execution context.
        """
        return {"selected": selected_labels(ctx), **super().arguments(ctx)}

    def fill(self, form: Form) -> None:
        """Show the examples, and ask for a phrase, a class, a model, a field and limits.

        Args:
            form: the form.
        """
        form.target(patches=True)
        count = len(form.get("selected") or selected_labels(form.ctx))
        if count:
            notice = types.Notice(label=f"{count} selected labels are the examples")
            form.inputs.view("examples", notice)
        else:
            form.inputs.view("examples", types.Error(label="No labels are selected"))
            form.mark_invalid(
                "examples",
                "no labels are selected; open a sample, click on boxes or masks, and try again, "
                "or select patches in a view of patches",
            )
        form.text(
            "concept",
            "Words that go with them",
            "Optional: what they are called. Without words only their look counts",
        )
        form.text(
            "name",
            "Class of what is found",
            "By default the words, or the class of the examples",
        )
        form.model()
        form.masks_field("similar")
        form.threshold()
        form.existing()
        form.restart()

    def describe(self, summary: Summary) -> str:
        """Describe what was found.

        Args:
            summary: the summary of the run.
        """
        return f"{super().describe(summary)}, like {summary['examples']} examples"

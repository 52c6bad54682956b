"""The operators that work on fields: embeddings, evaluation, and label schemas."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from efficientsam3 import EfficientSam3Error

from ..ownership.merge import ADD, OVERWRITE, REFUSE
from ..runs.annotation import prepare_annotation
from ..runs.checks import check_key, check_name
from ..runs.embed import check_brain_key, check_embeddings_field, compute_embeddings
from ..runs.evaluate import evaluate
from ..runs.steps import Summary, finish
from .base import RunOperator, describe_counts, is_app, one_sentence
from .form import Form, label_fields
from .texts import free_key

FIGURES = {
    "mAP": "FiftyOne: mean average precision of masks, 0 to 100",
    "precision": "FiftyOne: at IoU 0.5, 0 to 100",
    "recall": "FiftyOne: at IoU 0.5, 0 to 100",
    "cgF1": "SA-Co: localization and classification, 0 to 100",
    "pmF1": "SA-Co: localization where the concept is present, 0 to 100",
    "IL_MCC": "SA-Co: is the concept present, -1 to 1",
}
"""What each figure of an evaluation says."""


class ComputeEmbeddings(RunOperator):
    """Compute the image encoder's mean features of samples or of their boxes."""

    NAME = "compute_embeddings"
    LABEL = "EfficientSAM3: compute embeddings"
    DESCRIPTION = "Vectors of samples, or of the boxes in a field, for similarity and visualisation"
    ICON = "scatter_plot"
    RUN = staticmethod(compute_embeddings)

    def fill(self, form: Form) -> None:
        """Ask for a field for the vectors, a model, and an index.

        Args:
            form: the form.
        """
        form.target()
        form.model()
        form.text(
            "embeddings_field",
            "Field for the vectors",
            "Of samples; or an attribute of the labels below",
            default="esam3_embedding",
        )
        form.field(
            "patches_field",
            "Boxes",
            "Optional: embed each box in this field instead of whole images",
            required=False,
        )
        if not form.get("patches_field"):
            name = form.get("embeddings_field")
            form.check(
                "embeddings_field",
                check_embeddings_field,
                form.ctx.dataset,
                name,
                existing=form.get("existing", REFUSE),
            )
        form.text(
            "brain_key",
            "Similarity index",
            "Optional: a name, for sorting by similarity in the App",
        )
        form.check("brain_key", check_name, form.get("brain_key"), "a brain key")
        form.key(
            {REFUSE: "Refuse", ADD: "Extend the index", OVERWRITE: "Replace the index"},
        )
        way = form.get("existing", REFUSE)
        form.check("brain_key", check_brain_key, form.ctx.dataset, form.get("brain_key"), way)
        form.restart()
        form.workers()

    def describe(self, summary: Summary) -> str:
        """Describe what was computed.

        Args:
            summary: the summary of the run.
        """
        index = f", index {summary['brain_key']}" if summary["brain_key"] else ""
        return f"{describe_counts(summary)}. Vectors are in {summary['field']}{index}"


class Evaluate(RunOperator):
    """Compare the masks of a field with true masks."""

    NAME = "evaluate"
    LABEL = "EfficientSAM3: evaluate masks"
    DESCRIPTION = "Compares a field with the truth: mask mAP by FiftyOne, and SA-Co's cgF1"
    ICON = "query_stats"
    RUN = staticmethod(evaluate)

    @property
    def config(self) -> foo.OperatorConfig:
        """How FiftyOne shows and executes the operator: the App shows its output."""
        config = super().config
        config.execute_as_generator = False
        return config

    def execute(self, ctx: Any) -> Any:
        """Do the run.

        Args:
            ctx: FiftyOne's execution context.

        Returns:
            the summary of the run; in the App an error is its result, so that it is shown without
            a traceback.

        Raises:
            EfficientSam3Error: the run cannot be done, and it is not the App that executes it.
        """
        if not is_app(ctx):
            return super().execute(ctx)
        try:
            with one_sentence(self.LABEL):
                summary = finish(self._start(ctx))
        except EfficientSam3Error as error:
            return {"error": str(error)}
        ctx.ops.reload_dataset()
        return {**summary, "message": self.describe(summary), "figures": figure_table(summary)}

    def resolve_output(self, ctx: Any) -> types.Property:
        """The figures as a table.

        Args:
            ctx: FiftyOne's execution context, with the result of the run.
        """
        output = types.Object()
        if "error" in ctx.results:
            output.view("error", types.Error(label=ctx.results["error"]))
        else:
            output.md(figure_table(ctx.results), name="figures")
        return types.Property(output, view=types.View(label=self.LABEL))

    def fill(self, form: Form) -> None:
        """Ask for two fields and a key.

        Args:
            form: the form.
        """
        form.target()
        form.field("field", "Predictions", "Detections with masks")
        form.field("truth", "Truth", "Detections with masks")
        if form.get("field") and form.get("field") == form.get("truth"):
            message = "this is the field with the predictions; choose the true one"
            form.mark_invalid("truth", message)
        form.text(
            "eval_key",
            "Key",
            "FiftyOne keeps true and false positives of each label under it",
            default=free_key("esam3_eval", form.ctx.dataset.list_evaluations()),
        )
        form.key({REFUSE: "Refuse", OVERWRITE: "Replace the evaluation"})
        known, way = form.ctx.dataset.list_evaluations(), form.get("existing", REFUSE)
        form.check("eval_key", check_key, known, form.get("eval_key"), "an evaluation", way)
        form.threshold()

    def describe(self, summary: Summary) -> str:
        """Give the figures.

        Args:
            summary: the summary of the run.
        """
        texts = [f"{name} {text}" for name, text in figures(summary)]
        return f"{summary['samples']} samples: {', '.join(texts)}"


def figures(summary: Summary) -> list[tuple[str, str]]:
    """The name and the text of each figure of an evaluation.

    Args:
        summary: the summary of the run.
    """
    texts = []
    for name in FIGURES:
        value, digits = summary[name], 2 if name == "IL_MCC" else 1
        texts.append((name, "-" if value is None else format(value, f".{digits}f")))
    return texts


def figure_table(summary: Summary) -> str:
    """The figures of an evaluation as a table in Markdown.

    Args:
        summary: the summary of the run.
    """
    rows = [f"| {name} | {text} | {FIGURES[name]} |" for name, text in figures(summary)]
    return "\n".join(["| figure | value | |", "|---|---|---|", *rows])


class PrepareAnnotation(RunOperator):
    """Make label schemas for fields."""

    NAME = "prepare_annotation"
    LABEL = "EfficientSAM3: prepare for annotation"
    DESCRIPTION = "Makes label schemas, so that masks can be edited in the App's Annotate mode"
    ICON = "edit"
    RUN = staticmethod(prepare_annotation)

    def fill(self, form: Form) -> None:
        """Ask for fields.

        Args:
            form: the form.
        """
        names = label_fields(form.ctx.dataset)
        form.several("fields", "Fields", "Fields of labels that are to be edited", names)
        unknown = sorted(set(form.get("fields", [])) - set(names))
        if unknown:
            form.mark_invalid("fields", f"there is no field of labels {', '.join(unknown)}")
        form.key(
            {REFUSE: "Refuse", ADD: "Add classes and attributes", OVERWRITE: "Replace the schema"}
        )
        known, way = form.ctx.dataset.label_schemas, form.get("existing", REFUSE)
        kind = "a label schema of the field"
        for name in form.get("fields", []):
            form.check("fields", check_key, known, name, kind, way, (ADD, OVERWRITE))

    def describe(self, summary: Summary) -> str:
        """Give the fields that can be edited.

        Args:
            summary: the summary of the run.
        """
        return f"{', '.join(summary['fields'])}: open a sample and choose Annotate"

"""compute_embeddings: for similarity, uniqueness and maps of a dataset."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol

from ..embed import compute_embeddings
from ..runs import Steps, Summary
from .form import Form, chosen_model, workers
from .task import Task, counted


class ComputeEmbeddings(Task):
    """The image encoder's mean features of samples or of their boxes."""

    NAME = "compute_embeddings"
    LABEL = "EfficientSAM3: compute embeddings"
    ABOUT = "Vectors of samples, or of the boxes in a field, for similarity and visualisation"
    ICON = "scatter_plot"

    def ask(self, form: Form) -> None:
        """A field for the vectors, a model, an index."""
        form.model()
        form.inputs.str(
            "embeddings_field",
            default="esam3_embedding",
            required=False,
            label="Field for the vectors",
            description="Of samples; or an attribute of the labels below",
        )
        form.field(
            "patches_field",
            "Boxes",
            "Optional: embed each box in this field instead of whole images",
            (fol.Detections,),
            required=False,
        )
        if not form.get("patches_field") and form.get("embeddings_field"):
            form.check("embeddings_field", new=True)
        form.inputs.str(
            "brain_key",
            required=False,
            label="Similarity index",
            description="Optional: a name, for sorting by similarity in the App",
        )
        key = form.get("brain_key")
        if key and not key.isidentifier():
            form.wrong("brain_key", f"{key!r} cannot be a name here; use letters, digits and _")
        form.again()
        form.workers()

    def start(self, ctx: Any, samples: Any) -> Steps:
        """Embeds the samples."""
        p = ctx.params
        return compute_embeddings(
            samples,
            embeddings_field=p.get("embeddings_field") or "esam3_embedding",
            patches_field=p.get("patches_field") or None,
            brain_key=p.get("brain_key") or None,
            model=chosen_model(ctx),
            again=bool(p.get("again")),
            num_workers=workers(ctx),
        )

    def say(self, summary: Summary) -> str:
        """What was computed."""
        index = f", index {summary['brain_key']}" if summary["brain_key"] else ""
        return f"{counted(summary)}. Vectors are in {summary['field']}{index}"

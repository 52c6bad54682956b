"""evaluate: mask mAP and cgF1 of a field against another one."""

from __future__ import annotations

from typing import Any

import fiftyone.core.labels as fol

from ..assess import evaluate
from ..runs import Steps, Summary
from .form import Form
from .task import Task

UNITS = {"IL_MCC": "{:.2f}"}


class Evaluate(Task):
    """How good a field's masks are."""

    NAME = "evaluate"
    LABEL = "EfficientSAM3: evaluate masks"
    ABOUT = "Compares a field with the truth: mask mAP by FiftyOne, and SA-Co's cgF1"
    ICON = "query_stats"

    def ask(self, form: Form) -> None:
        """Two fields and a key."""
        kinds = (fol.Detections,)
        form.field("field", "Predictions", "Detections with masks", kinds)
        form.field("truth", "Truth", "Detections with masks", kinds)
        if form.get("field") and form.get("field") == form.get("truth"):
            form.wrong("truth", "this is the field with the predictions; choose the true one")
        form.inputs.str(
            "eval_key",
            default="esam3_eval",
            required=False,
            label="Key",
            description="FiftyOne keeps true and false positives of each label under it",
        )
        form.threshold()

    def start(self, ctx: Any, samples: Any) -> Steps:
        """Compares the fields."""
        p = ctx.params
        return evaluate(
            samples,
            p["field"],
            p["truth"],
            eval_key=p.get("eval_key", "esam3_eval") or None,
            threshold=float(p.get("threshold", 0.5)),
        )

    def say(self, summary: Summary) -> str:
        """The figures."""

        def figure(name: str) -> str:
            value = summary[name]
            return f"{name} " + ("-" if value is None else UNITS.get(name, "{:.1f}").format(value))

        names = ("mAP", "precision", "recall", "cgF1", "pmF1", "IL_MCC")
        return f"{summary['samples']} samples: {', '.join(map(figure, names))}"

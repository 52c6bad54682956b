"""The operators that manage runs: undo one, or cancel those that are going."""

from __future__ import annotations

from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from efficientsam3 import EfficientSam3Error

from ..runs.field_lock import cancel_runs, running_fields
from ..runs.steps import RunError, Step, Steps, Summary, finish
from ..runs.undo import list_runs, undo_run
from .base import CANCEL, RunOperator, is_app, one_sentence
from .form import Form


class UndoRun(RunOperator):
    """Remove the labels of a run, and restore what it replaced."""

    NAME = "undo_run"
    LABEL = "EfficientSAM3: undo a run"
    DESCRIPTION = (
        "Removes the labels that a run wrote and that nobody changed since, on the whole dataset, "
        "and restores the labels that it replaced"
    )
    ICON = "undo"
    RUN = staticmethod(undo_run)

    def fill(self, form: Form) -> None:
        """Ask for the run.

        Args:
            form: the form.
        """
        runs = list_runs(form.ctx.dataset)
        if not runs:
            form.refuse("no run of this plugin has written labels to this dataset")
            return
        form.options("run_key", "Run", "The latest is first", runs)

    def arguments(self, ctx: Any) -> dict[str, Any]:
        """The arguments of the run: by default the latest one is undone.

        Args:
            ctx: FiftyOne's execution context.
        """
        latest = next(iter(list_runs(ctx.dataset)), "")
        return {"run_key": latest, **super().arguments(ctx)}

    def describe(self, summary: Summary) -> str:
        """Describe what was removed, spared and restored.

        Args:
            summary: the summary of the run.
        """
        text = f"{summary['removed']} labels of the run are removed from {summary['field']}"
        if summary["spared"]:
            text += f"; {summary['spared']} stay, because people changed them"
        if summary["restored"]:
            text += f"; {summary['restored']} that the run had replaced are restored"
        return text


def cancel(samples: Any, field: str | None = None) -> Steps:
    """End the runs that are writing to the dataset; see ``cancel_runs``.

    Args:
        samples: the dataset, or a view of it.
        field: the field of a run. None: all runs.

    Raises:
        RunError: there is no such run.
    """
    fields = cancel_runs(samples._root_dataset, field)
    if not fields:
        raise RunError("no run is writing to this dataset" + (f" in {field!r}" if field else ""))
    yield Step(1, 1)
    return {"fields": fields}


class CancelRuns(RunOperator):
    """End runs that are going, in any tab or process."""

    NAME = CANCEL
    LABEL = "EfficientSAM3: cancel runs"
    DESCRIPTION = "Ends the runs that are writing to this dataset; what they have done stays"
    ICON = "cancel"
    RUN = staticmethod(cancel)

    @property
    def config(self) -> foo.OperatorConfig:
        """How FiftyOne shows and executes the operator: it ends at once, without progress."""
        config = super().config
        config.execute_as_generator = False
        return config

    def execute(self, ctx: Any) -> Any:
        """End the runs.

        Args:
            ctx: FiftyOne's execution context.

        Returns:
            the fields of the runs, and the message that the App shows.

        Raises:
            EfficientSam3Error: there is no run, and it is not the App that executes it.
        """
        if not is_app(ctx):
            return super().execute(ctx)
        try:
            with one_sentence(self.LABEL):
                summary = finish(self._start(ctx))
        except EfficientSam3Error as error:
            ctx.ops.notify(f"{self.LABEL}: {error}", variant="warning")
            return {}
        message = self.describe(summary)
        ctx.ops.notify(message, variant="info")
        return {**summary, "message": message}

    def fill(self, form: Form) -> None:
        """Offer the runs that are going.

        Args:
            form: the form.
        """
        running = running_fields(form.ctx.dataset)
        if not running:  # an error of the form would hide the one of the operator
            form.inputs.view("none", types.Notice(label="No run is writing to this dataset."))
            return
        known = list_runs(form.ctx.dataset)
        labels = {field: known.get(key, field) for field, key in running.items()}
        form.options("field", "Run", "The run that is to end", labels)

    def describe(self, summary: Summary) -> str:
        """Give the fields of the runs.

        Args:
            summary: the summary of the run.
        """
        return f"the runs on {', '.join(summary['fields'])} end after the images in hand"

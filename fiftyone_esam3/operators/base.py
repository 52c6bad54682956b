"""The base class of the operators: where they work, their progress, and their result."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import fiftyone.operators as foo
from fiftyone.operators import types

from efficientsam3 import EfficientSam3Error

from ..labels import ERROR_FIELD, describe_error
from ..runs.steps import RunError, Step, Steps, Summary, finish
from .form import CLASS_PHRASES, CLASSES, Form
from .models import default_model
from .texts import add_classes, split_phrases
from .values import EMPTY, check_complete, check_values

logger = logging.getLogger(__name__)

CANCEL = "cancel_runs"
"""The name of the operator that ends runs."""

HOW_TO_CANCEL = "to end it, run 'EfficientSAM3: cancel runs'"
"""What the progress of a scheduled run says; FiftyOne's page of runs has no button for it."""


class RunOperator(foo.Operator):
    """An operator that does one run on the dataset, the view or the selection.

    A subclass names its run and fills the form. A field of the form has the name of the run's
    argument that it sets.
    """

    NAME: ClassVar[str]
    LABEL: ClassVar[str]
    DESCRIPTION: ClassVar[str]
    ICON: ClassVar[str]
    RUN: ClassVar[Callable[..., Steps]]

    @property
    def config(self) -> foo.OperatorConfig:
        """How FiftyOne shows and executes the operator."""
        return foo.OperatorConfig(
            name=self.NAME,
            label=self.LABEL,
            description=self.DESCRIPTION,
            icon=self.ICON,
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def fill(self, form: Form) -> None:
        """Add the fields to the form.

        Args:
            form: the form.
        """
        raise NotImplementedError

    def describe(self, summary: Summary) -> str:
        """Describe the result of a run in one sentence.

        Args:
            summary: the summary of the run.
        """
        return f"{describe_counts(summary)}. {describe_instances(summary)}"

    def arguments(self, ctx: Any) -> dict[str, Any]:
        """The arguments of the run, from the values of the form.

        Args:
            ctx: FiftyOne's execution context.
        """
        parameters = inspect.signature(self.RUN).parameters.values()
        known = {p.name for p in parameters if p.kind != p.VAR_KEYWORD} - {"samples"}
        values = {k: v for k, v in ctx.params.items() if k in known and v not in EMPTY}
        if "concepts" in known:
            phrases = split_phrases(values.pop("concepts", []))
            chosen = [str(name) for name in ctx.params.get(CLASSES) or []]
            named = list(dict.fromkeys([*phrases, *chosen]))
            if found := add_classes(named, ctx.params.get(CLASS_PHRASES)):
                values["concepts"] = found
        if "model" in known:
            values.setdefault("model", default_model())
        return values

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form.

        Args:
            ctx: FiftyOne's execution context.
        """
        form = Form(ctx, self.LABEL, self.DESCRIPTION)
        try:
            with one_sentence(self.LABEL):
                check_values(type(self).RUN, ctx.params)
                self.fill(form)
        except EfficientSam3Error as error:
            form.refuse(error)
        return form.property()

    def execute(self, ctx: Any) -> Any:
        """Do the run.

        FiftyOne drops the values of a generator unless the App executes the operator, so the two
        cases have to be told apart.

        Args:
            ctx: FiftyOne's execution context.

        Returns:
            a generator of messages for the App; otherwise the summary of the run.

        Raises:
            EfficientSam3Error: the run cannot be done.
        """
        if is_app(ctx):
            return self._messages(ctx)

        def report(step: Step) -> None:
            label = _progress_label(step, HOW_TO_CANCEL if ctx.delegated else "")
            ctx.set_progress(progress=_share(step), label=label)

        with one_sentence(self.LABEL):
            summary = finish(self._start(ctx), report)
            message = self.describe(summary)
            ctx.set_progress(progress=1.0, label=message)
        return {**summary, "message": message}

    def _start(self, ctx: Any) -> Steps:
        run = type(self).RUN
        check_values(run, ctx.params)
        arguments = self.arguments(ctx)
        check_complete(run, arguments)
        return run(ctx.target_view(require_flat=True), **arguments)

    def _messages(self, ctx: Any) -> Iterator[Any]:
        try:
            with one_sentence(self.LABEL):
                summary: Summary = {}
                steps = self._start(ctx)
                while True:
                    try:
                        step = next(steps)
                    except StopIteration as end:
                        summary = end.value
                        break
                    yield self._show(ctx, step)
                message = self.describe(summary)
        except EfficientSam3Error as error:
            yield ctx.ops.notify(f"{self.LABEL}: {error}", variant="error")
            return
        yield ctx.ops.set_progress(progress=1.0, label=message)
        yield ctx.ops.reload_dataset()
        variant = "warning" if summary.get("failed") or summary.get("cancelled") else "success"
        yield ctx.ops.notify(message, variant=variant)

    def _show(self, ctx: Any, step: Step) -> Any:
        """The message that shows a step in the App's dialog, with a button that ends the run.

        The dialog opens again when it is closed, so that the button has to be in it.
        """
        share, label = _share(step), _progress_label(step)
        if not step.field:
            return ctx.ops.set_progress(progress=share, label=label)
        shown = types.Object()
        view = types.ProgressView(label=label)
        shown.define_property("progress", types.Number(), view=view)
        shown.btn(
            CANCEL,
            "Cancel: keep what is done",
            variant="outlined",
            on_click=f"{self.plugin_name}/{CANCEL}",
            params={"field": step.field},
        )
        return ctx.ops.show_output(types.Property(shown).to_json(), {"progress": share})

    def resolve_placement(self, ctx: Any) -> Any:
        """None: the operator is in the operator browser, without a button.

        Args:
            ctx: FiftyOne's execution context.
        """
        return None


def is_app(ctx: Any) -> bool:
    """Whether the App executes an operator, at once.

    FiftyOne 1.22 has no clean way to know: ``ctx.prompt_id`` is sent for the form only, not for
    the execution. The App always sends ``filters``; the SDK does not.

    Args:
        ctx: FiftyOne's execution context.
    """
    return "filters" in ctx.request_params and not ctx.delegated


@contextmanager
def one_sentence(label: str) -> Iterator[None]:
    """Turn an unexpected error into one sentence; the log has its traceback at level DEBUG.

    Args:
        label: The name of the operator, for the log.

    Raises:
        RunError: an error of another kind occurred; the message names it.
    """
    try:
        yield
    except (EfficientSam3Error, GeneratorExit):
        raise
    except Exception as error:
        message = describe_error(error)
        logger.error("%s: %s", label, message)
        logger.debug("the traceback of this error", exc_info=True)
        raise RunError(f"{message} (the log has the details at level DEBUG)") from None


def _share(step: Step) -> float:
    return step.done / max(step.total, 1)


def _progress_label(step: Step, way_out: str = "") -> str:
    """What is done, what is going on and, for a run that can be cancelled, how."""
    count = f"{step.done} of {step.total}"
    label = f"{count}: {step.note}" if step.note else count
    return f"{label} ({way_out})" if way_out and step.field else label


def describe_counts(summary: Summary, unit: str = "samples") -> str:
    """Describe what a run did, as the first part of a sentence.

    Args:
        summary: the summary of the run.
        unit: what the run counts.
    """
    parts = [f"{summary['done']} {unit} in {summary['seconds']:.1f} s"]
    if summary.get("cancelled"):
        left = summary["samples"] - summary["done"] - summary["before"] - summary["failed"]
        parts.append(f"cancelled: {left} are left, and the same request continues")
    if summary["before"]:
        parts.append(f"{summary['before']} were done before")
    if replaced := summary.get("replaced_files"):
        parts.append(f"{replaced} were done again, because their files were replaced")
    if summary["failed"]:
        reasons = ", ".join(f"{n} x {why}" for why, n in summary["reasons"].items())
        parts.append(
            f"{summary['failed']} failed ({reasons}); their field {ERROR_FIELD} holds the reason"
        )
    return "; ".join(parts)


def describe_instances(summary: Summary) -> str:
    """Describe how many instances of which classes a field holds after a run.

    Args:
        summary: the summary of the run.
    """
    counts = summary["instances"]
    kept, left_out = summary.get("kept", 0), summary.get("left_out", 0)
    notes = f"; {kept} labels of people were kept" if kept else ""
    notes += f"; {left_out} new ones overlap labels that are there" if left_out else ""
    if not counts:
        return f"nothing was found for {summary['field']}{notes}"
    return (
        f"{summary['field']} holds {', '.join(f'{n} {name}' for name, n in counts.items())}{notes}"
    )

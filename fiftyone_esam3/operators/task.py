"""What all operators share: where they work, how far they are, what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fiftyone.operators as foo
from fiftyone.operators import types

from efficientsam3 import EfficientSam3Error

from ..runs import Step, Steps, Summary, finish
from .form import Form


class Task(foo.Operator):
    """An operator that works on the dataset, the view or the selection, at once or delegated.

    A subclass has NAME, LABEL, ABOUT and ICON, and says what its form asks and what it starts.
    """

    NAME = LABEL = ABOUT = ICON = ""
    FLAT = True

    @property
    def config(self) -> foo.OperatorConfig:
        """How FiftyOne shows and runs it."""
        return foo.OperatorConfig(
            name=self.NAME,
            label=self.LABEL,
            description=self.ABOUT,
            icon=self.ICON,
            dynamic=True,
            execute_as_generator=True,
            allow_immediate_execution=True,
            allow_delegated_execution=True,
        )

    def ask(self, form: Form) -> None:
        """Adds what is to be filled in to the form."""
        raise NotImplementedError

    def start(self, ctx: Any, samples: Any) -> Steps:
        """The work, with what was filled in."""
        raise NotImplementedError

    def say(self, summary: Summary) -> str:
        """What came of it, as a sentence."""
        raise NotImplementedError

    def resolve_input(self, ctx: Any) -> types.Property:
        """The form."""
        form = Form(ctx, self.LABEL, self.ABOUT)
        form.target(flat=self.FLAT)
        self.ask(form)
        return form.done()

    def execute(self, ctx: Any) -> Any:
        """Does the work.

        Returns:
            for the App a generator that tells it how far the work is; else, because the SDK and
            delegated runs would lose what a generator returns, the summary.
        """
        steps = self.start(ctx, ctx.target_view(require_flat=self.FLAT))
        if not ctx.delegated and "filters" in ctx.request_params:  # as only the App sends them
            return self._stream(ctx, steps)

        def tell(step: Step) -> None:
            ctx.set_progress(progress=step.done / max(step.total, 1), label=_label(step))

        summary = finish(steps, tell)
        ctx.set_progress(progress=1.0, label=self.say(summary))
        return {**summary, "message": self.say(summary)}

    def _stream(self, ctx: Any, steps: Steps) -> Iterator[Any]:
        """Messages to the App."""
        summary: Summary = {}
        try:
            while True:
                step = next(steps)
                done = step.done / max(step.total, 1)
                yield ctx.ops.set_progress(progress=done, label=_label(step))
        except StopIteration as end:
            summary = end.value
        except EfficientSam3Error as error:
            yield ctx.ops.notify(f"{self.LABEL}: {error}", variant="error")
            return
        yield ctx.ops.set_progress(progress=1.0, label=self.say(summary))
        failed = summary.get("failed", 0)
        yield ctx.ops.reload_dataset()
        yield ctx.ops.notify(self.say(summary), variant="warning" if failed else "success")

    def resolve_placement(self, ctx: Any) -> Any:
        """None: it is found in the operator browser, not among the buttons."""
        return None


def _label(step: Step) -> str:
    count = f"{step.done} of {step.total}"
    return f"{count}: {step.note}" if step.note else count


def counted(summary: Summary, unit: str = "samples") -> str:
    """What a run did, as the beginning of a sentence."""
    parts = [f"{summary['done']} {unit} in {summary['seconds']:.1f} s"]
    if summary["before"]:
        parts.append(f"{summary['before']} were done before")
    if summary["failed"]:
        reasons = ", ".join(f"{n} x {why}" for why, n in summary.get("reasons", {}).items())
        parts.append(
            f"{summary['failed']} failed{f' ({reasons})' if reasons else ''}; their field "
            "efficientsam3_error says why"
        )
    return "; ".join(parts)


def found(summary: Summary) -> str:
    """How many instances of which classes the field holds now."""
    counts = summary["instances"]
    if not counts:
        return f"nothing was found for {summary['field']}"
    return f"{summary['field']} holds {', '.join(f'{n} {name}' for name, n in counts.items())}"

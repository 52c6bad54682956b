"""The steps that a run yields, and the error of a run."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from efficientsam3 import EfficientSam3Error


class RunError(EfficientSam3Error, ValueError):
    """A run cannot start or continue as it was requested."""


class Step(NamedTuple):
    """The progress of a run.

    Attributes:
        done: the number of samples that are done.
        total: the number of all samples.
        note: what is going on, for people.
        field: the field that the run writes to, as ``cancel_runs`` names it; "" before it holds it.
    """

    done: int
    total: int
    note: str = ""
    field: str = ""


Summary = dict[str, Any]
Steps = Generator[Step, None, Summary]


def finish(steps: Steps, on_step: Callable[[Step], Any] | None = None) -> Summary:
    """Do all the work of a run.

    Args:
        steps: the run.
        on_step: a function that is called with each step.

    Returns:
        the summary of the run.
    """
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return dict(end.value)
        if on_step is not None:
            on_step(step)

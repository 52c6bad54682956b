"""What an evaluation gives, and how far a running one is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..data.types import Record


@dataclass(frozen=True, eq=False)
class Report:
    """The result of an evaluation of one split.

    Attributes:
        name: Name of the split.
        metrics: Values by name, 0 to 100, but IL_MCC -1 to 1; NaN where not defined.
        counts: Numbers of pairs, instances, predictions, ...
        settings: What the metrics depend on: files, prompt, thresholds, ...
        failed: Images that were left out, and why.
    """

    name: str
    metrics: dict[str, float]
    counts: dict[str, int]
    settings: Record = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> Record:
        """Everything as JSON can hold it: metrics by their names, None where not defined."""
        return _without_nan(self.metrics) | {
            "name": self.name,
            "counts": self.counts,
            "settings": self.settings,
            "failed": self.failed,
        }


def mean_metrics(reports: Sequence[Report]) -> dict[str, float]:
    """The mean of each metric over splits, as SA-Co/Gold's average is taken.

    Args:
        reports: One report a split. Metrics that one of them lacks are left out.
    """
    names = [n for n in reports[0].metrics if all(n in report.metrics for report in reports)]
    return {n: sum(report.metrics[n] for report in reports) / len(reports) for n in names}


def reports_to_dict(reports: Sequence[Report]) -> Record:
    """One report as JSON can hold it; of several their mean, and each under "splits".

    Args:
        reports: One report a split.
    """
    if len(reports) == 1:
        return reports[0].to_dict()
    splits = {report.name: report.to_dict() for report in reports}
    return _without_nan(mean_metrics(reports)) | {"name": "mean", "splits": splits}


def _without_nan(metrics: dict[str, float]) -> Record:
    return {k: None if math.isnan(v) else v for k, v in metrics.items()}


class Progress(NamedTuple):
    """How far a run is, in images, videos, or pairs of a clip and a phrase.

    Attributes:
        done: Finished, by this run and earlier ones.
        total: All there are.
        before: Finished by earlier runs.
        failed: Failed in this run.
        seconds: Time since this run began.
    """

    done: int
    total: int
    before: int
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Finished a second by this run; 0 before the first."""
        new = self.done - self.before
        return new / self.seconds if new and self.seconds > 0 else 0.0

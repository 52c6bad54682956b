"""The operators and the panel of the plugin; the App and the SDK find them by fiftyone.yml."""

from __future__ import annotations

from typing import Any

from .operators.annotation import PrepareAnnotation
from .operators.concepts import SegmentConcepts
from .operators.embeddings import ComputeEmbeddings
from .operators.evaluation import Evaluate
from .operators.prompts import SegmentPrompts
from .operators.similar import FindSimilar
from .operators.tracking import TrackVideo
from .panel import Workbench

OPERATORS = (
    SegmentConcepts,
    SegmentPrompts,
    FindSimilar,
    TrackVideo,
    ComputeEmbeddings,
    Evaluate,
    PrepareAnnotation,
)

PLUGIN = "@efficientsam3/curation"


def register(plugin: Any) -> None:
    """Registers everything with FiftyOne."""
    for operator in OPERATORS:
        plugin.register(operator)
    plugin.register(Workbench)

"""The operators and the panel of the plugin; the App and the SDK find them by fiftyone.yml."""

from __future__ import annotations

from typing import Any

from ..panel import Workbench
from .annotation import PrepareAnnotation
from .concepts import SegmentConcepts
from .embeddings import ComputeEmbeddings
from .evaluation import Evaluate
from .prompts import SegmentPrompts
from .similar import FindSimilar
from .tracking import TrackVideo

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

"""The operators and the panel of the plugin. The App and the SDK find them by fiftyone.yml."""

from __future__ import annotations

from typing import Any

from .operators.curate import ComputeEmbeddings, Evaluate, PrepareAnnotation
from .operators.manage import CancelRuns, UndoRun
from .operators.segment import (
    FindSimilar,
    SegmentConcepts,
    SegmentEverything,
    SegmentPrompts,
)
from .operators.track import TrackObjects, TrackVideo
from .panel.segment_panel import SegmentPanel

PLUGIN = "@efficientsam3/curation"

OPERATORS = (
    SegmentConcepts,
    SegmentEverything,
    SegmentPrompts,
    FindSimilar,
    TrackVideo,
    TrackObjects,
    ComputeEmbeddings,
    Evaluate,
    PrepareAnnotation,
    UndoRun,
    CancelRuns,
)


def register(plugin: Any) -> None:
    """Register everything with FiftyOne.

    Args:
        plugin: FiftyOne's plugin context.
    """
    for part in (*OPERATORS, SegmentPanel):
        plugin.register(part)

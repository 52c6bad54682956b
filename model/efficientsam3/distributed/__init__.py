"""Many images on many machines, by Ray: sources in partitions, workers, shards of results."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .map_batches import Annotator as Annotator
    from .run import AnnotationSummary as AnnotationSummary
    from .run import Progress as Progress
    from .run import annotate as annotate
    from .shards import read_shard as read_shard
    from .shards import schema as schema

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        ".run": "AnnotationSummary Progress annotate",
        ".map_batches": "Annotator",
        ".shards": "read_shard schema",
    },
)

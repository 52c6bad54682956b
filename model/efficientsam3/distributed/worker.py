"""What each worker does: it holds a model, reads images, and writes the shard of a partition.

Nothing here knows of Ray, so that a partition is annotated in the same way in one process.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..concepts import add_written, read_written
from ..errors import EfficientSam3Error, ImageError, PromptError, shorten
from ..evaluate.model_identity import model_identity
from ..io.batches import batched
from .rows import Row, read_rows
from .settings import Work
from .shards import Counts, Record, encode_shard, failed_record, to_coco, to_record
from .sources import Partition
from .stores import write_file
from .videos import track_video

if TYPE_CHECKING:
    from ..predictor import ImageModel
    from ..runtime.model import ExportedModel

READING_THREADS = 4
"""Images that a worker of few cores reads at the same time; stores answer several at once."""

logger = logging.getLogger(__name__)


class TargetError(EfficientSam3Error, RuntimeError):
    """Results cannot be written, so that further work would be lost."""


class Places(NamedTuple):
    """Where the results of a partition go.

    Attributes:
        shard: Path or URI of the Parquet shard.
        coco: Path or URI of the COCO file; None: it is not written.
        run: Digest of what was asked.
        asked: What was asked, for the COCO file.
    """

    shard: str
    coco: str | None
    run: str
    asked: Mapping[str, Any]


class Worker:
    """A model and what it is asked.

    Args:
        work: What is done with each image.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._model: ImageModel | ExportedModel | None = None

    @property
    def model(self) -> ImageModel | ExportedModel:
        """The model, which is loaded when it is first asked for.

        Raises:
            EfficientSam3Error: It cannot be loaded.
        """
        if self._model is None:
            from ..loading import load

            self._model = load(self._work.model, **self._work.load)
        return self._model

    def prepare(self) -> dict[str, Any]:
        """Load the model.

        Returns:
            What identifies it, which must be equal for all workers of a run.

        Raises:
            EfficientSam3Error: It cannot be loaded.
        """
        os.environ["OMP_NUM_THREADS"] = str(self._work.cpus)
        model = self.model
        model.require("concepts")
        if "torch" in str(type(getattr(model, "device", ""))):
            import torch

            torch.set_num_threads(self._work.cpus)
        return model_identity(model)  # type: ignore[arg-type]

    def annotate(self, partition: Partition, places: Places) -> Counts:
        """Annotate the images or the video of a partition, and write its files; the shard last.

        Args:
            partition: The partition.
            places: Where its files go.

        Returns:
            What the shard holds.

        Raises:
            EfficientSam3Error: The partition cannot be read at all.
            OSError: The same.
            TargetError: A file cannot be written.
        """
        if partition.kind == "video":
            work = self._work
            records = list(track_video(self.model, partition.file, work.arguments, work.tracking))
        else:
            records = self._annotate_images(partition)
        content, counts = encode_shard(records, places.run)
        try:
            if places.coco is not None:
                write_file(places.coco, to_coco(records, partition.number, places.asked))
            write_file(places.shard, content)
        except OSError as error:
            raise TargetError(
                f"{places.shard} cannot be written: {error}. {_way_out(error)} and run the same "
                "command, which continues"
            ) from error
        return counts

    def _annotate_images(self, partition: Partition) -> list[Record]:
        step = self.images_together
        rows = read_rows(partition, 2 * step, max(READING_THREADS, self._work.cpus))
        return [record for some in batched(rows, step) for record in self.annotate_rows(some)]

    @property
    def images_together(self) -> int:
        """Images that are encoded together."""
        if self._work.batch_size is not None:
            return self._work.batch_size
        return 4 if str(self.model.device).startswith("cpu") else 16

    def annotate_rows(self, rows: Sequence[Row]) -> list[Record]:
        """Annotate some images together.

        Args:
            rows: Images, or why there is none.

        Returns:
            The rows of the shard, in the same order.
        """
        records: list[Record | None] = [None] * len(rows)
        groups: dict[str, list[int]] = {}
        asked: dict[str, dict[str, Any]] = {}
        for i, row in enumerate(rows):
            try:
                if row.image is None:
                    raise ImageError(row.error or "there is no image")
                arguments = self._arguments(row)
            except (ImageError, PromptError) as error:
                records[i] = failed_record(row.key, row.path, str(error))
                continue
            name = repr(arguments.get("concepts"))
            asked[name] = arguments
            groups.setdefault(name, []).append(i)
        for name, members in groups.items():
            made = self._segment([rows[i] for i in members], asked[name])
            for i, record in zip(members, made, strict=True):
                records[i] = record
        return [record for record in records if record is not None]

    def _arguments(self, row: Row) -> dict[str, Any]:
        arguments = dict(self._work.arguments)
        if "concepts" not in arguments:
            arguments["concepts"] = read_row_concepts(row.concepts)
        return arguments

    def _segment(self, rows: Sequence[Row], arguments: Mapping[str, Any]) -> list[Record]:
        """Segment images of the same concepts; one by one where that fails together."""
        images = [row.image for row in rows]
        try:
            found = self.model.segment(images, batch_size=self.images_together, **arguments)
        except (EfficientSam3Error, MemoryError) as error:
            if len(rows) > 1:
                return [record for row in rows for record in self._segment([row], arguments)]
            reason = str(error) or type(error).__name__
            return [failed_record(rows[0].key, rows[0].path, reason)]
        return [to_record(row.key, row.path, one) for row, one in zip(rows, found, strict=True)]


def _way_out(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Make room"
    return "Make the target writable from all machines"


def read_row_concepts(value: Any) -> list[str] | dict[str, list[str]]:
    """Read the concepts of a row, by the rules of `--concept`.

    Args:
        value: A text, "class=phrase,phrase" among them, or a list of such.

    Returns:
        Phrases, or phrases by class where there are classes.

    Raises:
        PromptError: There is none, or one is wrong.
    """
    if value is None or value == []:
        raise PromptError("the row has no concepts: its value is missing")
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise PromptError(f"concepts of a row are a text or a list of texts; got {shorten(value)}")
    classes: dict[str, list[str]] = {}
    for one in values:
        add_written(classes, one)
    return read_written(classes)

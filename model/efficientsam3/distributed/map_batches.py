"""A step of a Ray Data pipeline of your own, which adds annotations to the rows of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..concepts import Concepts
from ..errors import ImageError
from ..io.samples import read_rgb_array
from .rows import Row, read_content, read_place
from .settings import Work
from .shards import schema
from .stores import import_pyarrow
from .worker import Worker


class Annotator:
    """A class for ``ray.data.Dataset.map_batches``, which holds a model.

    ``annotate`` writes each image once, also after failures. This class leaves that to the
    pipeline that it is a part of.

    Args:
        model: A name of ``list_models()``, or the folder of a saved model, on all machines.
        concepts: As ``ImageModel.segment`` takes them.
        image_column: Column with images: bytes, paths, or arrays (H, W, 3) uint8 RGB.
        keep: Further columns that the result has.
        load: Further arguments of ``efficientsam3.load``.
        cpus: Cores of a worker.
        batch_size: Images that are encoded together; None: 4 on a CPU, 16 elsewhere.
        **arguments: Further arguments of ``ImageModel.segment``.
    """

    def __init__(
        self,
        model: str,
        concepts: Concepts,
        *,
        image_column: str = "image",
        keep: Sequence[str] = (),
        load: Mapping[str, Any] | None = None,
        cpus: int = 1,
        batch_size: int | None = None,
        **arguments: Any,
    ) -> None:
        self._column, self._keep = image_column, list(keep)
        arguments["concepts"] = concepts
        self._worker = Worker(Work(model, dict(load or {}), arguments, batch_size, cpus))
        self._worker.prepare()

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        """Annotate a batch of rows.

        Args:
            batch: Columns as numpy arrays, as ``map_batches`` gives them.

        Returns:
            An Arrow table with the columns of a shard, and those of ``keep``.
        """
        arrow = import_pyarrow("")
        rows = [_read(f"row {i}", value) for i, value in enumerate(batch[self._column])]
        step = self._worker.images_together
        records = []
        for start in range(0, len(rows), step):
            records += self._worker.annotate_rows(rows[start : start + step])
        table = arrow.Table.from_pylist(records, schema())
        for name in self._keep:
            values = arrow.array(list(batch[name]))
            at = table.schema.get_field_index(name)
            if at < 0:
                table = table.append_column(name, values)
            else:
                table = table.set_column(at, name, values)
        return table


def _read(key: str, value: Any) -> Row:
    row = Row(key)
    try:
        if isinstance(value, (str, Path)):
            row.key = row.path = str(value)
            row.image = read_place(str(value))
        elif isinstance(value, bytes):
            row.image = read_content(value, key)
        elif value is None:
            row.error = "the row has no image: its value is missing"
        else:
            row.image = read_rgb_array(value)
    except (ImageError, OSError) as error:
        row.error = str(error)
    return row

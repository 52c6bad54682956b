"""Keep the labels that a run replaces, so that the run can be undone.

For each field, one earlier state is kept: when a run replaces labels, what an earlier run kept for
the same field is dropped. So the store takes at most as much space as the field itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fiftyone.core.labels as fol
from fiftyone.operators.store import ExecutionStore

STORE = "efficientsam3_replaced"


class ReplacedLabels:
    """The labels that a run replaced in a field of a dataset, by sample or frame.

    Args:
        dataset: the dataset.
        field: the field, with ``frames.`` for a field of frames.
        run: the key of the run.
    """

    def __init__(self, dataset: Any, field: str, run: str) -> None:
        self._store = ExecutionStore.create(STORE, dataset_id=dataset._doc.id)
        self._field, self._run = f"{field} ", f"{field} {run} "
        self._is_alone = False

    def keep(self, id: str, record: str | None, labels: Sequence[fol.Detection]) -> None:
        """Keep the labels of one sample, unless the run has kept some before.

        Args:
            id: of the sample or the frame.
            record: the record of the labels before, see ``LabelRecord``.
            labels: the labels that are replaced.
        """
        if not self._is_alone:
            self._drop_others()
        stored = fol.Detections(detections=list(labels)).to_json()
        self._store.set_if_absent(self._run + id, {"record": record, "labels": stored})

    def _drop_others(self) -> None:
        for key in self._store.list_keys():
            if key.startswith(self._field) and not key.startswith(self._run):
                self._store.delete(key)
        self._is_alone = True

    def get(self, id: str) -> tuple[str | None, list[fol.Detection]] | None:
        """The record and the labels that were kept of a sample or frame, or None.

        Args:
            id: of the sample or the frame.
        """
        held = self._store.get(self._run + id)
        if held is None:
            return None
        return held["record"], list(fol.Detections.from_json(held["labels"]).detections)

    def drop(self) -> None:
        """Forget all of the run."""
        for key in self._store.list_keys():
            if key.startswith(self._run):
                self._store.delete(key)

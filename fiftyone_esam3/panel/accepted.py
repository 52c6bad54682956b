"""Write what a person accepts in the panel as labels of a run, and take exactly that back.

What is accepted in a field on one day is one run, which ``undo_run`` can undo. Each *Accept* is an
answer of this run, so that the panel can take it back alone, also in another session.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import uuid4

import fiftyone.core.labels as fol

from ..ownership.merge import ADD, Found, Writing, merge_labels
from ..ownership.record import LabelRecord, machine_attributes
from ..ownership.schema import declare_presence
from ..ownership.take_back import TakenBack, take_back
from ..runs.field_lock import FieldLock
from ..runs.run import ACCEPTED, Run


@dataclass(frozen=True)
class Accepted:
    """Labels that were added to a sample.

    Attributes:
        sample: the id of the sample.
        field: the field.
        run: the key of the run.
        source: the name of the answer in the record of the labels.
    """

    sample: str
    field: str
    run: str
    source: str


def accept_labels(dataset: Any, sample_id: str, field: str, labels: fol.Detections) -> Accepted:
    """Add labels to those that a sample has, and save it.

    All of them are added: a person has chosen them, also where they overlap others.

    Args:
        dataset: the dataset.
        sample_id: the id of the sample.
        field: the field; it is made if it does not exist.
        labels: the labels to add.

    Returns:
        what :func:`take_accepted_back` needs.

    Raises:
        RunError: a run is writing to the field.
    """
    today = datetime.now().astimezone().date().isoformat()
    run = Run(dataset, field, {ACCEPTED: today}, 1)
    accepted = Accepted(sample_id, field, run.key, f"accepted {uuid4().hex[:12]}")
    with run:
        run.begin(1)
        sample = _read(dataset, sample_id)
        held = sample[field] if sample.has_field(field) else None
        found = Found(
            {accepted.source: list(labels.detections)}, dict(labels["concept_presence"] or {})
        )
        how = Writing(field, run.key, ADD, math.inf, machine_attributes(dataset), is_chosen=True)
        sample[field] = merge_labels(held, found, {accepted.source: ""}, how).labels
        sample.save()
        declare_presence(dataset, field)
    return accepted


def find_accepted(sample: Any, field: str) -> Accepted | None:
    """The labels of a field that were accepted last, in this session or an earlier one.

    Args:
        sample: the sample.
        field: the field.

    Returns:
        None where nothing that was accepted is left.
    """
    record = LabelRecord.read(sample[field] if sample.has_field(field) else None)
    chosen = [] if record is None else record.chosen()
    return Accepted(sample.id, field, chosen[-1].run, chosen[-1].source) if chosen else None


def take_accepted_back(dataset: Any, accepted: Accepted) -> TakenBack:
    """Remove labels that were accepted, but no other ones, and none that was changed since.

    Args:
        dataset: the dataset.
        accepted: the labels.

    Raises:
        RunError: a run is writing to the field.
    """
    field = accepted.field
    lock = FieldLock(dataset, field, accepted.run)
    try:
        sample = _read(dataset, accepted.sample)
        held = sample[field] if sample.has_field(field) else None
        if held is None:
            return TakenBack(None, 0, 0, 0)
        ignored = machine_attributes(dataset)
        taken = take_back(held, accepted.run, None, field, ignored, accepted.source)
        sample[field] = taken.labels
        sample.save()
    finally:
        lock.release()
    return taken


def _read(dataset: Any, sample_id: str) -> Any:
    sample = dataset[sample_id]
    sample.reload()  # other processes may have changed it
    return sample

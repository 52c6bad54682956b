"""Take the labels of one run back, or those of one of its answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import fiftyone.core.labels as fol

from .merge import RUN_ATTRIBUTE, with_detections
from .record import RECORD_ATTRIBUTE, LabelRecord, unchanged


@dataclass
class TakenBack:
    """Labels without those of a run.

    Attributes:
        labels: the new value of the field.
        removed: the number of labels that are removed.
        spared: the number of labels of the run that a person changed, and that stay.
        restored: the number of labels that the run had replaced, and that are there again.
    """

    labels: fol.Detections | None
    removed: int
    spared: int
    restored: int


def take_back(
    held: fol.Detections,
    run: str,
    before: tuple[str | None, Sequence[fol.Detection]] | None,
    field: str,
    ignored: Collection[str] = (),
    source: str | None = None,
) -> TakenBack:
    """Remove the labels of a run, and restore those that it replaced.

    Labels that a person changed stay, and so do labels of people and of other runs.

    Args:
        held: the labels that the field holds.
        run: the key of the run.
        before: the record and the labels that ``ReplacedLabels`` kept, or None.
        field: the name of the field.
        ignored: see ``machine_attributes``.
        source: the answer whose labels are taken back. None: all answers of the run.
    """
    record = LabelRecord.read(held) or LabelRecord()
    meant = [one for one in record.answers.values() if source in (None, one.source)]
    own = {id for one in meant for id, written in one.labels.items() if written.run == run}
    same = unchanged(held.detections, record, field, ignored) & own
    staying = [label for label in held.detections if label.id not in same]
    restored: list[fol.Detection] = []
    earlier = LabelRecord(answers={})
    if before is not None:
        text, labels = before
        there = {label.id for label in staying}
        restored = [label for label in labels if label.id not in there]
        # Without a record there were labels of people, which were overwritten.
        kept = LabelRecord.read({RECORD_ATTRIBUTE: text})
        earlier = kept or LabelRecord(made=False, was_none=False)
        record.made, record.was_none = earlier.made, earlier.was_none
    answers, gone = {}, []
    for name, answer in {**earlier.answers, **record.answers}.items():
        if answer.run == run and source in (None, name):
            if name not in earlier.answers:
                gone += answer.presence_keys()
                continue
            answer = earlier.answers[name]
        answer.labels = {
            id: w
            for id, w in answer.labels.items()
            if id not in own and (source is not None or w.run != run)
        }
        answers[name] = answer
    record.answers = answers
    stays = {key for answer in answers.values() for key in answer.presence_keys()}
    known = dict(getattr(held, "concept_presence", None) or {})
    presence = {key: value for key, value in known.items() if key in stays or key not in gone}
    new = with_detections(held, [*staying, *restored])
    new["concept_presence"] = presence
    runs = [answer.run for answer in answers.values()]
    new[RUN_ATTRIBUTE] = runs[-1] if runs else None
    new[RECORD_ATTRIBUTE] = record.text() if answers else None
    is_empty = not new.detections and not answers and record.was_none
    return TakenBack(
        labels=None if is_empty else new,
        removed=len(same),
        spared=sum(label.id in own for label in staying),
        restored=len(restored),
    )

"""How new labels join those that a field holds: *refuse*, *add*, *replace* or *overwrite*.

A label is a run's own while it is as the run wrote it. Every other label is a person's: one that
no run wrote, and one that was edited or tagged since.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.labels as fol

from efficientsam3 import EfficientSam3Error
from efficientsam3.errors import ArgumentError

from .overlap import label_iou, overlapping
from .record import RECORD_ATTRIBUTE, Answer, Box, LabelRecord, label_id, unchanged, write_down

REFUSE, ADD, REPLACE, OVERWRITE = EXISTING = ("refuse", "add", "replace", "overwrite")
"""The values of the argument ``existing`` of everything that writes labels."""

MEANINGS = {
    REFUSE: "Refuse where people's labels are",
    ADD: "Add: keep all labels, append what overlaps none",
    REPLACE: "Replace only unchanged labels of earlier runs",
    OVERWRITE: "Overwrite all labels",
}

OVERLAP = 0.5
"""The IoU from which a new label counts as one that is already there."""

RUN_ATTRIBUTE = "run"
"""The attribute of ``Detections`` that holds the key of the last run that wrote to them."""


class ExistingLabelsError(EfficientSam3Error, ValueError):
    """A field holds labels of people, and nothing says what is to be done with them."""


def check_existing(existing: str, overlap: float = OVERLAP) -> None:
    """Check the arguments that say what happens to labels that a field holds.

    Args:
        existing: one of ``EXISTING``.
        overlap: an IoU in [0, 1].

    Raises:
        ArgumentError: a value is not allowed.
    """
    if existing not in EXISTING:
        raise ArgumentError(
            f"existing is {existing!r}; it can be {', '.join(map(repr, EXISTING[:-1]))} or "
            f"{EXISTING[-1]!r}"
        )
    if not isinstance(overlap, (int, float)) or not 0 <= overlap <= 1:
        raise ArgumentError(f"overlap is {overlap!r}; it is an IoU between 0 and 1")


@dataclass(frozen=True)
class Writing:
    """How a run writes its labels.

    Attributes:
        field: the name of the field, without ``frames.``.
        run: the key of the run.
        existing: one of ``EXISTING``.
        overlap: the IoU from which a new label counts as one that is already there. Above 1, none
            does.
        ignored: attributes that are no edits, see ``machine_attributes``.
        is_chosen: see ``Answer``.
    """

    field: str
    run: str
    existing: str = REFUSE
    overlap: float = OVERLAP
    ignored: frozenset[str] = frozenset()
    is_chosen: bool = False


@dataclass
class Found:
    """What a model found in one image or frame.

    Attributes:
        labels: the labels of each question that was asked, by source. A question without a result
            has an empty list.
        presence: what ``concept_presence`` gets.
    """

    labels: dict[str, list[fol.Detection]] = field(default_factory=dict)
    presence: dict[str, float] = field(default_factory=dict)


@dataclass
class Merged:
    """Labels to be written, and what became of those before.

    Attributes:
        labels: the new value of the field.
        replaced: the number of labels that are not there any more.
        restorable: those of them that this run did not write itself.
        kept: the number of labels of people that stay.
        added: the number of new labels.
        left_out: the number of new labels that overlap others.
    """

    labels: fol.Detections
    replaced: int
    restorable: list[fol.Detection]
    kept: int
    added: int
    left_out: int


def group_by_class(labels: fol.Detections, asked: Collection[str]) -> Found:
    """What was found, where the question is the class.

    Args:
        labels: the labels, with ``concept_presence``.
        asked: the classes that were asked for.
    """
    found = Found(
        {name: [] for name in asked}, dict(getattr(labels, "concept_presence", None) or {})
    )
    for label in labels.detections:
        found.labels.setdefault(label.label, []).append(label)
    return found


def list_unanswered(
    held: Any,
    questions: Mapping[str, str],
    how: Writing,
    restart: bool = False,
    is_replaced: Callable[[str], bool] = lambda _: False,
) -> list[str]:
    """The questions that are still to be asked of an image.

    Args:
        held: the labels that the field holds, also in the form in which the database holds them.
        questions: the settings of each question, by source.
        how: how labels are written.
        restart: ask everything again.
        is_replaced: whether the file differs from the one with a mark.

    Returns:
        the sources.
    """
    record = LabelRecord.read(held)
    if restart or record is None:
        return list(questions)
    if how.existing == OVERWRITE and set(record.answers) != set(questions):
        return list(questions)
    missing = set(record.missing(questions))
    return [s for s in questions if s in missing or is_replaced(record.answers[s].file)]


def count_peoples(held: Any, how: Writing) -> int:
    """The number of labels of people.

    Args:
        held: the labels that a field holds, also in the form in which the database holds them.
        how: how labels are written.
    """
    labels = _labels(held)
    if not labels:
        return 0
    return len(labels) - len(unchanged(labels, LabelRecord.read(held), how.field, how.ignored))


def list_staying(held: Any, asked: Collection[str], how: Writing) -> list[Any]:
    """The labels that stay when some questions are answered anew.

    Args:
        held: the labels that a field holds, also in the form in which the database holds them.
        asked: the sources of the questions.
        how: how labels are written.
    """
    labels = _labels(held)
    if how.existing == OVERWRITE:
        return []
    record = LabelRecord.read(held)
    if how.existing == ADD or record is None:
        return labels
    answers = [record.answers[s] for s in asked if s in record.answers]
    candidates = {id for answer in answers for id in answer.labels}
    going = [label for label in labels if label_id(label) in candidates]
    gone = unchanged(going, record, how.field, how.ignored)
    return [label for label in labels if label_id(label) not in gone]


def count_at_stake(held: Any, asked: Collection[str] | None, how: Writing) -> int:
    """The number of labels of people because of which *refuse* refuses.

    Where runs made the labels, a new question only appends, so that people's changes do not
    matter.

    Args:
        held: the labels that a field holds, also in the form in which the database holds them.
        asked: the sources of the questions that are asked. None: they are not known.
        how: how labels are written.
    """
    if how.existing != REFUSE:
        return 0
    record = LabelRecord.read(held)
    is_new = asked is not None and record is not None and not set(asked) & set(record.answers)
    if record is not None and record.made and is_new:
        return 0
    return count_peoples(held, how)


def describe_refusal(field: str, labels: int, samples: int, unit: str = "samples") -> str:
    """The message of an :class:`ExistingLabelsError`.

    Args:
        field: the name of the field.
        labels: the number of labels of people.
        samples: the number of samples that have them.
        unit: what has the labels, in the plural.
    """
    return (
        f"{field!r} holds {labels} labels in {samples} {unit} that people made or changed; name "
        f"another field, or choose what happens to them: existing={ADD!r} keeps all labels and "
        f"appends what overlaps none, {REPLACE!r} replaces only labels of earlier runs that nobody "
        f"changed, {OVERWRITE!r} replaces all"
    )


def merge_labels(
    held: fol.Detections | None,
    found: Found,
    settings: Mapping[str, str],
    how: Writing,
    file: str = "",
) -> Merged:
    """Join new labels with those that a field holds.

    Labels of people are only replaced by the policy *overwrite*. *refuse* acts like *replace* here:
    a run checks with :func:`count_at_stake` before it begins, and what a person changes during the
    run is kept.

    Args:
        held: the labels that the field holds. They are not changed.
        found: the new labels.
        settings: the settings of each question that was asked, by source.
        how: how labels are written.
        file: the mark of the file that was asked about.

    Returns:
        the labels with their record.
    """
    labels = _labels(held)
    record = LabelRecord.read(held)
    written = {} if record is None else record.written()
    rewritten = {id for id, one in written.items() if one.run == how.run}
    own = unchanged(labels, record, how.field, how.ignored)
    earlier = {} if record is None else dict(record.answers)
    if how.existing == OVERWRITE:
        earlier = {}
    kept = list_staying(held, found.labels, how)
    chosen = {id for one in (record.chosen() if record else ()) for id in one.labels}
    settled = chosen | {d.id for d in kept if d.id not in own}
    obstacles = kept if how.existing == ADD else [d for d in kept if d.id in settled]
    known = dict(getattr(held, "concept_presence", None) or {})
    new = Answered(how, {label.id for label in labels}, {label.id for label in kept})
    added: list[fol.Detection] = []
    left_out = 0
    for source, candidates in found.labels.items():
        answer = new.answer(source, settings[source], earlier.get(source))
        answer.file = file
        # Where a label was deleted or edited, a person has decided what is there.
        edited = [w.box for id, w in answer.labels.items() if id not in own]
        free = _free(candidates, obstacles, [*answer.deleted, *edited], how.overlap)
        left_out += len(candidates) - len(free)
        answer.labels.update((d.id, write_down(d, how.field, how.run)) for d in free)
        if how.is_chosen:
            owned = {key for one in earlier.values() for key in one.presence_keys()}
            answer.presence = [key for key in found.presence if key in owned or key not in known]
        added += free
        earlier[source] = answer
    if record is None or how.existing == OVERWRITE:
        record = LabelRecord(made=not kept, was_none=held is None)
    record.answers = earlier
    merged = with_detections(None if how.existing == OVERWRITE else held, [*kept, *added])
    if how.existing == OVERWRITE:
        known = {}
    # A whole answer of a model replaces earlier ones; chosen labels come with none.
    both = (found.presence, known) if how.is_chosen else (known, found.presence)
    merged["concept_presence"] = {**both[0], **both[1]}
    merged[RUN_ATTRIBUTE] = how.run
    merged[RECORD_ATTRIBUTE] = record.text()
    staying = {label.id for label in kept}
    replaced = [label for label in labels if label.id not in staying]
    return Merged(
        labels=merged,
        replaced=len(replaced),
        restorable=[label for label in replaced if label.id not in rewritten],
        kept=sum(label.id not in own for label in kept),
        added=len(added),
        left_out=left_out,
    )


def with_detections(
    held: fol.Detections | None, detections: Sequence[fol.Detection]
) -> fol.Detections:
    """New ``Detections`` with the attributes of others. The labels keep their ids.

    Args:
        held: the ``Detections`` with the attributes, or None.
        detections: the labels.
    """
    new = fol.Detections(detections=list(detections))
    if held is not None:
        for name in held.field_names:
            if name != "detections":
                new[name] = held[name]
    return new


@dataclass(frozen=True)
class Answered:
    """Makes the record of a new answer.

    Attributes:
        how: how labels are written.
        present: the ids of the labels that are in the field before.
        kept: the ids of those that stay.
    """

    how: Writing
    present: set[str]
    kept: set[str]

    def answer(self, source: str, settings: str, earlier: Answer | None) -> Answer:
        """A new answer, which remembers what a person deleted of an earlier one.

        Args:
            source: what was asked.
            settings: the settings of the question.
            earlier: the earlier answer to the question, or None.
        """
        new = Answer(source, settings, self.how.run, is_chosen=self.how.is_chosen)
        if earlier is not None:
            new.labels = {id: w for id, w in earlier.labels.items() if id in self.kept}
            gone = [w.box for id, w in earlier.labels.items() if id not in self.present]
            new.deleted = [*earlier.deleted, *gone]
        return new


def _free(
    candidates: Sequence[fol.Detection],
    obstacles: Sequence[fol.Detection],
    decided: Sequence[Box],
    overlap: float,
) -> list[fol.Detection]:
    """The candidates that overlap no label and no box on which a person has decided."""
    taken = label_iou(candidates, obstacles)
    return [
        label
        for i, label in enumerate(candidates)
        if (not len(obstacles) or taken[i].max() < max(overlap, 1e-9))
        and (not decided or overlapping(decided, label) < max(overlap, 1e-9))
    ]


def _labels(held: Any) -> list[Any]:
    if held is None:
        return []
    listed = held.get("detections") if isinstance(held, Mapping) else held.detections
    return list(listed or [])

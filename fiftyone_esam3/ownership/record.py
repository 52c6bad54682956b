"""The record that runs keep on the ``Detections`` that they write.

The record is a JSON string in an attribute of the ``Detections``. It lists the questions that were
answered, and the id, digest and box of each label as it was written. So a later run can tell which
labels are unchanged, which ones a person edited, tagged or deleted, and which ones a person added.
It takes about 100 bytes for each label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.utils as fou
import numpy as np

from ..labels import presence_key

RECORD_ATTRIBUTE = "esam3_record"
"""The attribute of ``Detections`` that holds the record."""

NO_CONTENT = {"id", "_id", "_cls", "attributes", "mask", "mask_path"}
"""Attributes that are not part of the content of a label, or are read in another way."""

Box = tuple[float, float, float, float]
"""(x, y, width, height), relative to the size of the image."""


@dataclass(frozen=True)
class Written:
    """A label as a run wrote it.

    Attributes:
        digest: see :func:`digest_label`.
        run: the key of the run.
        box: its box.
    """

    digest: str
    run: str
    box: Box


@dataclass
class Answer:
    """What a run wrote for one question.

    Attributes:
        source: what was asked: a class, or the id of a prompt; or a name of what was accepted.
        settings: a digest of all else that the result depends on: model, limits, options.
        run: the key of the run.
        labels: the labels as they were written, by id.
        deleted: boxes of labels that a person deleted after an earlier answer.
        is_chosen: whether a person chose the labels in the panel. Later runs keep these labels and
            write nothing that overlaps them.
        presence: the keys in ``concept_presence`` that come with chosen labels.
        file: the mark of the file that was asked about, see ``mark_files``; "" if it is not known.
    """

    source: str
    settings: str
    run: str
    labels: dict[str, Written] = field(default_factory=dict)
    deleted: list[Box] = field(default_factory=list)
    is_chosen: bool = False
    presence: list[str] = field(default_factory=list)
    file: str = ""

    def presence_keys(self) -> list[str]:
        """The keys in ``concept_presence`` that come with the answer."""
        return self.presence if self.is_chosen else [presence_key(self.source)]


@dataclass
class LabelRecord:
    """The record of one ``Detections``.

    Attributes:
        made: whether runs made the first labels. False: a person's labels were there before.
        was_none: whether the field held nothing at all before the first run.
        answers: the latest answer to each question, by source.
    """

    made: bool = True
    was_none: bool = True
    answers: dict[str, Answer] = field(default_factory=dict)

    @classmethod
    def read(cls, held: fol.Detections | Mapping[str, Any] | None) -> LabelRecord | None:
        """Read the record of labels.

        Args:
            held: the labels, also in the form in which the database holds them.

        Returns:
            None where there are no labels, or no run wrote them.
        """
        if held is None:
            return None
        stored = isinstance(held, Mapping)
        text = held.get(RECORD_ATTRIBUTE) if stored else getattr(held, RECORD_ATTRIBUTE, None)
        if not isinstance(text, str):
            return None
        try:
            stored = json.loads(text)
            runs = stored["runs"]
            answers = [
                Answer(
                    source=one["source"],
                    settings=one["settings"],
                    run=runs[one["run"]],
                    labels={
                        id: Written(digest, runs[run], tuple(box))
                        for id, (digest, run, *box) in one["labels"].items()
                    },
                    deleted=[tuple(box) for box in one["deleted"]],
                    is_chosen="chosen" in one,
                    presence=list(one.get("chosen", ())),
                    file=one.get("file", ""),
                )
                for one in stored["answers"]
            ]
            made, was_none = bool(stored["made"]), bool(stored["was_none"])
        except (ValueError, KeyError, TypeError, IndexError):
            return None  # the attribute was changed by hand: all labels count as people's
        return cls(made, was_none, {one.source: one for one in answers})

    def text(self) -> str:
        """The record as it is stored."""
        runs: dict[str, int] = {}
        answers = [
            {
                "source": one.source,
                "settings": one.settings,
                "run": runs.setdefault(one.run, len(runs)),
                "labels": {
                    id: [w.digest, runs.setdefault(w.run, len(runs)), *w.box]
                    for id, w in one.labels.items()
                },
                "deleted": [list(box) for box in one.deleted],
                **({"chosen": one.presence} if one.is_chosen else {}),
                **({"file": one.file} if one.file else {}),
            }
            for one in self.answers.values()
        ]
        stored = {
            "made": self.made,
            "was_none": self.was_none,
            "runs": list(runs),
            "answers": answers,
        }
        return json.dumps(stored, separators=(",", ":"))

    def has(self, questions: Mapping[str, str]) -> bool:
        """Whether all questions were answered with the same settings.

        Args:
            questions: the settings of each question, by source.
        """
        return not self.missing(questions)

    def missing(self, questions: Mapping[str, str]) -> list[str]:
        """The sources of the questions that were not answered with these settings.

        Args:
            questions: the settings of each question, by source.
        """
        known = {source: one.settings for source, one in self.answers.items()}
        return [source for source, settings in questions.items() if known.get(source) != settings]

    def written(self) -> dict[str, Written]:
        """All labels that runs wrote, by id."""
        return {id: w for one in self.answers.values() for id, w in one.labels.items()}

    def chosen(self) -> list[Answer]:
        """The answers whose labels a person chose in the panel, the latest last."""
        return [one for one in self.answers.values() if one.is_chosen]


def unchanged(
    labels: Iterable[Any], record: LabelRecord | None, field: str, ignored: Collection[str] = ()
) -> set[str]:
    """The ids of the labels that a run wrote and that nobody changed since.

    Args:
        labels: detections, also in the form in which the database holds them.
        record: the record of the labels.
        field: the name of their field.
        ignored: attributes that are not part of the content, see :func:`machine_attributes`.
    """
    written = {} if record is None else record.written()
    out = set()
    for label in labels:
        id = label_id(label)
        known = written.get(id)
        if known is not None and digest_label(label, field, ignored) == known.digest:
            out.add(id)
    return out


def label_id(label: Any) -> str:
    """The id of a label, also in the form in which the database holds it.

    Args:
        label: the label.
    """
    return str(label["_id"] if isinstance(label, Mapping) else label.id)


def box_of(label: Any) -> Box:
    """The box of a detection, rounded.

    Args:
        label: the detection, also in the form in which the database holds it.
    """
    x, y, w, h = (round(float(v), 4) for v in label["bounding_box"])
    return x, y, w, h


def write_down(label: fol.Detection, field: str, run: str) -> Written:
    """A label as it is written, for the record.

    Args:
        label: the label.
        field: the name of its field.
        run: the key of the run.
    """
    return Written(digest_label(label, field), run, box_of(label))


def digest_label(label: Any, field: str, ignored: Collection[str] = ()) -> str:
    """A digest of the content of a detection: class, box, mask, tags and other attributes.

    The name of the field is part of it: labels that are copied to another field are no longer
    labels of the run.

    Args:
        label: a detection, also in the form in which the database holds it.
        field: the name of its field.
        ignored: attributes that are not part of the content.

    Returns:
        12 hexadecimal digits.
    """
    stored = isinstance(label, Mapping)
    names = label if stored else label.field_names
    content: dict[str, Any] = {}
    for name in names:
        value = None if name in NO_CONTENT or name in ignored else label[name]
        if value is None or isinstance(value, (bytes, np.ndarray)) or value in ([], {}, ()):
            continue  # arrays are embeddings
        if name == "instance":
            value = str(value["_id"] if isinstance(value, Mapping) else value.id)
        elif name == "bounding_box":
            value = [round(float(v), 6) for v in value]
        content[name] = value
    text = json.dumps([field, content], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    digest.update(_mask_content(label, stored))
    return digest.hexdigest()[:12]


def _mask_content(label: Any, stored: bool) -> bytes:
    """The shape and the pixels of a mask, wherever it is stored."""
    path = (label.get("mask_path") if stored else label.mask_path) or None
    mask = label.get("mask") if stored else label.mask
    if mask is None and path is None:
        return b""
    try:
        if mask is None:
            mask = fol.Detection(mask_path=path).get_mask()
        elif isinstance(mask, bytes):
            mask = fou.deserialize_numpy_array(mask)
    except (OSError, ValueError, EOFError):
        return b"unreadable"
    if mask is None:
        return b"unreadable"
    pixels = np.asarray(mask) > 0
    return str(pixels.shape).encode() + np.packbits(pixels).tobytes()


def machine_attributes(dataset: Any) -> frozenset[str]:
    """The attributes that evaluations of the dataset add to labels; they are no edits of people.

    Args:
        dataset: the dataset.
    """
    keys = dataset.list_evaluations()
    return frozenset(f"{key}{end}" for key in keys for end in ("", "_iou", "_id"))

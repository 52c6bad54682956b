"""Write labels to a dataset: all labels of runs pass through this class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..labels import ERROR_FIELD
from ..ownership.merge import (
    OVERLAP,
    OVERWRITE,
    REFUSE,
    Found,
    Writing,
    check_existing,
    merge_labels,
)
from ..ownership.record import RECORD_ATTRIBUTE, machine_attributes
from ..ownership.replaced import ReplacedLabels
from .file_marks import is_replaced


def key_of(entry: str) -> str:
    """The key of a run in an entry of a field that names the runs which finished a clip.

    Args:
        entry: the key, or the key, ``@`` and the mark of the clip's files.
    """
    return entry.partition("@")[0]


class LabelWriter:
    """Write to one field of the samples, or of the frames, of a dataset.

    Args:
        dataset: the dataset.
        field: the field, without ``frames.``.
        run_key: the key under which the dataset records the run, written into its labels. None:
            values that are no labels of the run.
        frames: the field belongs to the frames of videos.
        existing: what happens to labels that are there; see ``merge_labels``.
        overlap: see ``merge_labels``.

    Raises:
        ArgumentError: ``existing`` or ``overlap`` has a wrong value.
    """

    def __init__(
        self,
        dataset: Any,
        field: str,
        run_key: str | None = None,
        *,
        frames: bool = False,
        existing: str = REFUSE,
        overlap: float = OVERLAP,
    ) -> None:
        check_existing(existing, overlap)
        self.dataset, self.field, self.run_key, self.frames = dataset, field, run_key, frames
        self.finished_field = f"{field}_run"
        """A field of samples: the keys of the runs that finished the sample's clip, in order, with
        spaces between them, each with ``@`` and the mark of the clip's files."""
        ignored = machine_attributes(dataset)
        self.how = Writing(field, run_key or "", existing, overlap, ignored)
        path = f"frames.{field}" if frames else field
        self.replaced = ReplacedLabels(dataset, path, run_key or "")
        self.counts: Counter[str] = Counter(kept=0, added=0, replaced=0, left_out=0)
        """The numbers of labels of people that stay, of new labels, of labels that were replaced,
        and of new labels that overlap others and are left out."""

    def answer(
        self, document: Any, found: Found, settings: Mapping[str, str], file: str = ""
    ) -> None:
        """Join new labels with those that a sample or a frame has, without saving it.

        Args:
            document: the sample or the frame, as the database holds it now.
            found: the new labels.
            settings: the settings of each question that was asked, by source.
            file: the mark of the file that was asked about, see ``mark_files``.
        """
        held = document[self.field] if document.has_field(self.field) else None
        merged = merge_labels(held, found, settings, self.how, file)
        if merged.restorable:
            before = getattr(held, RECORD_ATTRIBUTE, None)
            self.replaced.keep(document.id, before, merged.restorable)
        self.counts.update(
            kept=merged.kept,
            added=merged.added,
            replaced=merged.replaced,
            left_out=merged.left_out,
        )
        self.write(document, merged.labels)

    def write(self, document: Any, value: Any) -> None:
        """Set the field of a sample or a frame, without saving it.

        Args:
            document: the sample or the frame.
            value: the labels, or another value of the field.
        """
        document[self.field] = value
        self.succeed(document)

    def succeed(self, document: Any) -> None:
        """Clear the error of a sample or a frame, without saving it.

        Args:
            document: the sample or the frame.
        """
        if document.has_field(ERROR_FIELD):
            document[ERROR_FIELD] = None

    def fail(self, sample: Any, message: str) -> None:
        """Record an error on a sample, without saving it.

        Args:
            sample: the sample.
            message: the error.
        """
        sample[ERROR_FIELD] = message

    # Videos ---------------------------------------------------------------------------------

    def mark_finished(self, ids: Sequence[str], files: Sequence[str], mark: str) -> None:
        """Record that all frames of samples are labeled, and clear their errors.

        Args:
            ids: the samples.
            files: the files of the clip. Entries of files that were replaced are removed.
            mark: their mark when they were read, see ``mark_files``.
        """
        view = self.dataset.select(ids, ordered=True)
        known: list[str | None] = [None] * len(ids)
        if self.dataset.has_sample_field(self.finished_field) and self.how.existing != OVERWRITE:
            known = view.values(self.finished_field)
        entry = f"{self.run_key or ''}@{mark}" if mark else self.run_key or ""
        listed = [(old or "").split() for old in known]
        valid = {e for e in {e for old in listed for e in old} if key_of(e) != self.run_key}
        valid = {e for e in valid if not is_replaced(e.partition("@")[2], files)}
        values = [" ".join([*(e for e in old if e in valid), entry]) for old in listed]
        view.set_values(self.finished_field, values)
        if self.dataset.has_sample_field(ERROR_FIELD):
            view.clear_sample_field(ERROR_FIELD)

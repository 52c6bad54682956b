"""What a run does with each image: it answers questions with labels, or computes a value."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from fiftyone.core.collections import SaveContext

from efficientsam3 import EfficientSam3Error, ImageModel, PromptError
from efficientsam3.io.batches import batched
from efficientsam3.prompts import check_batch_size, read_batch_size

from ..image_items import Item, encode_items
from ..labels import ERROR_FIELD, describe_error
from ..model_cache import MODEL_LOCK
from ..ownership.merge import (
    OVERLAP,
    REFUSE,
    ExistingLabelsError,
    Found,
    Writing,
    check_existing,
    count_at_stake,
    describe_refusal,
    list_unanswered,
)
from ..ownership.record import LabelRecord
from ..ownership.schema import declare_presence
from .file_marks import is_replaced, mark_files
from .label_writer import LabelWriter
from .run import Run
from .sample_reader import ImageReader, SampleReader

logger = logging.getLogger(__name__)

SAMPLE_ERRORS = (EfficientSam3Error, RuntimeError, MemoryError, OSError)
"""Errors that can occur with one sample and need not occur with the next one."""

PLAN_CHUNK = 500


def _is_replaced(path: str, mark: str) -> bool:
    return is_replaced(mark, [path])


Questions = Callable[[Mapping[str, Any]], Mapping[str, str]]
"""Gives the questions for an image, with their settings, from the values of its prompt fields."""

Answer = Callable[[ImageModel, Any, Item, Collection[str]], Found]
"""Answers some of the questions, for the model, a sample and its image."""


class ImageTask(Protocol):
    """What a run does with each image."""

    field: str
    prompt_fields: Mapping[str, str]

    def images_together(self, core: ImageModel) -> int:
        """The number of images that go through the model together.

        Args:
            core: the model.
        """

    def plan(self, images: SampleReader, ids: Sequence[str], run: Run, restart: bool) -> list[str]:
        """The samples that are not done.

        Args:
            images: the samples of the run.
            ids: their ids.
            run: the run.
            restart: no sample counts as done.
        """

    def process(
        self,
        images: SampleReader,
        chunk: Sequence[str],
        core: ImageModel,
        reader: ImageReader,
        run: Run,
        restart: bool,
    ) -> None:
        """Process some samples, and save them together.

        Args:
            images: the samples of the run.
            chunk: the ids of these samples.
            core: the model.
            reader: reads the images.
            run: the run, which counts errors.
            restart: process samples that are done too.
        """

    def finish(self, dataset: Any) -> dict[str, Any]:
        """What is to be done after the last sample.

        Args:
            dataset: the dataset.

        Returns:
            entries for the summary of the run.
        """


class LabelTask:
    """Answer questions about each image with labels in a field.

    Args:
        field: the field, with ``Detections``.
        questions: gives the questions for an image.
        answer: answers them.
        prompt_fields: fields that hold prompts, by the keys of ``PROMPT_KEYS``.
        existing: what happens to labels that are there; see ``merge_labels``.
        overlap: see ``merge_labels``.
        batch_size: the number of images that are encoded together. 1: ``answer`` encodes each.
            None: see ``read_batch_size``.

    Raises:
        ArgumentError: ``existing`` or ``overlap`` has a wrong value.
        PromptError: ``batch_size`` has one.
    """

    def __init__(
        self,
        field: str,
        questions: Questions,
        answer: Answer,
        *,
        prompt_fields: Mapping[str, str] | None = None,
        existing: str = REFUSE,
        overlap: float = OVERLAP,
        batch_size: int | None = 1,
    ) -> None:
        check_existing(existing, overlap)
        self._batch_size = None if batch_size is None else check_batch_size(batch_size)
        self.field = field
        self.prompt_fields: Mapping[str, str] = dict(prompt_fields or {})
        self._questions, self._answer = questions, answer
        self._existing, self._overlap = existing, overlap
        self._writer: LabelWriter  # made by plan, which knows the run

    def plan(self, images: SampleReader, ids: Sequence[str], run: Run, restart: bool) -> list[str]:
        """The samples with unanswered questions.

        Args:
            images: the samples of the run.
            ids: their ids.
            run: the run.
            restart: all questions are asked again.

        Raises:
            ExistingLabelsError: labels of people are there, and the policy is to refuse.
        """
        self._writer = LabelWriter(
            run.dataset, self.field, run.key, existing=self._existing, overlap=self._overlap
        )
        how, todo, labels, samples = self._writer.how, [], 0, 0
        for start in range(0, len(ids), PLAN_CHUNK):
            part = list(ids[start : start + PLAN_CHUNK])
            held = images.stored(part, self.field)
            asked = self._asked(images, part, held, how, restart)
            run.replaced_files += 0 if restart else self._count_replaced(held, asked)
            for id in part:
                if id not in asked:
                    continue
                todo.append(id)
                at_stake = count_at_stake(held.get(id, ("", None))[1], list(asked[id]), how)
                labels, samples = labels + at_stake, samples + bool(at_stake)
        if labels:
            raise ExistingLabelsError(describe_refusal(self.field, labels, samples))
        return todo

    def _asked(
        self,
        images: SampleReader,
        ids: Sequence[str],
        stored: Mapping[str, tuple[str, Any]],
        how: Writing,
        restart: bool,
    ) -> dict[str, dict[str, str]]:
        """The settings of the unanswered questions, for the samples that have some.

        Questions about a file that was replaced since are unanswered.
        """
        values: dict[str, Mapping[str, Any]] = {id: {} for id in ids}
        if self.prompt_fields:
            values = {sample.id: images.prompts(sample) for sample in images.read(ids)}
        out: dict[str, dict[str, str]] = {}
        for id, prompts in values.items():
            try:
                questions = self._questions(prompts)
            except PromptError:
                out[id] = {}  # the error is recorded when the sample is processed
                continue
            path, held = stored.get(id, ("", None))
            is_new = partial(_is_replaced, path)
            missing = list_unanswered(held, questions, how, restart, is_new)
            if missing or held is None:
                out[id] = {source: questions[source] for source in missing}
        return out

    def _count_replaced(
        self, stored: Mapping[str, tuple[str, Any]], asked: Mapping[str, Mapping[str, str]]
    ) -> int:
        """The number of samples of which a question is asked again because of another file."""
        count = 0
        for id, questions in asked.items():
            path, held = stored.get(id, ("", None))
            record = LabelRecord.read(held)
            known = {} if record is None else record.answers
            count += any(
                known[source].settings == settings and _is_replaced(path, known[source].file)
                for source, settings in questions.items()
                if source in known
            )
        return count

    def process(
        self,
        images: SampleReader,
        chunk: Sequence[str],
        core: ImageModel,
        reader: ImageReader,
        run: Run,
        restart: bool,
    ) -> None:
        """Answer the open questions about some samples, and save the samples together.

        Args:
            images: the samples of the run.
            chunk: the ids of these samples.
            core: the model.
            reader: reads the images.
            run: the run, which counts errors.
            restart: ask all questions.
        """
        writer = self._writer
        # Another run may have done some of them meanwhile.
        held = images.stored(chunk, self.field)
        asked = self._asked(images, chunk, held, writer.how, restart)
        samples = [s for s in images.read(list(asked)) if s.id in held]
        results: dict[str, tuple[Found | None, str]] = {}
        marks = {s.id: mark_files([s.filepath]) for s in samples}
        jobs = ((s.filepath, images.prompts(s)) for s in samples)
        for sample, item in zip(samples, self._read(core, reader.read(jobs)), strict=True):
            try:
                if item.error is not None:
                    raise item.error
                with MODEL_LOCK:
                    found = self._answer(core, sample, item, asked[sample.id])
            except SAMPLE_ERRORS as error:
                message = describe_error(error)
                logger.warning("%s: %s", item.source or sample.id, message)
                results[sample.id] = None, message
            else:
                results[sample.id] = found, "; ".join(item.prompts.notes)
        # The labels are read again for writing: a person may have changed them meanwhile.
        view = images.writable(list(results), [self.field, ERROR_FIELD])
        with SaveContext(view, async_writes=True) as context:
            for sample in view:
                found_here, message = results[sample.id]
                if found_here is not None:
                    writer.answer(sample, found_here, asked[sample.id], marks[sample.id])
                if message:
                    writer.fail(sample, message)
                    run.reasons[message.split(":")[0]] += 1
                context.save(sample)

    def images_together(self, core: ImageModel) -> int:
        """The number of images that are encoded together.

        Args:
            core: the model.
        """
        return read_batch_size(self._batch_size, core.device)

    def _read(self, core: ImageModel, items: Iterator[Item]) -> Iterator[Item]:
        """Encode items together, where more than one is wanted and that does not fail."""
        size = self.images_together(core)
        for batch in batched(items, size):
            if len(batch) > 1:
                # Where this fails, each fails, or not, when it is answered.
                with suppress(*SAMPLE_ERRORS), MODEL_LOCK:
                    batch = encode_items(core, batch, size)
            yield from batch

    def finish(self, dataset: Any) -> dict[str, Any]:
        """Declare the attributes of the labels, and count.

        Args:
            dataset: the dataset.

        Returns:
            the numbers of labels that were added, replaced, kept and left out.
        """
        declare_presence(dataset, self.field)
        return dict(self._writer.counts)


class ValueTask:
    """Compute a value of each image, or of each of its labels, such as an embedding.

    Args:
        field: the field that gets the value.
        value: gives the value, for the model, a sample and its image.
        is_done: an expression that is true for samples that are done.
        attribute: an attribute of the labels in the field. ``value`` gives its values by the ids
            of the labels. None: the value is that of the field.
        mark_field: the field for the mark of the image that was read, see ``mark_files``.

    Attributes:
        replaced: the ids of the samples whose images were replaced, of which all values are
            computed again.
    """

    def __init__(
        self,
        field: str,
        value: Callable[[ImageModel, Any, Item], Any],
        is_done: Any,
        attribute: str | None = None,
        *,
        mark_field: str,
    ) -> None:
        self.field, self._value, self._is_done = field, value, is_done
        self._attribute = attribute
        self.prompt_fields: Mapping[str, str] = {}
        self._mark_field = mark_field
        self.replaced: set[str] = set()

    def images_together(self, core: ImageModel) -> int:
        """1.

        Args:
            core: the model.
        """
        return 1

    def plan(self, images: SampleReader, ids: Sequence[str], run: Run, restart: bool) -> list[str]:
        """The samples that are not done, and those whose images were replaced since.

        Args:
            images: the samples of the run.
            ids: their ids.
            run: the run.
            restart: no sample counts as done.
        """
        if restart:
            return list(ids)
        todo = set(images.matching(ids, ~self._is_done))
        for start in range(0, len(ids), PLAN_CHUNK):
            part = ids[start : start + PLAN_CHUNK]
            for id, (path, mark) in images.stored(part, self._mark_field).items():
                if isinstance(mark, str) and _is_replaced(path, mark):
                    self.replaced.add(id)
        run.replaced_files = len(self.replaced)
        return [id for id in ids if id in todo or id in self.replaced]

    def process(
        self,
        images: SampleReader,
        chunk: Sequence[str],
        core: ImageModel,
        reader: ImageReader,
        run: Run,
        restart: bool,
    ) -> None:
        """Compute the values of some samples, and save the samples together.

        Args:
            images: the samples of the run.
            chunk: the ids of these samples.
            core: the model.
            reader: reads the images.
            run: the run, which counts errors.
            restart: process samples that are done too.
        """
        writer = LabelWriter(run.dataset, self.field)
        view = images.writable(chunk, [self.field, ERROR_FIELD, self._mark_field])
        samples, of_labels = list(view), {}
        marks = {s.id: mark_files([s.filepath]) for s in samples}
        jobs: Iterator[tuple[str, Mapping[str, Any]]] = ((s.filepath, {}) for s in samples)
        with SaveContext(view, async_writes=True) as context:
            for sample, item in zip(samples, reader.read(jobs), strict=True):
                try:
                    if item.error is not None:
                        raise item.error
                    with MODEL_LOCK:
                        value = self._value(core, sample, item)
                except SAMPLE_ERRORS as error:
                    message = describe_error(error)
                    logger.warning("%s: %s", item.source or sample.id, message)
                    writer.fail(sample, message)
                    run.reasons[message.split(":")[0]] += 1
                else:
                    sample[self._mark_field] = marks[sample.id]
                    if self._attribute is None:
                        writer.write(sample, value)
                    else:
                        of_labels.update(value)
                        writer.succeed(sample)
                context.save(sample)
        if of_labels:  # only this attribute: a person may have changed the labels meanwhile
            run.dataset.set_label_values(self._attribute, of_labels, dynamic=True)

    def finish(self, dataset: Any) -> dict[str, Any]:
        """No further entries.

        Args:
            dataset: the dataset.
        """
        return {}

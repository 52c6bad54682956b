"""Read samples, their prompts and their images for a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import fiftyone.core.media as fomm
from bson import ObjectId

from ..image_items import Item, make_item


class SampleReader:
    """The samples of a run, some at a time.

    Prompts are read as the view shows them: labels that it filters out are no prompts. Labels are
    written to the samples themselves, so that labels which the view does not show stay.

    Args:
        samples: a dataset or a view.
        prompt_fields: the fields that hold prompts, by the keys of ``PROMPT_KEYS``.
    """

    def __init__(self, samples: Any, prompt_fields: Mapping[str, str]) -> None:
        self.prompt_fields = dict(prompt_fields)
        dataset = samples._root_dataset
        if samples._dataset is not dataset:  # made of frames: the view writes to both
            self._base = samples.view()._base_view
        elif dataset.media_type == fomm.GROUP:
            self._base = dataset.select_group_slices(_allow_mixed=True)
        else:
            self._base = dataset
        self._collection = samples._dataset._sample_collection
        stages = samples.view()._stages
        self._filters = [s for s in stages if s.get_filtered_fields(samples._dataset)]

    def matching(self, ids: Sequence[str], expression: Any) -> list[str]:
        """The samples for which an expression is true, in their order.

        Args:
            ids: the samples.
            expression: a ``ViewExpression``.
        """
        return list(self._base.select(list(ids), ordered=True).match(expression).values("id"))

    def writable(self, ids: Sequence[str], fields: Sequence[str]) -> Any:
        """A view of samples with some of their fields, with all labels.

        Args:
            ids: the samples.
            fields: the fields; those that do not exist are left out.
        """
        known = set(self._base.get_field_schema())
        view = self._base.select(list(ids))
        return view.select_fields(sorted(known & set(fields)))

    def read(self, ids: Sequence[str]) -> list[Any]:
        """Samples with their prompts.

        Args:
            ids: the samples; those that were deleted meanwhile are left out.
        """
        view = self._base.select(list(ids), ordered=True)
        for stage in self._filters:  # after the selection, so that they run on few samples
            view = view.add_stage(stage)
        if self._filters:
            kept = set(view.values("id"))
            if len(kept) < len(ids):  # samples without a label that matches are not in the view
                rest = [id for id in ids if id not in kept]
                return [*view.select_fields(self._needed()), *self._without_labels(rest)]
        return list(view.select_fields(self._needed()))

    def _needed(self) -> list[str]:
        return sorted(set(self.prompt_fields.values()))

    def _without_labels(self, ids: Sequence[str]) -> list[Any]:
        return list(self._base.select(list(ids), ordered=True).select_fields())

    def stored(self, ids: Sequence[str], field: str) -> dict[str, tuple[str, Any]]:
        """The path of each sample's file, and what a field holds, in the order of the samples.

        Args:
            ids: the samples; those that were deleted meanwhile are left out.
            field: the field; it does not have to exist.
        """
        query = {"_id": {"$in": [ObjectId(id) for id in ids]}}
        found = self._collection.find(query, {field: True, "filepath": True})
        known = {str(d["_id"]): (str(d["filepath"]), d.get(field)) for d in found}
        return {id: known[id] for id in ids if id in known}

    def prompts(self, sample: Any) -> dict[str, Any]:
        """The values of the prompt fields of a sample, by the keys of ``PROMPT_KEYS``.

        Args:
            sample: a sample that :meth:`read` gave.
        """
        return {
            key: sample[name] if sample.has_field(name) else None
            for key, name in self.prompt_fields.items()
        }


class ImageReader:
    """Read images and prompts of samples, ahead in threads where there are some.

    Args:
        threads: the number of threads.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads else None

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, jobs: Iterator[tuple[str, Mapping[str, Any]]]) -> Iterator[Item]:
        """Read the items of samples, in their order.

        Args:
            jobs: the path of each image, and the values of its prompt fields by the keys of
                ``PROMPT_KEYS``.
        """
        if self._pool is None:
            yield from (make_item(*job) for job in jobs)
            return
        waiting: deque[Future[Item]] = deque()
        for job in jobs:
            waiting.append(self._pool.submit(make_item, *job))
            if len(waiting) > 2 * self.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

"""The work on one sample in the panel: prompts, results, and how to undo.

This module knows neither FiftyOne nor the screen. All scores of a result are kept, so that
another threshold does not need the model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

import efficientsam3 as es3
from efficientsam3.outputs import OBJECT
from efficientsam3.segmenter import VISUAL
from efficientsam3.types import Instances, join

from .picture import Picture, Size, file_key

MIN_SCORE, MAX_INSTANCES = 0.02, 200
"""What is kept of a result, so that the slider can show more than the default threshold does."""

MAX_ENCODED = 4
"""The number of encoded images that are kept; each takes some tens of megabytes."""

MAX_UNDO = 50

OBJECT_ON, OBJECT_OFF, LIKE_THIS, NOT_THIS = "on", "off", "like", "unlike"
"""What a click or a box means: on the object, off it, a positive example, a negative example."""

Corners = tuple[float, float, float, float]
T = TypeVar("T")


class Recent(Generic[T]):
    """The most recently used values, by key, shared by the threads in which the App is served.

    Args:
        most: the number of values that are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self.values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made at its first use.

        Args:
            key: the key.
            make: makes the value.
        """
        with self._lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()  # others may use their values meanwhile
        with self._lock:
            value = self.values.setdefault(key, value)
            self.values.move_to_end(key)
            while len(self.values) > self.most:
                self.values.popitem(last=False)
        return value


ENCODED: Recent[es3.EncodedImage] = Recent(MAX_ENCODED)
"""Encoded images, shared by all panels of the process."""

PICTURES: Recent[Picture] = Recent(4 * MAX_ENCODED)
"""Images as the browser gets them."""


@dataclass(frozen=True)
class Prompts:
    """What a person pointed at, in pixels of the image.

    Attributes:
        points: (x, y, sign) on the object that is being made; sign is 1 on it, 0 off it.
        box: xyxy of this object, or None.
        examples: (x0, y0, x1, y1, sign) of examples; sign is 1 for positive, 0 for negative.
    """

    points: tuple[tuple[float, float, int], ...] = ()
    box: Corners | None = None
    examples: tuple[tuple[float, float, float, float, int], ...] = ()


@dataclass(frozen=True)
class Result:
    """What the panel shows; it is replaced at each action, so that actions can be undone.

    Attributes:
        found: instances of concepts and examples, with all scores.
        finished: the objects that were made before.
        current: the object that is being made.
        prompts: the prompts that led to this.
    """

    found: Instances | None = None
    finished: tuple[Instances, ...] = ()
    current: Instances | None = None
    prompts: Prompts = field(default_factory=Prompts)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to accept or to discard."""
        return self.found is None and self.current is None and not self.finished


class Step(NamedTuple):
    """An action, as ``undo`` needs it.

    Attributes:
        before: the result before the action.
        accepted: what the action wrote to the dataset, or None.
    """

    before: Result
    accepted: Any = None


class PanelState:
    """The work of a person on one sample.

    Args:
        path: the path of the sample's image.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.result = Result()
        self.history: list[Step] = []

    @property
    def picture(self) -> Picture:
        """The image.

        Raises:
            ImageError: it cannot be read.
        """
        return PICTURES.get(file_key(self.path), lambda: Picture.read(self.path))

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.picture.size

    # Requests to the model ------------------------------------------------------------------

    def _encode(self, model: es3.ImageModel) -> es3.EncodedImage:
        return ENCODED.get((id(model), file_key(self.path)), lambda: model.encode(self.path))

    def find(self, model: es3.ImageModel, concepts: Sequence[str]) -> None:
        """Find all instances of concepts. Examples go with the first concept.

        Args:
            model: the model.
            concepts: phrases; none is needed if there are examples.

        Raises:
            PromptError: there is neither a concept nor an example.
        """
        self._set(self._found(model, concepts, self.result.prompts))

    def _found(self, model: es3.ImageModel, concepts: Sequence[str], prompts: Prompts) -> Result:
        image = self._encode(model)
        limits: dict[str, Any] = {"threshold": MIN_SCORE, "max_instances": MAX_INSTANCES}
        parts = []
        if prompts.examples:
            word = [concepts[0]] if concepts else None
            boxes = np.array([e[:4] for e in prompts.examples], np.float32)
            signs = np.array([e[4] for e in prompts.examples])
            parts.append(model.segment(image, word, boxes=boxes, box_labels=signs, **limits))
            concepts = concepts[1:]
        if concepts:
            parts.append(model.segment(image, list(concepts), **limits))
        if not parts:
            raise es3.PromptError("nothing to look for: type a word, or draw a box as an example")
        return replace(self.result, found=join(parts), prompts=prompts)

    def add_point(
        self, model: es3.ImageModel, x: float, y: float, meaning: str, concepts: Sequence[str] = ()
    ) -> None:
        """Add a click. As an example it is a small box around the point.

        Args:
            model: the model.
            x: in pixels of the image.
            y: in pixels of the image.
            meaning: OBJECT_ON, OBJECT_OFF, LIKE_THIS or NOT_THIS.
            concepts: the concepts that examples go with.
        """
        if meaning in (LIKE_THIS, NOT_THIS):
            height, width = self.size
            reach = 0.02 * max(height, width)
            low = max(0.0, x - reach), max(0.0, y - reach)
            high = min(float(width), x + reach), min(float(height), y + reach)
            self.add_box(model, (*low, *high), meaning, concepts)
            return
        prompts = self.result.prompts
        points = (*prompts.points, (x, y, int(meaning == OBJECT_ON)))
        self._segment_object(model, replace(prompts, points=points))

    def add_box(
        self, model: es3.ImageModel, box: Corners, meaning: str, concepts: Sequence[str] = ()
    ) -> None:
        """Add a box.

        Args:
            model: the model.
            box: xyxy in pixels of the image.
            meaning: OBJECT_ON, OBJECT_OFF, LIKE_THIS or NOT_THIS.
            concepts: the concepts that examples go with.
        """
        prompts = self.result.prompts
        if meaning in (LIKE_THIS, NOT_THIS):
            examples = (*prompts.examples, (*box, int(meaning == LIKE_THIS)))
            self._set(self._found(model, concepts, replace(prompts, examples=examples)))
        else:
            self._segment_object(model, replace(prompts, box=box))

    def _segment_object(self, model: es3.ImageModel, prompts: Prompts) -> None:
        points = signs = None
        if prompts.points:
            points = [[p[:2] for p in prompts.points]]
            signs = [[p[2] for p in prompts.points]]
        found = model.segment_objects(
            self._encode(model),
            boxes=None if prompts.box is None else [prompts.box],
            points=points,
            point_labels=signs,
            multimask=len(prompts.points) == 1 and prompts.box is None,
        )
        self._set(replace(self.result, current=found[:1], prompts=prompts))

    def next_object(self) -> None:
        """Finish the object that is being made; the next click begins another one."""
        if self.result.current is not None:
            finished = (*self.result.finished, self.result.current)
            prompts = Prompts(examples=self.result.prompts.examples)
            self._set(Result(self.result.found, finished, None, prompts))

    # Undo -----------------------------------------------------------------------------------

    def _set(self, result: Result, accepted: Any = None) -> None:
        self.history.append(Step(self.result, accepted))
        del self.history[:-MAX_UNDO]
        self.result = result

    def undo(self) -> Step | None:
        """Go back to the result before.

        Returns:
            the action that was undone, or None if there is none.
        """
        if not self.history:
            return None
        step = self.history.pop()
        self.result = step.before
        return step

    def discard(self) -> None:
        """Remove everything; ``undo`` restores it."""
        if not self.result.is_empty:
            self._set(Result())

    def accept(self, accepted: Any) -> None:
        """Remove everything, because it is in the dataset now.

        Args:
            accepted: what was written, for the one who calls ``undo``.
        """
        self._set(Result(), accepted)

    # What is shown --------------------------------------------------------------------------

    @property
    def objects(self) -> Instances | None:
        """The objects that were made by clicks and boxes, the finished ones first."""
        parts = [*self.result.finished, *([self.result.current] if self.result.current else [])]
        return join([replace(part, low_res=None) for part in parts]) if parts else None

    def chosen(
        self, found: Sequence[int], objects: Sequence[int], name: str | None = None
    ) -> Instances | None:
        """Some of the instances and objects.

        Args:
            found: positions in ``result.found``.
            objects: positions in ``objects``.
            name: the class of objects, and of what examples alone show.
        """
        parts = []
        for of, positions, general in (
            (self.result.found, found, VISUAL),
            (self.objects, objects, OBJECT),
        ):
            if of is not None:
                valid = [i for i in positions if 0 <= i < len(of)]
                parts.append(_renamed(of[valid], general, name))
        return join(parts) if parts else None


def _renamed(found: Instances, general: str, name: str | None) -> Instances:
    """Give the instances with a general label a name."""
    if not name:
        return found
    return replace(found, labels=[name if label == general else label for label in found.labels])

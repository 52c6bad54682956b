"""What the panel knows of one sample: answers, prompts, and how to go back.

Nothing here knows FiftyOne or a screen. Scores are cached: another threshold asks the model
nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

import efficientsam3 as es3
from efficientsam3.image import OBJECT, VISUAL
from efficientsam3.pixels import read_rgb
from efficientsam3.types import Instances, join

FLOOR, MOST = 0.02, 200
"""What is kept of an answer, so that the slider has something to let in."""

ENCODED = 4
"""Images whose features are kept; each costs some tens of megabytes at full size."""

OBJECT_ON, OBJECT_OFF, LIKE_THIS, NOT_THIS = "on", "off", "like", "unlike"
"""What a click or a box means: on the one object, off it; an example of what is looked for, or
of what is not."""


@dataclass(frozen=True)
class Prompts:
    """What was pointed at, in pixels of the image.

    points: (x, y, 1 on or 0 off) of the object that is being made. box: of it, xyxy. examples:
    (x0, y0, x1, y1, 1 like this or 0 not like this).
    """

    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    examples: tuple[tuple[float, float, float, float, int], ...] = ()


@dataclass(frozen=True)
class View:
    """What is shown.

    found: instances of concepts and examples, with all scores. current: the object that is being
    made, and finished: those before it. prompts: what led to it.
    """

    found: Instances | None = None
    finished: tuple[Instances, ...] = ()
    current: Instances | None = None
    prompts: Prompts = field(default_factory=Prompts)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to accept, discard or see."""
        return self.found is None and self.current is None and not self.finished


class Accepted(NamedTuple):
    """Labels that were written. at: steps before. before: what the field held until then."""

    at: int
    field: str
    before: Any


class Encoded:
    """Images that a model has read, the last few of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str], es3.EncodedImage] = OrderedDict()

    def read(self, model: es3.ImageModel, path: str) -> es3.EncodedImage:
        """The image as the model read it, now or before."""
        key = (id(model), path)
        if key not in self._kept:
            self._kept[key] = model.encode(path)
            while len(self._kept) > ENCODED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


class Bench:
    """One sample under work.

    Args:
        encoded: features of images, shared with other samples.
    """

    def __init__(self, encoded: Encoded | None = None) -> None:
        self.encoded = encoded or Encoded()
        self.sample = self.path = ""
        self.view = View()
        self.past: list[View] = []
        self.accepted: list[Accepted] = []
        self._pixels: Any = None

    def open(self, sample: str, path: str) -> None:
        """Goes to another sample; what was not accepted of the last one is gone."""
        if (sample, path) != (self.sample, self.path):
            self.sample, self.path = sample, path
            self.view, self.past, self.accepted, self._pixels = View(), [], [], None

    @property
    def pixels(self) -> Any:
        """The image, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: it cannot be read.
        """
        if self._pixels is None:
            self._pixels = read_rgb(self.path).permute(1, 2, 0).numpy()
        return self._pixels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        height, width = self.pixels.shape[:2]
        return height, width

    # Questions -------------------------------------------------------------------------

    def look_for(self, model: es3.ImageModel, concepts: Sequence[str]) -> None:
        """Finds concepts; with examples, the one concept that they show."""
        image = self.encoded.read(model, self.path)
        examples = self.view.prompts.examples
        limits: dict[str, Any] = {"threshold": FLOOR, "max_instances": MOST}
        parts = []
        if examples:
            word = [concepts[0]] if concepts else None
            boxes = np.array([e[:4] for e in examples], np.float32)
            signs = np.array([e[4] for e in examples])
            parts.append(model.segment(image, word, boxes=boxes, box_labels=signs, **limits))
            concepts = concepts[1:]
        if concepts:
            parts.append(model.segment(image, list(concepts), **limits))
        if not parts:
            raise es3.PromptError("nothing to look for: type a word, or draw a box as an example")
        self._go(replace(self.view, found=join(parts)))

    def point(
        self, model: es3.ImageModel, x: float, y: float, meaning: str, concepts: Sequence[str] = ()
    ) -> None:
        """Takes a click, in pixels; as an example it is a small box around it."""
        if meaning in (LIKE_THIS, NOT_THIS):
            height, width = self.size
            reach = 0.02 * max(height, width)
            box = (
                max(0.0, x - reach),
                max(0.0, y - reach),
                min(float(width), x + reach),
                min(float(height), y + reach),
            )
            self.draw(model, box, meaning, concepts)
            return
        prompts = self.view.prompts
        points = (*prompts.points, (x, y, int(meaning == OBJECT_ON)))
        self._ask_object(model, replace(prompts, points=points))

    def draw(
        self,
        model: es3.ImageModel,
        box: tuple[float, float, float, float],
        meaning: str,
        concepts: Sequence[str] = (),
    ) -> None:
        """Takes a box, xyxy in pixels."""
        prompts = self.view.prompts
        if meaning in (LIKE_THIS, NOT_THIS):
            one = (*box, int(meaning == LIKE_THIS))
            before = self.view
            self.view = replace(before, prompts=replace(prompts, examples=(*prompts.examples, one)))
            try:
                self.look_for(model, concepts)
            except es3.EfficientSam3Error:
                self.view = before
                raise
            self.past[-1] = before
            return
        self._ask_object(model, replace(prompts, box=box))

    def _ask_object(self, model: es3.ImageModel, prompts: Prompts) -> None:
        image = self.encoded.read(model, self.path)
        points = signs = boxes = None
        if prompts.points:
            points = [[p[:2] for p in prompts.points]]
            signs = [[p[2] for p in prompts.points]]
        if prompts.box is not None:
            boxes = [prompts.box]
        single = len(prompts.points) == 1 and prompts.box is None
        found = model.segment_objects(
            image, boxes=boxes, points=points, point_labels=signs, multimask=single
        )
        self._go(replace(self.view, current=found[:1], prompts=prompts))

    def next_object(self) -> None:
        """Finishes the object that is being made; the next click begins another one."""
        if self.view.current is not None:
            finished = (*self.view.finished, self.view.current)
            prompts = Prompts(examples=self.view.prompts.examples)
            self._go(View(self.view.found, finished, None, prompts))

    # Back and away ---------------------------------------------------------------------

    def _go(self, view: View) -> None:
        self.past.append(self.view)
        del self.past[:-50]
        self.view = view

    def undo(self) -> bool:
        """Back by one step; False if there is none."""
        if not self.past:
            return False
        self.view = self.past.pop()
        return True

    def discard(self) -> None:
        """Everything away; ``undo`` brings it back."""
        if not self.view.is_empty:
            self._go(View())

    # Answers ---------------------------------------------------------------------------

    def shown(self, threshold: float, name: str | None = None) -> Instances | None:
        """What passes the threshold; objects that were pointed at always do.

        Args:
            name: the class of objects, and of what was shown by examples alone.
        """
        parts = []
        if self.view.found is not None:
            parts.append(_named(self.view.found.above(threshold), VISUAL, name))
        objects = [*self.view.finished, *([self.view.current] if self.view.current else [])]
        parts += [_named(replace(one, low_res=None), OBJECT, name) for one in objects]
        return join(parts) if parts else None

    def counts(self, threshold: float, name: str | None = None) -> dict[str, int]:
        """Instances of each class that pass the threshold; asked concepts that have none too."""
        asked = () if self.view.found is None else self.view.found.concepts
        out = Counter({name if c == VISUAL and name else c: 0 for c in asked})
        shown = self.shown(threshold, name)
        out.update(shown.labels if shown is not None else [])
        return dict(out)

    @property
    def presence(self) -> dict[str, float]:
        """Probability that each concept is in the image at all."""
        return {} if self.view.found is None else dict(self.view.found.concept_presence)


def _named(found: Instances, general: str, name: str | None) -> Instances:
    """Gives what has no word of its own a name."""
    if not name:
        return found
    return replace(found, labels=[name if label == general else label for label in found.labels])

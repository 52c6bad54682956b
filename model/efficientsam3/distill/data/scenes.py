"""Sticker scenes as training samples: made when asked for, never written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ...scenes.compose import Scene, World
from .sample import PhraseQuery, TrainingSample


def to_sample(scene: Scene) -> TrainingSample:
    """A scene as every other data set gives its images."""
    boxes = [placed.box for placed in scene.objects]
    return TrainingSample(
        key=str(scene.seed),
        image=scene.image,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        masks=tuple(o.mask for o in scene.objects),
        queries=tuple(PhraseQuery(q.phrase, q.objects, kind=q.kind) for q in scene.queries),
    )


class SceneSource:
    """Scenes by number; ``first``: the seed of number 0. Picklable, for workers."""

    def __init__(self, world: World, first: int = 0) -> None:
        self.world, self.first = world, first

    def __call__(self, number: int) -> TrainingSample:
        return to_sample(self.world.scene(self.first + number))


class Turns:
    """Several streams of scenes by turns: one of each, then the next of each."""

    def __init__(self, sources: Sequence[Callable[[int], TrainingSample]]) -> None:
        self.sources = tuple(sources)

    def __call__(self, number: int) -> TrainingSample:
        turn, which = divmod(number, len(self.sources))
        return self.sources[which](turn)

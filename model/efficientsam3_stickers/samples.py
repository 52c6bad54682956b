"""Scenes and clips as training data: generated on demand, never written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from efficientsam3.data.clip import TrainingClip
from efficientsam3.data.sample import TrainingSample
from efficientsam3.data.types import PhraseQuery

from .clips import make_clip
from .scenes import Scene, SceneGenerator


def to_training_sample(scene: Scene) -> TrainingSample:
    """A scene as a sample of training.

    Args:
        scene: The scene.
    """
    boxes = [obj.box for obj in scene.objects]
    return TrainingSample(
        key=str(scene.seed),
        image=scene.image,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        masks=tuple(obj.mask for obj in scene.objects),
        queries=tuple(PhraseQuery(q.phrase, q.objects, kind=q.kind) for q in scene.queries),
        photograph=False,
    )


@dataclass(frozen=True)
class SceneSource:
    """Scenes as samples, by number. It can be pickled for workers.

    Attributes:
        generator: The generator of the scenes.
        first_seed: Seed of number 0.
    """

    generator: SceneGenerator
    first_seed: int = 0

    def __call__(self, number: int) -> TrainingSample:
        """The sample of a number.

        Args:
            number: The number, from 0.
        """
        return to_training_sample(self.generator.scene(self.first_seed + number))


class Interleaved:
    """Several sources of samples in turns: number 0 of each, then number 1 of each.

    Args:
        sources: Each gives the sample of a number.
    """

    def __init__(self, sources: Sequence[Callable[[int], TrainingSample]]) -> None:
        self.sources = tuple(sources)

    def __call__(self, number: int) -> TrainingSample:
        """The sample of a number.

        Args:
            number: The number, from 0.
        """
        turn, which = divmod(number, len(self.sources))
        return self.sources[which](turn)


@dataclass(frozen=True)
class StickerClips:
    """Clips for training. It can be pickled for workers.

    Attributes:
        generator: The generator of the clips.
        length: Frames of a clip before it is cut; objects move as fast as in clips of this length.
        first_seed: Seed of clip 0.
        count: Number of clips.
    """

    generator: SceneGenerator
    length: int = 16
    first_seed: int = 0
    count: int = 1 << 40

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        """The name of a clip.

        Args:
            index: Index of the clip.
        """
        return f"clip {self.first_seed + index}"

    def cut(self, index: int, frames: int, random: np.random.Generator) -> TrainingClip:
        """Consecutive frames of a clip, from a random one on.

        Args:
            index: Index of the clip.
            frames: Number of frames.
            random: Source of random numbers.
        """
        seed = self.first_seed + index
        clip = make_clip(self.generator, seed, max(self.length, frames, 2))
        start = int(random.integers(len(clip) - frames + 1))
        shown = [clip.frame(t) for t in range(start, start + frames)]
        images, masks = tuple(f.image for f in shown), tuple(tuple(f.masks) for f in shown)
        return TrainingClip(self.key(index), images, masks)

"""Stage 3 with scenes of stickers among the data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from efficientsam3.data.sample import SampleSource
from efficientsam3.train.batches import Generated
from efficientsam3.train.recipes import stage3

from ..art import StickerArt
from ..concepts import SPLITS
from ..samples import SceneSource
from ..scenes import SceneGenerator


@dataclass(frozen=True)
class Options(stage3.Options):
    """Options of the recipe: those of stage 3, and of the scenes.

    Attributes:
        scenes: Scenes in an epoch; 0: none.
        size: Side of a scene in pixels.
    """

    scenes: int = 1000
    size: int = 504

    def sources(self) -> list[SampleSource]:
        """The data sets that the options name, and the scenes."""
        sources = super().sources()
        if self.scenes:
            generator = SceneGenerator(StickerArt.open(), SPLITS["train"], self.size)
            sources.append(Generated(SceneSource(generator), self.scenes))
        return sources


RECIPE = dataclasses.replace(
    stage3.RECIPE,
    name="stage3-stickers",
    about="stage3 with scenes of stickers among the data",
    options=Options(),
)

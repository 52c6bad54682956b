"""Contact sheets of scenes and clips, with outlined objects and their phrases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from efficientsam3.viz.contact_sheet import Cell, draw_grid
from efficientsam3.viz.overlay import COLORS, draw_masks

from .clips import make_clip

if TYPE_CHECKING:
    from .compositor import Mask, Pixels
    from .queries import Query
    from .scenes import SceneGenerator

SCENE_SIDE, FRAME_SIDE = 300, 200
"""Longer side of a scene and of a frame on their sheets, in pixels."""

LINES = 8
"""Phrases below a scene."""


def scene_sheet(
    generator: SceneGenerator, seed: int = 0, rows: int = 3, columns: int = 4
) -> Image.Image:
    """Draw scenes, each above phrases that are true of it and phrases that are not.

    Args:
        generator: The generator of the scenes.
        seed: Seed of the first scene; the next ones follow.
        rows: Rows of scenes.
        columns: Scenes in a row.
    """
    cells = []
    for number in range(rows * columns):
        scene = generator.scene(seed + number)
        positive, negative = _captions(scene.queries)
        shown = positive[: max(LINES // 2, LINES - len(negative))] + negative
        image = _outline(scene.image, [obj.mask for obj in scene.objects])
        cells.append(Cell(image, shown[:LINES]))
    return draw_grid(cells, columns=columns, side=SCENE_SIDE)


def clip_sheet(
    generator: SceneGenerator, seed: int = 0, rows: int = 4, columns: int = 8
) -> Image.Image:
    """Draw every second frame of clips, a clip in each row, above the clip's phrases.

    Args:
        generator: The generator of the clips.
        seed: Seed of the first clip; the next ones follow.
        rows: Number of clips.
        columns: Frames of a clip.
    """
    cells = []
    for number in range(rows):
        clip = make_clip(generator, seed + number, 2 * columns)
        positive, negative = _captions(clip.queries)
        for column in range(columns):
            frame = clip.frame(2 * column)
            phrases = (*positive[column : column + 1], *negative[column : column + 1])
            cells.append(Cell(_outline(frame.image, list(frame.masks)), phrases))
    return draw_grid(cells, columns=columns, side=FRAME_SIDE)


def _outline(image: Pixels, masks: Sequence[Mask]) -> Pixels:
    colors = [COLORS[i % len(COLORS)] for i in range(len(masks))]
    return draw_masks(image, masks, colors, fill=0)


def _captions(queries: Sequence[Query]) -> tuple[list[str], list[str]]:
    """Captions of true and of false phrases."""
    positive = [f"{q.phrase} ({len(q.objects)})" for q in queries if q.objects]
    return positive, [f"not {q.phrase}" for q in queries if not q.objects]

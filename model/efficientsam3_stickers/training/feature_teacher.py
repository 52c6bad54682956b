"""Stage 1 of the image encoder: its map tells what EfficientNet-Lite0 sees in the same images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sticker_teacher import WIDTH
from .teacher_files import ImageNetEncoder

HEADS = "teacher_heads"
"""Name of the heads in a model that is trained; a saved model has none."""


class TeacherHeads(nn.Module):
    """Maps the last map of an image encoder to the maps of the teacher, and objects to stickers.

    Args:
        trunk_width: Channels of the image encoder's map.
        width: Channels of tokens and queries.

    Attributes:
        token_sticker: Maps tokens averaged over an object to the vector of its sticker.
        query_sticker: Maps an object's query to the vector of its sticker.
    """

    def __init__(self, trunk_width: int, width: int) -> None:
        super().__init__()
        middle, last = ImageNetEncoder.WIDTHS
        self.middle = nn.Conv2d(trunk_width, middle, 1)
        self.last = nn.Conv2d(trunk_width, last, 1)
        self.token_sticker = nn.Linear(width, WIDTH)
        self.query_sticker = nn.Linear(width, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the teacher, as far as the student knows them.

        Args:
            x: (B, C, h, w).

        Returns:
            (B, 112, h, w) and (B, 1280, h / 2, w / 2), rounded up as the teacher rounds.
        """
        return self.middle(x), self.last(F.avg_pool2d(x, 2, ceil_mode=True))


class FeatureTeacher:
    """Compares the maps of some images of each batch with the teacher's.

    Args:
        rows: Images of a batch that are compared. The teacher sees most in those with few, large
            objects.
        weight: Weight of the term.
        teacher: The teacher; None: EfficientNet-Lite0.
    """

    def __init__(
        self, rows: Sequence[int], weight: float = 1.0, teacher: nn.Module | None = None
    ) -> None:
        self.rows, self.weight = list(rows), weight
        self.teacher = ImageNetEncoder() if teacher is None else teacher

    def __call__(self, heads: TeacherHeads, pixels: Tensor, encoded: Tensor) -> Tensor:
        """Mean cosine distance of the cells of both maps, and of the mean of the last one.

        Args:
            heads: The heads.
            pixels: (B, 3, R, R) in [-1, 1].
            encoded: (B, C, R / 16, R / 16) map of the image encoder.
        """
        middle, last = self.teacher(pixels[self.rows])
        own_middle, own_last = heads(encoded[self.rows])
        pairs = [
            (own_middle, middle),
            (own_last, last),
            (own_last.mean((2, 3)), last.mean((2, 3))),
        ]
        distances = [1 - F.cosine_similarity(a.float(), b, dim=1).mean() for a, b in pairs]
        return torch.stack(distances).mean()

"""Which concepts look similar: hard negatives, and concepts that are no fair negatives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from .concepts import Concept

SIDE = 18
"""Side of the thumbnails that are compared, in pixels."""

MAX_NEAR = 12
MAX_NEAR_OF_SUBGROUP = 6
"""Hard negatives of a concept, and how many of them are chosen from its own subgroup first."""

TWIN_DISTANCE = 0.02
"""Mean difference of color and alpha, of 1, below which two stickers look the same."""


class SimilarityIndex:
    """Compares concepts by their stickers in all styles that both have.

    Args:
        count: Number of concepts.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._thumbnails: dict[str, NDArray[np.float32]] = {}

    def add(self, index: int, style: str, sticker: NDArray[np.uint8]) -> None:
        """Add a sticker.

        Args:
            index: Index of its concept.
            style: Its style.
            sticker: (S, S, 4) RGBA, straight alpha.
        """
        if style not in self._thumbnails:
            self._thumbnails[style] = np.full((self.count, SIDE, SIDE, 4), np.nan, np.float32)
        step = sticker.shape[0] // SIDE
        values = sticker.astype(np.float32) / 255
        values[..., :3] *= values[..., 3:]
        self._thumbnails[style][index] = values.reshape(SIDE, step, SIDE, step, 4).mean((1, 3))

    def compare(
        self, concepts: Sequence[Concept], shown: Sequence[int]
    ) -> Iterator[tuple[int, list[str], list[str]]]:
        """Find the concepts that look like each one.

        Args:
            concepts: All concepts.
            shown: Indices of those that have a sticker.

        Yields:
            Index of the concept, names of hard negatives with the most similar first, and names
            of twins, in the order of ``shown``.
        """
        mean, minimum = self._distances(shown)
        for row, i in enumerate(shown):
            concept = concepts[i]
            alike = np.flatnonzero(minimum[row] < TWIN_DISTANCE).tolist()
            twins = {concepts[shown[j]].name for j in alike}
            twins = (twins | set(concept.twins)) & {concepts[j].name for j in shown}
            twins.discard(concept.name)
            others = []
            for j in np.argsort(mean[row], kind="stable").tolist():
                other = concepts[shown[j]]
                related = concept.is_called(other.name) or other.is_called(concept.name)
                if shown[j] != i and other.name not in twins and not related:
                    others.append(other)
            near = [o.name for o in others if o.subgroup == concept.subgroup][:MAX_NEAR_OF_SUBGROUP]
            near += [o.name for o in others if o.name not in near][: MAX_NEAR - len(near)]
            yield i, near, sorted(twins)

    def _distances(self, shown: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and minimum over shared styles, each (n, n) in [0, 1]; infinite without any."""
        n = len(shown)
        total, count = np.zeros((n, n), np.float32), np.zeros((n, n), np.float32)
        minimum = np.full((n, n), np.inf, np.float32)
        for thumbnails in self._thumbnails.values():
            rows = thumbnails[list(shown)].reshape(n, -1)
            mirrored = thumbnails[list(shown)][:, :, ::-1].reshape(n, -1)
            for i in range(n):
                # Scenes mirror stickers, so the more similar of the two counts.
                distance = np.minimum(
                    np.abs(rows - rows[i]).mean(1), np.abs(mirrored - rows[i]).mean(1)
                )
                both = ~np.isnan(distance)
                total[i, both] += distance[both]
                count[i, both] += 1
                minimum[i, both] = np.minimum(minimum[i, both], distance[both])
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(count > 0, total / count, np.inf)
        return mean.astype(np.float32), minimum

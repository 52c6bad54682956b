"""Worlds of objects whose masks are known on each frame, and a tracker that sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from efficientsam3.types import Array, Instances
from efficientsam3.video.concept_tracker import ConceptTracker
from efficientsam3.video.settings import TrackSettings
from efficientsam3.video.types import TrackedFrame

from .scripted import ScriptedMemory, ScriptedModel, block, frames, instances

GRID = (48, 64)
NOW = TrackSettings(hotstart_delay=0)

World = Callable[[int], dict[str, Array]]
"""Frame -> masks by name, "<concept> <number>"."""


class Oracle(ScriptedMemory):
    """Tracks each given object perfectly, while it is in the world."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.names: dict[int, str] = {}

    def see(self, frame: int, id: int) -> tuple[Array, float]:
        mask = self.world(frame).get(self.names.get(id, ""))
        if mask is None or not mask.any():
            return np.full(GRID, -1024.0), -5.0
        return np.where(mask, 5.0, -5.0), 5.0

    def add_masks(
        self, frame: int, features: Any, ids: list[int], masks: Any, shared: str | None = None
    ) -> Any:
        for id, mask in zip(ids, masks.numpy(), strict=True):
            rows, columns = (np.arange(g) * n // g for g, n in zip(GRID, mask.shape, strict=True))
            small = mask[np.ix_(rows, columns)]
            near = {n: (small & m).sum() / (small | m).sum() for n, m in self.world(frame).items()}
            self.names.setdefault(id, max(near, key=near.get, default=""))
        return super().add_masks(frame, features, ids, masks)


def detect(world: World, score: float = 0.9) -> Callable[[int], Instances]:
    """A detector that finds everything in the world."""

    def script(t: int) -> Instances:
        there = {n: m for n, m in world(t).items() if m.any()}
        labels = [name.split()[0] for name in there]
        return instances(list(there.values()), labels, score, size=(60, 80), logits=True)

    return script


def follow(
    world: World,
    count: int,
    concepts: list[str],
    script: Callable[[int], Instances] | None = None,
    **options: Any,
) -> list[TrackedFrame]:
    model = ScriptedModel(script or detect(world))
    options = {"settings": NOW, **options}
    tracker = ConceptTracker(model, concepts, tracker=Oracle(world), **options)
    out = [done for frame in frames(count) for done in tracker.step(frame)]
    return out + tracker.flush()


def ids(out: list[TrackedFrame]) -> list[list[int]]:
    return [f.instances.track_ids.tolist() for f in out]


def at(y: int, x: int, high: int = 10, wide: int = 10) -> Array:
    return block(y, x, high, wide, GRID)


def crossing(t: int) -> dict[str, Array]:
    left, right = at(10, 2 + 3 * t, 20, 8), at(12, 50 - 3 * t, 20, 8)
    return {"cat 0": left & ~right, "cat 1": right}

"""A clip written down: what a detector finds and a tracker sees in each frame.

It is drawn from a seed by ``random.Random.random`` alone, which gives the same numbers
everywhere, so that upstream's code and ours can be driven by the same clip. Blobs move over the
image, cover each other, leave and return; detections of them are missed, weak, doubled or wrong,
masks have holes and specks, and the tracker drifts, or takes the one in front for the one behind.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

SIDE = 96
"""Rows and columns of mask logits."""
SIZE = (120, 160)
"""Rows and columns of the video."""
FRAMES = 36
BLOBS = 5


@dataclass(frozen=True)
class Detection:
    """blob: what it is of; -1: nothing."""

    blob: int
    score: float
    logits: Array


@dataclass(frozen=True)
class Seen:
    """What the tracker says of a blob. presence: a logit."""

    presence: float
    logits: Array


class ClipScript:
    """The clip of a seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed).random
        self._paths = [self._path() for _ in range(BLOBS)]
        self._habits = [self._habit() for _ in range(BLOBS)]
        self.detections = [self._detect(t) for t in range(FRAMES)]
        self._seen = [[self._track(t, b) for b in range(BLOBS)] for t in range(FRAMES)]

    def seen(self, frame: int, blob: int, nth: int) -> Seen:
        """What the tracker says of the ``nth`` object (0, 1, ...) that began as a blob."""
        if blob < 0:
            return self._ghost(frame, nth)
        said = self._seen[frame][blob]
        if not nth:
            return said
        # A double sees the same, a little aside.
        return Seen(said.presence - 0.3, np.roll(said.logits, nth, 1) - np.float32(0.23 * nth))

    def _ghost(self, frame: int, nth: int) -> Seen:
        """What the tracker says of an object that never was: now and then a block somewhere."""
        logits = np.full((SIDE, SIDE), -1024, np.float32)
        if (frame + nth) % 3:
            return Seen(-3.0, logits)
        y, x = 7 * nth % 80, 31 * nth % 80
        logits[y : y + 9, x : x + 11] = 2
        return Seen(1.0, logits)

    # Drawing ---------------------------------------------------------------------------

    def _pick(self, low: float, high: float) -> float:
        return low + (high - low) * self._draw()

    def _path(self) -> list[tuple[float, float, float, float]]:
        """Top, left, height and width in each frame."""
        y, x = self._pick(0, SIDE - 20), self._pick(0, SIDE - 20)
        dy, dx = self._pick(-1.5, 1.5), self._pick(-2.5, 2.5)
        high, wide = self._pick(10, 34), self._pick(10, 34)
        return [(y + dy * t, x + dx * t, high, wide) for t in range(FRAMES)]

    def _habit(self) -> dict[str, float]:
        return {
            "from": self._pick(-10, 18),
            "until": self._pick(20, 1.6 * FRAMES),
            "missed": self._pick(0, 0.6) ** 2,
            "score": self._pick(0.55, 0.98),
            "double": 0.1 if self._draw() < 0.35 else 0.0,
            "drift": self._pick(0, 9) if self._draw() < 0.4 else 0.0,
            "strength": self._pick(1.5, 7),
        }

    def _there(self, t: int, blob: int) -> bool:
        return self._habits[blob]["from"] <= t <= self._habits[blob]["until"]

    def _detect(self, t: int) -> list[Detection]:
        found = []
        for blob, habit in enumerate(self._habits):
            missed, doubled = self._draw() < habit["missed"], self._draw() < habit["double"]
            score = min(0.98, max(0.51, habit["score"] + self._pick(-0.15, 0.15)))
            score += 0.0013 * blob  # no two are alike
            shift = self._pick(-1.5, 1.5)
            if missed or not self._there(t, blob):
                continue
            y, x, high, wide = self._paths[blob][t]
            found.append(Detection(blob, score, self._paint(y, x + shift, high, wide, 5.0)))
            if doubled:  # a part of it, beside
                part = self._paint(y + 0.8 * high, x + 0.7 * wide, high, wide, 4.0)
                found.append(Detection(blob, 0.5 + score / 2.5 - 0.1, part))
        if self._draw() < 0.05:
            where = self._pick(0, SIDE - 12), self._pick(0, SIDE - 12)
            found.append(Detection(-1, self._pick(0.5, 0.95), self._paint(*where, 9, 9, 3.0)))
        order = sorted((self._draw(), i) for i in range(len(found)))
        return [found[i] for _, i in order]

    def _track(self, t: int, blob: int) -> Seen:
        habit = self._habits[blob]
        wobble, lost, confused = self._pick(-1, 1), self._draw() < 0.05, self._draw() < 0.06
        presence = self._pick(0.2, 9)
        if lost or not self._there(t, blob):
            return Seen(-presence, np.full((SIDE, SIDE), -1024, np.float32))
        at = blob
        if confused:  # it takes another, that is near, for its own
            at = min(
                (b for b in range(BLOBS) if b != blob and self._there(t, b)),
                key=lambda b: abs(self._paths[b][t][1] - self._paths[blob][t][1]),
                default=blob,
            )
        y, x, high, wide = self._paths[at][t]
        drift = habit["drift"] * t / FRAMES if at == blob else 0
        return Seen(presence, self._paint(y + wobble, x + drift, high, wide, habit["strength"]))

    def _paint(self, y: float, x: float, high: float, wide: float, strength: float) -> Array:
        """A rounded block, with a hole and a speck now and then."""
        rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
        down = np.abs(rows - np.float32(round(y + high / 2))) - np.float32(round(high / 2))
        across = np.abs(columns - np.float32(round(x + wide / 2))) - np.float32(round(wide / 2))
        # No value is 0, and none lies half-way to another: rounding decides nothing.
        logits = np.clip(0.137 - np.maximum(down, across) / 2, -1, 1) * np.float32(strength)
        if self._draw() < 0.4:
            self._dot(logits, y + high / 2, x + wide / 2, -0.6)
        if self._draw() < 0.4:
            self._dot(logits, y - 6, x - 5, 0.8)
        return logits.astype(np.float32)

    def _dot(self, logits: Array, y: float, x: float, value: float) -> None:
        top, left = round(y), round(x)
        high, wide = (2, 1) if self._draw() < 0.6 else (3, 2)
        logits[max(top, 0) : max(top + high, 0), max(left, 0) : max(left + wide, 0)] = value

"""What ``kill_points.py`` counts, in a file to which each run adds."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from efficientsam3.io.atomic import replacing


@dataclass
class Counts:
    """What became of the points of a command.

    Attributes:
        points: How many there were of each kind.
        undisturbed: Runs that ended before their point.
        wrong: What was wrong.
        seconds: How long it took.
    """

    points: Counter[str] = field(default_factory=Counter)
    undisturbed: int = 0
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        """Points that were tried, those behind the end of a run included."""
        return self.points.total() + self.undisturbed

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} by {kind}" for kind, n in sorted(self.points.items()))
        wrong = len(self.wrong)
        return f"{self.points.total()} points ({kinds}) in {self.seconds:.0f} s, {wrong} wrong"


class Session:
    """The points of one command in one run of the script, added to those of earlier runs.

    Args:
        name: Name of the command.
        points: How many points are enough, with those of earlier runs.
        seconds: How long this run may take.
        file: File of the counts of all commands; None: nothing is kept.
    """

    def __init__(self, name: str, points: int, seconds: float, file: Path | None) -> None:
        self.name, self.points, self.file = name, points, file
        self.counts = read_counts(file).get(name, Counts())
        self.before, self.started, self.seconds = self.counts.seconds, time.monotonic(), seconds

    def is_over(self) -> bool:
        """Keep the counts, and say whether there are enough points or the time is over."""
        spent = time.monotonic() - self.started
        self.counts.seconds = self.before + spent
        if self.file is not None:
            kept = {name: vars(c) for name, c in read_counts(self.file).items()}
            kept[self.name] = vars(self.counts)
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps(kept, indent=1))
        # Where nearly no run reaches its point, there is an end too.
        is_enough = self.counts.points.total() >= self.points
        return is_enough or spent > self.seconds or self.counts.undisturbed >= self.points + 20


def read_counts(file: Path | None) -> dict[str, Counts]:
    """The counts of each command in a file; none where there is no file."""
    if file is None or not file.exists():
        return {}
    return {
        name: Counts(**{**kept, "points": Counter(kept["points"])})
        for name, kept in json.loads(file.read_text()).items()
    }

"""Kinds that do what the harness must find: ``python -m tests.fuzz.faulty FOLDER``."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from efficientsam3.errors import EfficientSam3Error

from . import runner
from .runner import Case, Kind, fuzz


class Faulty(Kind):
    """Writes a file, and does something with it.

    Args:
        act: Called with the file.
    """

    name = "faulty"

    def __init__(self, act: Callable[[Path], object]) -> None:
        self.act = act

    def make(self, random: Random) -> int:
        return random.randrange(10**6)

    def check(self, value: int, case: Case) -> None:
        path = case.write("input", b"1")
        case.seal()
        self.act(path)


def spin(path: Path) -> None:
    while True:
        pass


def refuse(path: Path) -> None:
    raise EfficientSam3Error("a sentence")


def give_wrong_answer(path: Path) -> None:
    assert path.read_bytes() == b"2", "another answer"


PROBLEMS: dict[str, Callable[[Path], object]] = {
    "exception": lambda path: {}["missing"],
    "crash": lambda path: ctypes.string_at(0),
    "time": spin,
    "memory": lambda path: bytearray(4 * runner.MEMORY),
    "changed file": lambda path: path.write_bytes(b"2"),
    "wrong answer": give_wrong_answer,
}


def main(failures: Path) -> None:
    """Run two inputs of each problem, and print what the harness found."""
    whole = runner.CPU_SECONDS
    for problem, act in PROBLEMS.items():
        runner.CPU_SECONDS = 0.5 if act is spin else whole
        outcome = fuzz(Faulty(act), seed=0, count=2, failures=failures)
        assert outcome.inputs == 2
        assert [f.problem for f in outcome.findings] == [problem] * 2, (problem, outcome)
        print(problem)
    outcome = fuzz(Faulty(refuse), seed=0, count=3)
    assert (outcome.inputs, outcome.answers, outcome.findings) == (3, 0, [])
    outcome = fuzz(Faulty(lambda path: None), seed=0, count=3)
    assert (outcome.inputs, outcome.answers, outcome.findings) == (3, 3, [])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

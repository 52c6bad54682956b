"""Fuzzing: ``python -m tests.fuzz --seconds 60``, ``--count 500``, or one input of one kind."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .kinds import ALL
from .runner import Case, Outcome, fuzz, inputs


def main(arguments: list[str] | None = None) -> int:
    """Run the command; gives 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", action="append", choices=list(ALL), help="only these kinds")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--start", type=int, default=0, help="index of the first input")
    parser.add_argument("--count", type=int, help="inputs of each kind")
    parser.add_argument("--seconds", type=float, help="time of all kinds together")
    parser.add_argument("--index", type=int, help="one input, in this process, with its traceback")
    parser.add_argument(
        "--failures",
        type=Path,
        default=Path("out/fuzz"),
        help="where inputs with findings are kept",
    )
    given = parser.parse_args(arguments)
    names = given.kind or list(ALL)
    if given.index is not None:
        return repeat(names[0], given.seed, given.index)
    count = given.count if given.count or given.seconds else 500
    wrong = 0
    print(f"{'kind':20} {'inputs':>8} {'answers':>8} {'seconds':>8} {'findings':>8}", flush=True)
    for name in names:
        seconds = None if given.seconds is None else given.seconds / len(names)
        outcome = fuzz(
            ALL[name](),
            seed=given.seed,
            start=given.start,
            count=count,
            seconds=seconds,
            failures=given.failures,
        )
        report(outcome)
        wrong += len(outcome.findings)
    return 1 if wrong else 0


def report(outcome: Outcome) -> None:
    """Print a row of the table, and each cause of findings once."""
    print(
        f"{outcome.kind:20} {outcome.inputs:8,} {outcome.answers:8,} {outcome.seconds:8.1f} "
        f"{len(outcome.findings):8,}",
        flush=True,
    )
    causes: dict[str, list[str]] = {}
    for finding in outcome.findings:
        causes.setdefault(finding.cause, []).append(str(finding))
    for texts in causes.values():
        print(f"  {len(texts)} x {texts[0]}", flush=True)


def repeat(name: str, seed: int, index: int) -> int:
    """Run one input in this process; an error shows its traceback."""
    import tempfile

    kind = ALL[name]()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        shared, case = Path(folder, "shared"), Case(Path(folder, "now"))
        shared.mkdir()
        case.inputs.mkdir(parents=True)
        kind.prepare(shared)
        ((_, value),) = inputs(kind, seed, index, index + 1)
        print(f"input: {value!r:.2000}")
        kind.check(value, case)
        print("an answer")
        os.chdir("/")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fuzzing: ``python -m tests.fuzz --seconds 60``, ``--count 500``, or one input of one kind."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from efficientsam3.io.atomic import replacing

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
        "--results", type=Path, help="a file of counts, to which this run adds further inputs"
    )
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
    earlier = Totals(given.results)
    for name in names:
        seconds = None if given.seconds is None else given.seconds / len(names)
        outcome = fuzz(
            ALL[name](),
            seed=given.seed,
            start=given.start + earlier.inputs(name, given.seed),
            count=count,
            seconds=seconds,
            failures=given.failures,
        )
        report(outcome)
        earlier.add(outcome, given.seed)
        wrong += len(outcome.findings)
    return 1 if wrong else 0


class Totals:
    """The counts of all runs, in a file.

    Args:
        file: The file; None: nothing is kept.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.kinds: dict[str, Any] = {}
        if file is not None and file.exists():
            self.kinds = json.loads(file.read_text())

    def inputs(self, kind: str, seed: int) -> int:
        """How many inputs of a kind ran before.

        Args:
            kind: Name of the kind.
            seed: Seed of the inputs.
        """
        return self.kinds.get(f"{kind} {seed}", {}).get("inputs", 0)

    def add(self, outcome: Outcome, seed: int) -> None:
        """Add the counts of a run.

        Args:
            outcome: What became of the inputs.
            seed: Seed of the inputs.
        """
        if self.file is None:
            return
        kept = self.kinds.setdefault(f"{outcome.kind} {seed}", {})
        for name in ("inputs", "answers", "seconds"):
            kept[name] = kept.get(name, 0) + getattr(outcome, name)
        kept["findings"] = [*kept.get("findings", []), *map(str, outcome.findings)]
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps(self.kinds, indent=1))


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

"""What the benchmarks share: how they speak, and tables of the README."""

from __future__ import annotations

import sys
from pathlib import Path

from efficientsam3.io.atomic import replacing


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def put_table(text: str, path: Path, start: str, end: str) -> None:
    """Write a table between the markers of a Markdown file."""
    before, opening, rest = path.read_text().partition(start)
    _, closing, after = rest.partition(end)
    if not opening or not closing:
        sys.exit(f"{path} has no {start} and {end} to put the table between")
    with replacing(path) as temporary:
        temporary.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}")

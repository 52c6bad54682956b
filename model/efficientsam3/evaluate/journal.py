"""Predictions as they are made, in a file that a later run goes on with.

A line of JSON each picture, after a first line that says which model and ground truth it is of. A
run that was stopped leaves at most its last line unfinished; that picture is done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..lines import FORMAT, LineFile, whole
from .errors import PredictionError, ResumeError
from .records import Record


class Entry(NamedTuple):
    """What is known of one picture: its predictions, or why there are none."""

    picture: str
    predictions: list[Record]
    failed: str


class Journal(LineFile):
    """The file that a run writes.

    Args:
        path: ends in .jsonl. identity: of model, prompts and ground truth, as plain values.
        restart: begin anew, whatever is there.

    Attributes:
        done: pictures that need not be done again.

    Raises:
        ResumeError: the file is of another model, or of other prompts or ground truth.
    """

    what, wrong, other = "predictions", PredictionError, ResumeError

    def __init__(self, path: str | Path, identity: Record, *, restart: bool = False) -> None:
        self.done: set[str] = set()
        super().__init__(path, identity, restart=restart)

    def _known(self, record: Record) -> None:
        # What failed is tried again: the picture may be there now.
        if not record.get("failed"):
            self.done.add(str(record.get("picture")))

    def add(self, picture: str, predictions: Iterable[Record]) -> None:
        """Write what was found in one picture; a stop after this loses nothing of it."""
        self._write({"picture": picture, "predictions": list(predictions)})
        self.done.add(picture)

    def fail(self, picture: str, reason: str) -> None:
        """Write why a picture has no predictions."""
        self._write({"picture": picture, "failed": reason})


def read_identity(path: Path) -> Record:
    """What a file's predictions were made of and with.

    Raises:
        PredictionError: there is no such file, or it is another's.
    """
    try:
        with path.open("rb") as file:
            head = whole(file.readline())
    except FileNotFoundError as error:
        raise PredictionError(f"there is no file {path}") from error
    if head is None or head.get("format") != FORMAT or not isinstance(head.get("identity"), dict):
        raise PredictionError(f"{path} is no file of predictions that this version reads")
    identity: Record = head["identity"]
    return identity


def read_journal(path: Path) -> Iterator[Entry]:
    """The entries of a file, whole ones only; raises as ``read_identity``."""
    read_identity(path)
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            record = whole(line)
            if record is None:
                if file.read(1):
                    raise PredictionError(f"{path}, line {number} is damaged: it is no JSON")
                return  # the picture that a run was stopped at
            yield Entry(
                str(record.get("picture")),
                record.get("predictions") or [],
                str(record.get("failed") or ""),
            )

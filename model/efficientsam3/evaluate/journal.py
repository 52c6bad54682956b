"""Predictions as they are made, in a file that a later run goes on with.

A line of JSON each picture, after a first line that says which model and ground truth it is of. A
run that was stopped leaves at most its last line unfinished; that picture is done again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from .errors import PredictionError, ResumeError
from .records import Record

FORMAT = 1
SUFFIX = ".jsonl"
HEAD = b'{"format": '


class Entry(NamedTuple):
    """What is known of one picture: its predictions, or why there are none."""

    picture: str
    predictions: list[Record]
    failed: str


class Journal:
    """The file that a run writes.

    Args:
        path: ends in .jsonl. identity: of model, prompts and ground truth, as plain values.
        restart: begin anew, whatever is there.

    Attributes:
        done: pictures that need not be done again.

    Raises:
        ResumeError: the file is of another model, or of other prompts or ground truth.
    """

    def __init__(self, path: str | Path, identity: Record, *, restart: bool = False) -> None:
        self.path = Path(path)
        if self.path.suffix != SUFFIX:
            raise PredictionError(f"a run writes its predictions to a {SUFFIX} file; got {path}")
        self.identity: Record = json.loads(json.dumps(identity))  # as the file gives it back
        self.done: set[str] = set()
        end = 0 if restart else self._resume()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if end else "wb")
        if self._file.seek(0, 2) > end:
            self._file.truncate(end)
            self._file.seek(end)
        if not end:
            self._write({"format": FORMAT, "identity": self.identity})

    def _resume(self) -> int:
        """Where whole lines end; 0 if there is nothing to go on with."""
        if not self.path.exists():
            return 0
        end = 0
        with self.path.open("rb") as file:
            first = file.readline()
            if first and not (first.startswith(HEAD) or HEAD.startswith(first)):
                raise ResumeError(f"{self.path} is no file of predictions; name another")
            head = _whole(first)
            if head is None:
                return 0
            self._same(head)
            end = len(first)
            for line in file:
                record = _whole(line)
                if record is None:
                    break
                # What failed is tried again: the picture may be there now.
                if not record.get("failed"):
                    self.done.add(str(record.get("picture")))
                end += len(line)
        return end

    def _same(self, head: Record) -> None:
        old, new = head.get("identity"), self.identity
        if head.get("format") != FORMAT or not isinstance(old, dict):
            raise ResumeError(f"{self.path} is no file of predictions that this version reads")
        told = [
            f"{key} was {_brief(old.get(key))} and is {_brief(new.get(key))}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        if told:
            raise ResumeError(
                f"{self.path} holds predictions of another run: {', '.join(told)}. Restart it "
                "(--restart, restart=True), or name another file"
            )

    def add(self, picture: str, predictions: Iterable[Record]) -> None:
        """Write what was found in one picture; a stop after this loses nothing of it."""
        self._write({"picture": picture, "predictions": list(predictions)})
        self.done.add(picture)

    def fail(self, picture: str, reason: str) -> None:
        """Write why a picture has no predictions."""
        self._write({"picture": picture, "failed": reason})

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def read_identity(path: Path) -> Record:
    """What a file's predictions were made of and with.

    Raises:
        PredictionError: there is no such file, or it is another's.
    """
    try:
        with path.open("rb") as file:
            head = _whole(file.readline())
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
            record = _whole(line)
            if record is None:
                if file.read(1):
                    raise PredictionError(f"{path}, line {number} is damaged: it is no JSON")
                return  # the picture that a run was stopped at
            yield Entry(
                str(record.get("picture")),
                record.get("predictions") or [],
                str(record.get("failed") or ""),
            )


def _whole(line: bytes) -> Record | None:
    """A line's record; None if it was cut."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."

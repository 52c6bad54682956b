"""Files of JSON lines that a run writes as it goes, and that a later run goes on with.

The first line says what the others are of. A run that was killed leaves at most its last line
unfinished; that part is done again.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

Record = dict[str, Any]
Self = TypeVar("Self", bound="LineFile")  # typing has it from 3.11

FORMAT = 1
SUFFIX = ".jsonl"
HEAD = b'{"format": '


class LineFile(ABC):
    """The file that a run writes.

    Args:
        path: ends in .jsonl. identity: what must be the same for a run to go on, plain values.
        head: more for the first line. restart: begin anew, whatever is there.

    Raises:
        ``other``: the file is another's, or of another run. ``wrong``: its name.
    """

    what = "records"
    """Of the lines, for messages."""
    wrong: type[Exception] = ValueError
    other: type[Exception] = ValueError

    def __init__(
        self, path: str | Path, identity: Record, head: Record | None = None, *, restart: bool
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != SUFFIX:
            raise self.wrong(f"a run writes its {self.what} to a {SUFFIX} file; got {path}")
        self.identity: Record = json.loads(json.dumps(identity))  # as the file gives it back
        end = 0 if restart else self._resume()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("r+b" if end else "wb")
        if self._file.seek(0, 2) > end:
            self._file.truncate(end)
            self._file.seek(end)
        if not end:
            self._write({"format": FORMAT, "identity": self.identity, **(head or {})})

    @abstractmethod
    def _known(self, record: Record) -> None:
        """Take note of a line that is there already."""

    def _resume(self) -> int:
        """Where whole lines end; 0 if there is nothing to go on with."""
        if not self.path.exists():
            return 0
        with self.path.open("rb") as file:
            first = file.readline()
            if first and not (first.startswith(HEAD) or HEAD.startswith(first)):
                raise self.other(
                    f"{self.path} is no file of {self.what}; name another, or restart it "
                    "(--restart)"
                )
            head = whole(first)
            if head is None:
                return 0
            end, second = len(first), file.readline()
            if not second.endswith(b"\n"):
                return 0  # whatever run began it has done nothing yet
            self._same(head)
            for line in chain((second,), file):
                record = whole(line)
                if record is None:
                    break
                self._known(record)
                end += len(line)
        return end

    def _same(self, head: Record) -> None:
        old, new = head.get("identity"), self.identity
        if head.get("format") != FORMAT or not isinstance(old, dict):
            raise self.other(
                f"{self.path} is no file of {self.what} that this version reads; name another, or "
                "restart it (--restart)"
            )
        told = [
            f"{key} was {_brief(old.get(key))} and is {_brief(new.get(key))}"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
        if told:
            raise self.other(
                f"{self.path} holds {self.what} of another run: {', '.join(told)}. Restart it "
                "(--restart, restart=True), or name another file"
            )

    def _write(self, record: Record) -> None:
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def whole(line: bytes) -> Record | None:
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
    return text if len(text) <= 60 else f"{text[:24]}...{text[-24:]}"

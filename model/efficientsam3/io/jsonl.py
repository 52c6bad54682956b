"""Run files: JSON lines that a long run writes as it goes, and that a later run continues.

The first line, the head, says what was asked: arguments, model weights and source as plain values.
Each further line is a record of finished work.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import RunFileError

Record = dict[str, Any]
Self = TypeVar("Self", bound="RunFile")  # typing has Self from Python 3.11

SUFFIX = ".jsonl"
FORMAT = "efficientsam3-run-1"
START = b'{"format": "efficientsam3-run-'
"""The first bytes of every run file, whatever its version."""

DAMAGED_LINE = "Delete the line, or start again (--restart, restart=True)"
"""What to do about a damaged line."""

logger = logging.getLogger(__name__)


class RunFile:
    """The run file that a run writes.

    A run that is started with an existing run file continues it: complete records are kept, and
    the unfinished last line of a killed run is cut off. Where a value in ``asked`` differs from
    that of the earlier run, one logged sentence names the old and the new value, and the run starts
    again; the earlier file is renamed to ``<path>.previous``. Nothing on the disk changes before
    the first record is written.

    Records of independent inputs, such as images, are written by ``add`` and ``fail``; ``pending``
    says which inputs are still to be done. Other records are written by ``write``.

    Args:
        path: A file whose name ends in .jsonl. Missing folders are created.
        kind: What the records are, a plural noun for messages: "predictions", "tracks".
        asked: All that decides the results and is the same for all records: arguments, identities
            of the weights and of the source (see ``identity``). Values that JSON can hold.
        head: More values for the first line that readers need and that may change.
        restart: Start again, whatever an earlier run has finished.

    Attributes:
        path: The file.
        head: The content of the first line: "format", "kind", "asked", and the keys of ``head``.
        resumed: Whether records of an earlier run are continued.
        inputs: The last record of each input without its "result", by name.

    Raises:
        RunFileError: the file is not a run file, or one of another kind or version, or is damaged
            before its last line. It is left as it is, also with ``restart``.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        asked: Mapping[str, Any],
        *,
        head: Mapping[str, Any] | None = None,
        restart: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix != SUFFIX:
            raise RunFileError(f"{kind} are written to a file whose name ends in {SUFFIX}: {path}")
        self.kind = kind
        self.head = _plain({"format": FORMAT, "kind": kind, "asked": asked, **(head or {})})
        self.inputs: dict[str, Record] = {}
        self._offsets: dict[str, int] = {}
        self._end = 0  # of the complete records that are kept; 0: the file is written anew
        self._backup: Path | None = None
        self._file: BinaryIO | None = None
        if self.path.exists():
            self._read_earlier(restart)
        self.resumed = self._end > 0

    def write(self, record: Record) -> None:
        """Write one record. A stop of the program after this call loses nothing of it.

        Args:
            record: Values that JSON can hold.
        """
        file = self._open()
        offset = file.tell()
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        self._index(record, offset)

    def add(self, name: str, result: Any, /, *, identity: Any = None, **fields: Any) -> None:
        """Write the result of one input; it replaces an earlier one of this input.

        Args:
            name: The input's name, unique within the run.
            result: Plain values. They are read back by ``result`` and do not stay in memory.
            identity: What tells whether the input has changed (see ``identity``).
            fields: Further small values that stay in memory, in ``inputs``.
        """
        self.write({"input": name, "identity": identity, **fields, "result": result})

    def fail(self, name: str, reason: str, /, *, identity: Any = None) -> None:
        """Write why one input has no result. A later run tries it again.

        Args:
            name: The input's name, unique within the run.
            reason: One sentence.
            identity: What tells whether the input has changed (see ``identity``).
        """
        self.write({"input": name, "identity": identity, "failed": reason})

    def pending(self, inputs: Mapping[str, Any]) -> list[str]:
        """The inputs that are still to be done, in order.

        One logged sentence says how many have changed since they were done.

        Args:
            inputs: The identity of each input, by name.
        """
        changed, pending = [], []
        for name, new in inputs.items():
            earlier = self.inputs.get(name)
            if earlier is not None and "failed" not in earlier:
                if earlier["identity"] == _plain(new):
                    continue
                changed.append(name)
            pending.append(name)
        if changed:
            first = changed[0]
            logger.warning(
                "%s: %d of %d inputs changed after the earlier run and are done again, the first "
                "of them %s: %s",
                *(self.path, len(changed), len(inputs), first),
                describe_changes(self.inputs[first]["identity"], inputs[first]),
            )
        return pending

    def result(self, name: str) -> Any:
        """Read the result of an input from the file.

        Args:
            name: The name of an input that has a result.
        """
        file = self._open()
        end = file.tell()
        file.seek(self._offsets[name])
        line = file.readline()
        file.seek(end)
        return json.loads(line).get("result")

    def note(self, record: Record) -> None:
        """Called with each record: those of the earlier run first, then those that are written.

        Subclasses override it to keep track of more than ``inputs``.

        Args:
            record: The record.

        Raises:
            RunFileError: The record lacks what this kind of records has.
        """

    def _read_earlier(self, restart: bool) -> None:
        """Check the file that exists, and read its records if the run continues it."""
        with self.path.open("rb") as file:
            head = _check_head(self.path, self.kind, file, any_version=restart)
            end = file.tell()
            if restart or head is None or (_parse(file.readline()) is None and not file.read(1)):
                return  # an earlier run that finished nothing is replaced without a word
            changes = describe_changes(head["asked"], self.head["asked"])
            if not changes:
                self.head, self._end = head, end
                file.seek(end)
                for offset, record, end in _read(self.path, file):
                    self._index(record, offset)
                    self._end = end
                return
        self._backup = self.path.with_name(f"{self.path.name}.previous")
        logger.warning(
            "%s: %s. The run starts again; the earlier records are kept in %s",
            *(self.path, changes, self._backup),
        )

    def _open(self) -> BinaryIO:
        """The file, open for reading and at its end for writing."""
        if self._file is None:
            if self._backup is not None:
                os.replace(self.path, self._backup)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if self._end else "w+b")
            if self._end:
                self._file.truncate(self._end)
                self._file.seek(self._end)
            else:
                self._file.write(json.dumps(self.head).encode() + b"\n")
        return self._file

    def _index(self, record: Record, offset: int) -> None:
        if "input" in record:
            name = record["input"]
            self.inputs[name] = {key: v for key, v in record.items() if key != "result"}
            self._offsets[name] = offset
        self.note(record)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_head(path: str | Path, kind: str) -> Record:
    """Read the first line of a run file: "format", "kind", "asked" and more.

    Args:
        path: The run file.
        kind: The kind of records that it must hold.

    Raises:
        RunFileError: there is no such file, or it is not a run file of this kind and version.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = _check_head(path, kind, file)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RunFileError(f"there is no file {path}") from error
    if head is None:
        raise RunFileError(f"{path} is empty: the run that made it was stopped at once")
    return head


def read_records(path: str | Path, kind: str) -> Iterator[Record]:
    """Read the complete records of a run file, in order, one in memory at a time.

    Args:
        path: The run file.
        kind: The kind of records that it must hold.

    Yields:
        The records. Of one input the last record counts.

    Raises:
        RunFileError: as ``read_head``; or a line before the last is damaged.
    """
    read_head(path, kind)
    with Path(path).open("rb") as file:
        file.readline()
        for _, record, _ in _read(Path(path), file):
            yield record


def describe_changes(old: Any, new: Any, name: str = "") -> str:
    """What differs between two plain values: "threshold was 0.5 and is 0.3; ..."; "" if nothing.

    Args:
        old: Value before; dictionaries are compared key by key.
        new: Value now.
        name: Name of the values, for those that are not dictionaries.
    """
    old, new = _plain(old), _plain(new)
    if isinstance(old, dict) and isinstance(new, dict):
        prefix = f"{name}." if name else ""
        parts = [
            describe_changes(old.get(key), new.get(key), f"{prefix}{key}") for key in {**old, **new}
        ]
        return "; ".join(part for part in parts if part)
    if old == new:
        return ""
    before, now = _brief(old), _brief(new)
    return f"{name} was {before} and is {now}" if before != now else f"{name} has changed"


def _check_head(
    path: Path, kind: str, file: BinaryIO, *, any_version: bool = False
) -> Record | None:
    """Read the head; None if it is unfinished, so that the file holds no work."""
    first = file.readline()
    if not (first.startswith(START) or START.startswith(first)):
        raise RunFileError(
            f"{path} is not a file of {kind} that a run wrote, and is left as it is: name another "
            "file, or delete it"
        )
    head = _parse(first)
    if head is None and not first.endswith(b"\n"):
        return None
    if head is None:
        raise RunFileError(f"{path}, line 1 is damaged: delete the file, or name another")
    if not isinstance(head.get("asked"), dict):
        raise RunFileError(f"{path}, line 1 is damaged: delete the file, or name another")
    if head.get("kind") != kind:
        raise RunFileError(
            f"{path} holds {head.get('kind')}, not {kind}, and is left as it is: name another file"
        )
    if head.get("format") != FORMAT and not any_version:
        raise RunFileError(
            f"{path} was written by another version of efficientsam3: name another file, or start "
            "again (--restart, restart=True)"
        )
    return head


def _read(path: Path, file: BinaryIO) -> Iterator[tuple[int, Record, int]]:
    """Start, record and end of each complete line from the file's position on."""
    start = file.tell()
    for number in count(2):
        line = file.readline()
        record = _parse(line)
        if record is None:
            if file.read(1):
                raise RunFileError(
                    f"{path}, line {number} is damaged: it is not a JSON record. {DAMAGED_LINE}"
                )
            return  # the end, or the line that a killed run left unfinished
        if "input" in record:
            is_whole = isinstance(record["input"], str) and "identity" in record
            if not is_whole or ("failed" in record) == ("result" in record):
                raise RunFileError(
                    f"{path}, line {number} is damaged: it is neither the result of an input nor "
                    f"why it has none. {DAMAGED_LINE}"
                )
        yield start, record, start + len(line)
        start += len(line)


def _parse(line: bytes) -> Record | None:
    """The record of a line; None if the line is unfinished or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _plain(value: Any) -> Any:
    """A value as JSON gives it back, so that it can be compared with what a file holds."""
    return json.loads(json.dumps(value))


def _brief(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}"

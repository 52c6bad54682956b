"""The folder of results: what was asked, and which partitions are done.

TARGET/run.json                                    what was asked
TARGET/annotations/part-000012-3f9a1c2e.parquet    results of partition 12 of the run 3f9a1c2e
TARGET/coco/part-000012-3f9a1c2e.json              the same as COCO, where it is asked for

A partition is done when its shard exists. Nothing else is kept of the progress, so that nothing can
disagree with the shards, whenever a worker or the command itself is stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..errors import RunFileError
from ..io.jsonl import describe_changes
from .settings import digest
from .shards import FORMAT, Counts, read_counts, read_shard, to_coco
from .stores import absolute, delete_file, join, list_names, read_bytes, write_file
from .worker import Places

RUN_FILE = "run.json"
READING_THREADS = 16


class RunFolder:
    """The results of one set of arguments for one source.

    A folder with an earlier run of the same arguments is continued. One of other arguments is
    refused, since its shards can be the work of many machines.

    Args:
        target: Path or URI of the folder. It is made with the first result.
        asked: All that decides the results, as plain values.
        partitions: Number of partitions.
        coco: Whether COCO files are written too.
        restart: Do everything again.

    Raises:
        RunFileError: The folder has results of other arguments, or of something else.
    """

    def __init__(
        self,
        target: str,
        asked: Mapping[str, Any],
        partitions: int,
        *,
        coco: bool = False,
        restart: bool = False,
    ) -> None:
        self.target = absolute(target)
        self.asked: dict[str, Any] = json.loads(json.dumps(asked))
        self.run = digest(self.asked)
        self.partitions, self._coco = partitions, coco
        self._file = join(self.target, RUN_FILE)
        self.head = {"format": FORMAT, "asked": self.asked, "partitions": partitions}
        earlier = _read_head(self._file)
        if restart:
            self._clear()
        elif earlier is not None:
            changes = describe_changes(earlier["asked"], self.asked)
            if changes:
                raise RunFileError(
                    f"{self.target} has results of another run: {changes}. Name another folder, or "
                    "start again (--restart, restart=True), which deletes them"
                )
            self.head = earlier
        elif any(_number(name) is not None for name in list_names(self._folder("annotations"))):
            raise RunFileError(
                f"{self.target} has annotations and no {RUN_FILE}: name another folder, or start "
                "again (--restart, restart=True), which deletes them"
            )

    def _folder(self, name: str) -> str:
        return join(self.target, name)

    def _clear(self) -> None:
        """Delete all shards; a stop of the program before the end leaves an earlier run."""
        for folder in ("annotations", "coco"):
            files = list_names(self._folder(folder))
            for name in files:
                if _number(name) is not None:
                    delete_file(join(self._folder(folder), name))
        delete_file(self._file)

    def begin(self, model: Mapping[str, Any]) -> None:
        """Write the run file, or check that the model is that of the earlier run.

        Args:
            model: What a worker says of its model.

        Raises:
            RunFileError: The model is another one.
        """
        known = self.head.get("worker")
        if known is None:
            self.head["worker"] = dict(model)
            write_file(self._file, json.dumps(self.head, indent=1).encode())
        elif changes := describe_changes(known, model):
            raise RunFileError(
                f"a worker has another model than the run: {changes}. Give all machines the same "
                "weights, and --dtype float32 where they compute in different formats"
            )

    def places(self, number: int) -> Places:
        """Where the results of a partition go.

        Args:
            number: The partition.
        """
        name = f"part-{number:06d}-{self.run}"
        coco = join(self._folder("coco"), f"{name}.json") if self._coco else None
        shard = join(self._folder("annotations"), f"{name}.parquet")
        return Places(shard, coco, self.run, self.asked)

    def done(self) -> set[int]:
        """Numbers of the partitions that are done."""
        names = list_names(self._folder("annotations"))
        return {n for name in names if (n := _number(name, self.run, "parquet")) is not None}

    def counts(self, numbers: Iterable[int]) -> Iterator[tuple[int, Counts]]:
        """What the shards of partitions hold.

        Args:
            numbers: Partitions that are done.

        Raises:
            DataError: A shard is damaged.
        """
        listed = list(numbers)
        with ThreadPoolExecutor(READING_THREADS) as pool:
            found = pool.map(read_counts, (self.places(n).shard for n in listed))
            yield from zip(listed, found, strict=True)

    def complete_coco(self) -> None:
        """Write the COCO files that are missing, from the shards.

        Raises:
            DataError: A shard is damaged.
        """
        names = list_names(self._folder("coco"))
        written = {_number(name, self.run, "json") for name in names}
        for number in sorted(self.done() - written):
            places = self.places(number)
            records = read_shard(places.shard)
            write_file(places.coco or "", to_coco(records, number, self.asked))

    def remove_strangers(self) -> None:
        """Delete shards that workers of an earlier run wrote after it was started again."""
        for folder in ("annotations", "coco"):
            for name in list_names(self._folder(folder)):
                number = _number(name)
                if number is not None and _number(name, self.run) is None:
                    delete_file(join(self._folder(folder), name))


def _read_head(file: str) -> dict[str, Any] | None:
    """The content of a run file; None where there is none."""
    try:
        head = json.loads(read_bytes(file))
    except FileNotFoundError:
        return None
    except ValueError:
        head = None
    if not isinstance(head, dict) or not isinstance(head.get("asked"), dict):
        raise RunFileError(
            f"{file} is not a file that `efficientsam3 annotate` wrote, and is left as it is: name "
            "another folder, or delete it"
        )
    if head.get("format") != FORMAT:
        raise RunFileError(
            f"{file} was written by another version of efficientsam3: name another folder"
        )
    return head


def read_asked(target: str) -> dict[str, Any]:
    """What was asked in a folder of results, as plain values.

    Args:
        target: Path or URI of the folder.

    Raises:
        RunFileError: It is no folder of results.
    """
    head = _read_head(join(absolute(target), RUN_FILE))
    if head is None:
        raise RunFileError(f"there are no annotations in {target}: name the folder of a run")
    return dict(head["asked"])


def _number(name: str, run: str = "[0-9a-f]{8}", suffix: str = "(?:parquet|json)") -> int | None:
    match = re.fullmatch(rf"part-(\d+)-{run}\.{suffix}", name)
    return None if match is None else int(match[1])


def shard_places(target: str) -> list[str]:
    """The shards of a folder of results, in the order of their partitions.

    Args:
        target: Path or URI of the folder.

    Raises:
        RunFileError: There are none.
    """
    run = digest(read_asked(target))
    folder = join(absolute(target), "annotations")
    names = sorted(n for n in list_names(folder) if _number(n, run, "parquet") is not None)
    if not names:
        raise RunFileError(f"there are no annotations in {target}: name the folder of a run")
    return [join(folder, name) for name in names]

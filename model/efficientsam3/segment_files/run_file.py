"""The run file of images: what is known of each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunFileError
from ..io.jsonl import DAMAGED_LINE, Record, RunFile

RUN_FILE = "run.jsonl"


class InstanceFile(RunFile):
    """The run file of a ``SegmentRun``; see ``RunFile``.

    Args:
        path: A file whose name ends in .jsonl.
        categories: What instances are of.
        asked: All that decides the instances, as plain values.
        restart: Start again, whatever an earlier run has finished.

    Raises:
        RunFileError: The file is not one of instances. It is left as it is.
    """

    def __init__(
        self, path: Path, categories: Sequence[str], asked: Mapping[str, Any], restart: bool
    ) -> None:
        self.categories = list(categories)
        super().__init__(path, "instances", asked, restart=restart)
        if not isinstance(self.head.get("folder"), (str, type(None))):
            raise RunFileError(f"{path}, line 1 is damaged: delete the file, or name another")

    def note(self, record: Record) -> None:
        """Check a record.

        Args:
            record: The record of an image.

        Raises:
            RunFileError: It lacks what ``SegmentRun`` writes.
        """
        if "failed" in record:
            return
        result: Any = record.get("result")
        written: Any = record.get("written")
        found = result.get("annotations") if isinstance(result, dict) else None
        if (
            not all(isinstance(record.get(key), str) for key in ("input", "name", "folder"))
            or not all(isinstance(record.get(key), int) for key in ("page", "pages"))
            or not isinstance(written, dict)
            or not all(isinstance(path, (str, type(None))) for path in written.values())
            or not isinstance(found, list)
            or not isinstance(result.get("left_out", 0), int)
            or not all(isinstance(a, dict) and isinstance(a.get("concept"), str) for a in found)
            or not {a["concept"] for a in found}.issubset(self.categories)
        ):
            raise RunFileError(
                f"{self.path} has a damaged record, {record!s:.60}...: it is not that of an "
                f"image. {DAMAGED_LINE}"
            )


def path_of(key: str) -> str:
    """The file of a key of ``ImageFile``.

    Args:
        key: A path, with the page behind it where it is not the first.
    """
    return re.sub(r"#page=\d+$", "", key)

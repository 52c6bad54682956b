"""The command ``track`` in tests: how it is called, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..video.films import Seer
from .conftest import run as run_command

Load = Callable[[Seer | None], None]

ASKED = ("-c", "red", "-c", "blue", "--model", "seer", "--tracker", "iou")


def run(*arguments: Any, code: int = 0) -> Any:
    """The result of ``track``, which must end with this exit code and without a traceback."""
    result = run_command("track", *arguments, code=code)
    assert "Traceback" not in result.output
    return result


def lines(path: Path) -> list[dict[str, Any]]:
    """The frames of a file of tracks."""
    head, *frames = [json.loads(line) for line in path.read_text().splitlines()]
    assert head["format"] == "efficientsam3-run-1"
    return [frame for frame in frames if "end" not in frame]


def everything(folder: Path) -> list[Any]:
    """Options for all outputs."""
    names = {"--out": "a.mp4", "--mot": "a.txt", "--coco": "coco.json", "--veval": "veval.json"}
    names |= {"--sheet": "a.png"}
    return [value for flag, name in names.items() for value in (flag, folder / name)]

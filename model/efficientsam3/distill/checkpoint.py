"""Checkpoints of a run: whole or not there, only tensors and plain values inside."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..weights import replacing

FOLDER = "checkpoints"
FORMAT = "efficientsam3 training run 1"
_NAME = re.compile(r"step_(\d+)\.pt")


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps of the run in ``folder`` is kept."""
    return folder / FOLDER / f"step_{step:07d}.pt"


def saved(folder: Path) -> dict[int, Path]:
    """Step -> file of the run's checkpoints, oldest first."""
    found = {}
    for path in (folder / FOLDER).glob("step_*.pt"):
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def save(folder: Path, step: int, content: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step; then drop all but the newest ``keep``.

    Raises:
        CheckpointError: it cannot be written (a full disk). Earlier ones are untouched.
    """
    path = path_of(folder, step)
    before = saved(folder)
    for torn in path.parent.glob(".step_*"):  # of a process that was killed while it saved
        torn.unlink(missing_ok=True)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        _fsync(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        reason = _first_line(_cause(error))
        older = before[max(before)] if before else None
        kept = (
            f"{older.name}, of step {max(before)}, is whole" if older else "none was saved before"
        )
        raise CheckpointError(
            f"{path} could not be written ({reason}; {_free(path.parent)} free). {kept}: make "
            "room and resume"
        ) from error
    for old in list(saved(folder).values())[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Raises:
        CheckpointError: it is damaged, or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch checks no sums
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"the bytes of its entry {bad} are not those written")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(_damaged(path, _first_line(error))) from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            _damaged(path, "it holds more than tensors and plain values")
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            _damaged(path, f"it is not of this kind of run: its format is not {FORMAT!r}")
        )
    return content


def compare(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raise CheckpointError that names what differs between a checkpoint's run and ours."""
    lines = differences(theirs, ours)
    if lines:
        raise CheckpointError(
            f"{path} is of a run with other settings (saved -> now): {'; '.join(lines)}. Set "
            "them back, or pass accept_changes (--accept-changes), or choose another folder"
        )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """ "name: saved -> now" of each value that is not the same."""
    lines = []
    for key in dict.fromkeys((*theirs, *ours)):
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def _damaged(path: Path, reason: str) -> str:
    others = [p for p in saved(path.parent.parent).values() if p != path]
    way_out = (
        f"{others[-1].name} was saved before it: delete {path.name} to resume from there"
        if others
        else "there is no other in its folder: start anew in another one"
    )
    return f"{path} cannot be resumed from: {reason}. {way_out}"


def _fsync(folder: Path) -> None:
    """The rename itself survives a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB" if folder.exists() else "?"


def _cause(error: BaseException) -> BaseException:
    """What the system said first: torch's own errors follow from it, one or more."""
    while not isinstance(error, OSError) and error.__context__ is not None:
        error = error.__context__
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Checkpoints of a training run: written at once, and made of tensors and plain values only."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from ..io.jsonl import describe_changes
from ..io.tensor_files import replacing_tensors

FOLDER = "checkpoints"
FORMAT = "efficientsam3 training run 2"
_NAME = re.compile(r"step_(\d+)\.pt")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Path of the checkpoint that is written after a step.

    Args:
        folder: Folder of the run.
        step: Number of steps taken.
    """
    return folder / FOLDER / f"step_{step:07d}.pt"


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """The checkpoints of a run.

    Args:
        folder: Folder of the run.

    Returns:
        Step -> file, oldest first.
    """
    found = {}
    for path in (folder / FOLDER).glob("step_*.pt"):
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def save_checkpoint(folder: Path, step: int, content: Mapping[str, Any], keep: int) -> Path:
    """Write the checkpoint of a step, then delete older ones.

    Args:
        folder: Folder of the run.
        step: Number of steps taken.
        content: Tensors and plain values.
        keep: Number of the newest checkpoints to keep, at least 1.

    Returns:
        Path of the new checkpoint.

    Raises:
        CheckpointError: It cannot be written, as on a full disk. Earlier ones stay as they are.
    """
    path = checkpoint_path(folder, step)
    before = list_checkpoints(folder)
    for unfinished in path.parent.glob(".step_*"):  # of a process that was killed while it saved
        unfinished.unlink(missing_ok=True)
    kept = (
        f"{before[max(before)].name}, of step {max(before)}, is complete"
        if before
        else "no checkpoint was saved before"
    )
    way_out = f". {kept}: free some space and run the same command again to continue"
    with replacing_tensors(path, way_out) as temporary, temporary.open("wb") as file:
        torch.save({"format": FORMAT, "step": step, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)
    for old in list(list_checkpoints(folder).values())[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without running any code in it.

    Args:
        path: The checkpoint.

    Returns:
        What ``save_checkpoint`` was given, with "format" and "step".

    Raises:
        CheckpointError: It is damaged, or another kind of file.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch compares no checksums
            if bad := archive.testzip():
                raise zipfile.BadZipFile(f"the bytes of its entry {bad} differ from their checksum")
            for entry in archive.infolist():
                # torch takes such an entry for a folder, and leaves its tensor uninitialized.
                if entry.external_attr or entry.is_dir():
                    raise zipfile.BadZipFile(f"its entry {entry.filename} is no plain file")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            _damaged(path, "it holds more than tensors and plain values")
        ) from error
    except Exception as error:  # damaged bytes lead to any error of the readers of archives
        raise CheckpointError(_damaged(path, _first_line(error))) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            _damaged(path, f"it is not of this kind of run: its format is not {FORMAT!r}")
        )
    return content


def require_same(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run may be continued from a checkpoint.

    Args:
        path: The checkpoint, for the message.
        saved: Plain values that describe the run that wrote it.
        now: The same of this run.

    Raises:
        CheckpointError: They differ; the message names each value that does.
    """
    if changes := describe_changes(saved, now):
        raise CheckpointError(
            f"{path} is of a run with other settings: {changes}. Set them back, continue "
            "nevertheless with --accept-changes (accept_changes=True), start again with --restart "
            "(restart=True), or choose another folder"
        )


def _damaged(path: Path, reason: str) -> str:
    others = [p for p in list_checkpoints(path.parent.parent).values() if p != path]
    remedy = (
        f"{others[-1].name} was saved before it: delete {path.name} to continue from there"
        if others
        else "there is no other in its folder: start again with --restart, or in another folder"
    )
    return f"{path} cannot be continued from: {reason}; {remedy}"


def _sync_folder(folder: Path) -> None:
    """Make sure that a rename in the folder survives a power cut."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

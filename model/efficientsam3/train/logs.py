"""What a run leaves to read: CSV files, TensorBoard events, pictures, and a report of times."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.json_records import read_json
from ..errors import CheckpointError, EfficientSam3Error, MissingPackageError
from ..io.atomic import replacing, write_picture

if TYPE_CHECKING:
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    from .task import Picture


@dataclass(frozen=True)
class Progress:
    """State of a run, as the loop reports it.

    Attributes:
        step: Steps taken.
        steps: Steps of the whole run.
        loss: Mean loss since the last report; None if every step since then was skipped, or none
            was taken.
        values: Means of the other scalars that the task reports.
        lr: Learning rate of the last step.
        rate: Steps a second since the last report.
        eta: Seconds left at this rate.
        seconds: Seconds trained in all, earlier sessions included.
        data_wait: Share of the time spent waiting for batches, in [0, 1].
        skipped: Steps that were skipped because the loss or a gradient was not finite.
        metrics: Metrics of a validation that has just ended, else empty.
    """

    step: int
    steps: int
    loss: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    lr: float = 0.0
    rate: float = 0.0
    eta: float = math.inf
    seconds: float = 0.0
    data_wait: float = 0.0
    skipped: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class RunningMeans:
    """Means of scalars over steps. They stay tensors until they are read: no synchronization.

    Args:
        values: What ``state`` returned; None: no values yet.
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None) -> None:
        self._values: dict[str, list[Tensor]] = {k: list(v) for k, v in (values or {}).items()}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Include the scalars of one batch.

        Args:
            scalars: Scalar tensors by name; gradients are dropped. A name may be missing.
        """
        for name, value in scalars.items():
            self._values.setdefault(name, []).append(value.detach())

    def state(self) -> dict[str, Tensor]:
        """All values since the last ``take``, by name, for a checkpoint."""
        return {k: torch.stack([v.float().cpu() for v in vs]) for k, vs in self._values.items()}

    def take(self) -> dict[str, Tensor]:
        """All values since the last call, by name; the next ones start with the next batch."""
        values = self.state()
        self._values.clear()
        return values


def join_values(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The values of several processes.

    Args:
        states: Of each process, what ``RunningMeans.state`` returned.

    Returns:
        By name, the values of all that have it.
    """
    joined: dict[str, list[Tensor]] = {}
    for state in states:
        for name, values in state.items():
            joined.setdefault(name, []).append(values)
    return {name: torch.cat(values) for name, values in joined.items()}


def mean_values(states: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """The means over the batches of several processes.

    Args:
        states: As ``join_values`` takes them.
    """
    return {name: float(values.double().mean()) for name, values in join_values(states).items()}


class CsvLog:
    """A CSV file with one row a step, which a resumed run continues without double rows.

    Lightning's ``CSVLogger`` only appends: rows after the checkpoint would stand twice.

    Args:
        path: The file.
        step: Number of steps taken. Rows of later steps, and an unfinished last row, are dropped;
            of a run that starts, all rows.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if step and path.exists():
            text = path.read_text(encoding="utf-8")
            complete = text[: text.rfind("\n") + 1]
            for row in csv.DictReader(io.StringIO(complete, newline="")):
                number = row.get("step") or ""
                if number.isdigit() and int(number) <= step and None not in row.values():
                    self.rows.append(row)
        self.columns = list(self.rows[0]) if self.rows else ["step"]
        self._rewrite()

    def add(self, row: Mapping[str, float | int]) -> None:
        """Append a row; the file is written anew if the row has new columns.

        Args:
            row: Numbers by column, "step" among them.
        """
        texts = {k: f"{v:.7g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        self.rows.append(texts)
        new = [k for k in texts if k not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(texts)

    def has(self, step: int) -> bool:
        """Whether there is a row of a step.

        Args:
            step: Number of the step.
        """
        return any(row["step"] == str(step) for row in self.rows)

    def first(self) -> dict[str, float]:
        """The numbers of the first row, without its step; empty without rows."""
        return _numbers(self.rows[0]) if self.rows else {}

    def last(self) -> dict[str, float]:
        """The numbers of the last row, without its step; empty without rows."""
        return _numbers(self.rows[-1]) if self.rows else {}

    def _rewrite(self) -> None:
        with (
            replacing(self.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            if self.rows:
                writer.writeheader()
            writer.writerows(self.rows)


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if k != "step" and v}


def tensorboard_logger(folder: Path, step: int) -> TensorBoardLogger:
    """Fabric's logger of TensorBoard events.

    Args:
        folder: Folder of the event files.
        step: Number of steps taken; TensorBoard drops events of later steps.

    Raises:
        MissingPackageError: TensorBoard is not installed.
    """
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, "", "", purge_step=step + 1 if step else None)
    except ImportError as error:
        raise MissingPackageError(
            "tensorboard=True needs TensorBoard: pip install tensorboard; the CSV files are "
            "written without it"
        ) from error


def write_pictures(folder: Path, step: int, pictures: Mapping[str, Picture]) -> None:
    """Write ``pictures/NAME_STEP.png``: the names sort by step, so a viewer shows the progress.

    Args:
        folder: Folder of the run.
        step: Number of steps taken.
        pictures: (H, W, 3) uint8 RGB, by name.

    Raises:
        EfficientSam3Error: A picture of another type or shape.
    """
    for name, pixels in pictures.items():
        array = np.asarray(pixels)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise EfficientSam3Error(
                f"picture {name!r} is {array.dtype} of shape {array.shape}; it must be uint8 "
                "(H, W, 3) RGB"
            )
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        path = folder / "pictures" / f"{safe}_{step:07d}.png"
        write_picture(Image.fromarray(array), path)


class RunReport:
    """``report.json``: how long the run took, session by session, and its result.

    Args:
        path: The file.
        step: Number of steps taken before this session.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.content: dict[str, Any] = {"finished": False, "step": step, "sessions": []}
        if step and path.exists():
            earlier = read_json(path, CheckpointError)
            if not isinstance(earlier, dict) or not isinstance(earlier.get("sessions"), list):
                raise CheckpointError(f"{path} is not the state of a run: delete it")
            self.content = {**earlier, "finished": False}
        started = time.strftime("%Y-%m-%dT%H:%M:%S")
        self._session = {"from": step, "to": step, "started": started, "seconds": 0.0}
        self.content["sessions"].append(self._session)

    def update(self, step: int, session_seconds: float, **values: Any) -> None:
        """Write the state of the run.

        Args:
            step: Number of steps taken.
            session_seconds: Seconds of this session.
            **values: More entries of the report.
        """
        self._session.update(to=step, seconds=round(session_seconds, 3))
        self.content.update(step=step, **values)
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")

"""What a run leaves to read: CSV tables, TensorBoard events, pictures, a report of times."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import EfficientSam3Error
from ..weights import replacing

if TYPE_CHECKING:
    from .task import Picture


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        step, steps: done, and in all.
        loss: mean since the last report; None before the first.
        parts: likewise, of what the task reports.
        lr: of this step.
        rate: steps a second, of late. eta: seconds left.
        seconds: trained in all, earlier runs included.
        waited: share of the time spent waiting for batches, in [0, 1].
        skipped: steps whose loss was not finite.
        figures: of a validation that has just been made, else empty.
    """

    step: int
    steps: int
    loss: float | None
    parts: Mapping[str, float]
    lr: float
    rate: float
    eta: float
    seconds: float
    waited: float
    skipped: int
    figures: Mapping[str, float] = field(default_factory=dict)


class Means:
    """Means of scalars over steps; they stay tensors until someone reads them."""

    def __init__(self, pending: Mapping[str, Tensor] | None = None) -> None:
        self._values: dict[str, list[Tensor]] = {
            name: list(values) for name, values in (pending or {}).items()
        }

    def add(self, parts: Mapping[str, Tensor]) -> None:
        """Take up the parts of one batch; gradients are dropped."""
        for name, value in parts.items():
            value = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            self._values.setdefault(name, []).append(value)

    def pending(self) -> dict[str, Tensor]:
        """All values since the last ``take``, for a checkpoint."""
        return {
            name: torch.stack([v.float().cpu() for v in values])
            for name, values in self._values.items()
        }

    def take(self) -> dict[str, float]:
        """The means; then start anew."""
        means = {k: float(v.double().mean()) for k, v in self.pending().items()}
        self._values.clear()
        return means


class Table:
    """A CSV file with a row a step, which a resumed run continues without doubles.

    Args:
        step: rows of later steps are dropped, and a row that was cut short.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.exists():
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            for row in csv.DictReader(io.StringIO(whole, newline="")):
                number = row.get("step") or ""
                if number.isdigit() and int(number) <= step and None not in row.values():
                    self.rows.append(row)
        self.columns = list(self.rows[0]) if self.rows else ["step"]
        self._rewrite()

    def add(self, row: Mapping[str, float | int]) -> None:
        """Append a row; new columns rewrite the file."""
        words = {k: f"{v:.7g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        self.rows.append(words)
        new = [k for k in words if k not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns, restval="", lineterminator="\n").writerow(words)

    def has(self, step: int) -> bool:
        """Whether there is a row of this step."""
        return any(row["step"] == str(step) for row in self.rows)

    def last(self) -> dict[str, float]:
        """The figures of the last row, without its step."""
        row = self.rows[-1] if self.rows else {}
        return {k: float(v) for k, v in row.items() if k != "step" and v}

    def _rewrite(self) -> None:
        with (
            replacing(self.path) as temporary,
            temporary.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, self.columns, restval="", lineterminator="\n")
            if self.rows:
                writer.writeheader()
            writer.writerows(self.rows)


class Board:
    """TensorBoard's event files.

    Raises:
        EfficientSam3Error: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise EfficientSam3Error(
                "tensorboard=True needs TensorBoard: pip install tensorboard; the CSV files are "
                "written without it"
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, prefix: str, step: int, values: Mapping[str, float | int]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


def write_pictures(folder: Path, step: int, pictures: Mapping[str, Picture]) -> None:
    """Write ``pictures/NAME_STEP.png``, so that a viewer steps through the learning.

    Raises:
        EfficientSam3Error: something that is not a picture.
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
        with replacing(path) as temporary:
            Image.fromarray(array).save(temporary, "PNG")


class Report:
    """``report.json``: how long the run took, session by session; and what it ended with."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.content: dict[str, Any] = {"finished": False, "step": step, "sessions": []}
        if step and path.exists():
            self.content = {**json.loads(path.read_text(encoding="utf-8")), "finished": False}
        self._session = {"from": step, "to": step, "started": _now(), "seconds": 0.0}
        self.content["sessions"].append(self._session)

    def update(self, step: int, spent: float, **values: Any) -> None:
        """Write where the run is. ``spent``: seconds of this session."""
        self._session.update(to=step, seconds=round(spent, 3))
        self.content.update(step=step, **values)
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")

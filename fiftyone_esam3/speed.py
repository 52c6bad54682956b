"""How fast models were on this machine, as earlier runs measured: for the forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fiftyone.operators.store import ExecutionStore

STORE = "efficientsam3_speed"


def remember(model: str, summary: Mapping[str, Any]) -> None:
    """Keeps the seconds a sample took, if there were enough of them to tell."""
    if summary["done"] >= 5:
        seconds = summary["seconds"] / summary["done"]
        ExecutionStore.create(STORE).set(model, {"seconds": round(seconds, 4)})


def recall(model: str) -> float | None:
    """Seconds a sample, or None if no run has been long enough."""
    held = ExecutionStore.create(STORE).get(model)
    return None if held is None else float(held["seconds"])

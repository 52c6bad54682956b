"""The panel's events without a browser."""

from __future__ import annotations

import json
from typing import Any

from fiftyone.operators.executor import ExecutionContext, Executor
from fiftyone.operators.registry import OperatorRegistry

from fiftyone_esam3.plugin import PLUGIN

_PARTS = ("picture", "existing", "found")


class PanelClient:
    """Send events as panel.js does, and keep what the panel sends."""

    def __init__(self, dataset: Any, sample: str | None, model: str = "") -> None:
        self.dataset, self.sample = dataset, sample
        self.controls: dict[str, Any] = {"model": model} if model else {}
        self.data: dict[str, Any] = {}
        self.sent: dict[str, Any] = {}
        self.requests: list[str] = []

    def __call__(self, method: str, **params: Any) -> None:
        has = {part: (self.data.get(part) or {}).get("key") for part in _PARTS}
        request = {
            "dataset_name": self.dataset.name,
            "view": [],
            "current_sample": self.sample,
            "params": {
                "panel_id": f"panel of {self.dataset.name}",
                "panel_state": {},
                "__method__": method,
                "has": has,
                **self.controls,
                **params,
            },
        }
        operator = OperatorRegistry().get_operator(f"{PLUGIN}/efficientsam3_panel")
        executor = Executor()
        context = ExecutionContext(request, executor=executor, operator_uri=operator.uri)
        self.sent = json.loads(json.dumps(operator.execute(context) or {}))
        self.requests = [r.operator_uri.rpartition("/")[2] for r in executor._requests]
        self.data |= self.sent

    @property
    def message(self) -> str:
        return str(self.data["message"].get("text", ""))

    @property
    def result(self) -> dict[str, Any]:
        return dict(self.data["result"])

    def all_found(self) -> list[int]:
        return list(range(len(self.data["found"]["shapes"])))

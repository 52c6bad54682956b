"""Execute operators as the App does, and read their forms."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fiftyone.operators.executor import (
    ExecutionContext,
    execute_or_delegate_operator,
)
from fiftyone.operators.registry import OperatorRegistry

from fiftyone_esam3.plugin import PLUGIN

Run = Callable[..., dict[str, Any]]


def everything(**params: Any) -> dict[str, Any]:
    """Parameters with which the untrained model finds something."""
    return {"concepts": ["person", "bus"], "threshold": 0.0, "max_instances": 4, **params}


def execute_in_app(dataset: Any, name: str, **params: Any) -> list[dict[str, Any]]:
    """Execute an operator as the App does, with its filters; give its messages."""
    request = {
        "dataset_name": dataset.name,
        "view": [],
        "filters": {},
        "params": params,
    }
    result = asyncio.run(execute_or_delegate_operator(f"{PLUGIN}/{name}", request))
    assert result.is_generator
    return [message.body.to_json() for message in result.result]


def resolve_form(dataset: Any, name: str, **params: Any) -> Any:
    operator = OperatorRegistry().get_operator(f"{PLUGIN}/{name}")
    request = {"dataset_name": dataset.name, "view": [], "params": params}
    return operator.resolve_input(ExecutionContext(request))

"""Execute operators on the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone.operators as foo
import pytest

from fiftyone_esam3.plugin import PLUGIN

from .calls import Run


@pytest.fixture
def run(tiny_folder: Path, dataset: Any) -> Run:
    """Run an operator on the dataset, and give its summary."""

    def execute(name: str, *, target: Any = None, **params: Any) -> dict[str, Any]:
        context = params.pop("ctx", {})
        if name not in ("evaluate", "prepare_annotation"):
            params = {"model": str(tiny_folder), **params}
        result = foo.execute_operator(
            f"{PLUGIN}/{name}",
            ctx={"view": dataset.view() if target is None else target, **context},
            params=params,
        )
        return dict(result.result)

    return execute

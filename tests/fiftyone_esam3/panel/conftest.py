"""A client of the panel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fiftyone_esam3.panel import segment_panel

from .client import PanelClient


@pytest.fixture
def client(dataset: Any, tiny_folder: Path) -> Iterator[PanelClient]:
    segment_panel._states.values.clear()
    client = PanelClient(dataset, dataset.first().id, str(tiny_folder))
    client("on_load")
    client("open")
    yield client
    segment_panel._states.values.clear()

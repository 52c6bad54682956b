"""A tiny model, exported once for all tests of its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

import efficientsam3 as es3
from efficientsam3.config import MemoryConfig, tiny_config, tiny_late_config
from efficientsam3.export import export_model

from ...conftest import tiny_model


@pytest.fixture(
    scope="session",
    # PyTorch's ONNX exporter takes its time, whatever the size of the model.
    params=[
        "openvino",
        pytest.param("late", marks=pytest.mark.slow),
        pytest.param("onnx", marks=pytest.mark.long),
    ],
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[es3.ImageModel, Path]:
    """A model, and the folder that it is exported to; "late": late fusion, for OpenVINO."""
    late = request.param == "late"
    backend = "openvino" if late else request.param
    pytest.importorskip(backend)
    adopts = tiny_late_config(memory=MemoryConfig(adopt_object_iou=0.25))
    model = tiny_model(config=adopts if late else tiny_config())
    folder = tmp_path_factory.mktemp(request.param) / "tiny"
    export_model(model, folder, to=backend)
    return model, folder

"""The core works where the package of the stickers is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK_AND_RUN = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "efficientsam3_stickers":
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import numpy as np
import efficientsam3 as es3

OPTIONAL = {"av", "fiftyone", "lightning", "lightning_fabric", "onnx", "onnxruntime", "pyarrow"}
for module in pkgutil.walk_packages(es3.__path__, "efficientsam3."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        assert (error.name or "").partition(".")[0] in OPTIONAL, error
model = es3.load("efficientsam3-stickers", device="cpu")
found = model.segment(np.zeros((60, 80, 3), np.uint8), ["dog"])
assert found.size == (60, 80)

from typer.testing import CliRunner
from efficientsam3.cli.app import app

for command in ("scenes", "embed"):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 2, result.output
    assert "efficientsam3_stickers, which is not" in " ".join(result.stderr.split())
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
assert not any(name.startswith("efficientsam3_stickers") for name in sys.modules)
print("works")
"""


@pytest.mark.slow
def test_the_packaged_model_and_the_commands_need_no_stickers() -> None:
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", BLOCK_AND_RUN], capture_output=True, text=True
    )
    assert process.stdout == "works\n", process.stderr

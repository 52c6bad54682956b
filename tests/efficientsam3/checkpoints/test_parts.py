"""A weight file in parts is read as the whole file; what does not fit together is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from efficientsam3.checkpoints.parts import weight_files
from efficientsam3.checkpoints.read import Contents, read_state
from efficientsam3.checkpoints.sources import weight_sources
from efficientsam3.errors import CheckpointError, WeightsNotFoundError

from ...parity.transformers_files import detector_keys, values

NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_parts(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write a state dict as transformers does above a size; gives the index."""
    keys = sorted(state)
    places = {key: NAMES[i % 2] for i, key in enumerate(keys)}
    for name in NAMES:
        save_file({k: state[k] for k in keys if places[k] == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_parts_are_read_as_one_file(tmp_path: Path) -> None:
    state = values(detector_keys(tiny=True))
    index = write_parts(tmp_path, state)
    read = read_state(index)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)
    save_file(state, tmp_path / "whole.safetensors")
    whole, parts = Contents.read(tmp_path / "whole.safetensors"), Contents.read(index)
    assert parts.state.keys() == whole.state.keys()
    assert weight_files(index) == [index, *(tmp_path / name for name in NAMES)]
    assert weight_sources("sam3", index) == (weight_files(index), {})


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    index = write_parts(tmp_path, {"a": torch.zeros(2), "b": torch.zeros(3)})
    save_file({"b": torch.zeros(3), "c": torch.zeros(1)}, tmp_path / NAMES[1])
    with pytest.raises(CheckpointError, match=r"00002.* has other weights than .*such as c"):
        read_state(index)
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(WeightsNotFoundError, match=r"no weight file at .*00002"):
        read_state(index)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, 'it has no "weight_map"'),
        ([], 'it has no "weight_map"'),
        ({"weight_map": {"a": "../a.safetensors"}}, "parts are files in the folder of the index"),
        ({"weight_map": {"a": 3}}, "parts are files in the folder of the index"),
        ({"weight_map": {"a": "model.safetensors.index.json"}}, "names another index"),
    ],
)
def test_an_index_of_other_content_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read_state(index)

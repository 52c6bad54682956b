"""What fuzzing found in files of weights, as test_found.py has it of other files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from efficientsam3.checkpoints.assemble import load_folder, load_upstream
from efficientsam3.checkpoints.read import Contents, read_state
from efficientsam3.config import ModelConfig, tiny_config
from efficientsam3.errors import (
    ArgumentError,
    CheckpointError,
)
from efficientsam3.train.checkpoint import load_checkpoint, save_checkpoint
from efficientsam3.train.merge import PartialCheckpoint

from ..parity.upstream import released_keys
from .samples import changed

# Weights ------------------------------------------------------------------------------------------

HEAD = "backbone.vision_backbone.trunk.model.head.0.weight"
STEM = "backbone.vision_backbone.trunk.model.backbone.model.features.0.0.weight"
TABLE = "backbone.language_backbone.encoder.positional_embedding.pos_embed.pos_embed"
WORDS = "backbone.language_backbone.encoder.embedding_layer.weight"


@pytest.mark.parametrize("shape", [(), (3,)])
def test_weights_without_axes_are_of_no_model(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save({HEAD: torch.zeros(shape), STEM: torch.zeros(shape)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="no projection head"):
        Contents.read(tmp_path / "a.pt")
    torch.save({TABLE: torch.zeros(shape), WORDS: torch.zeros(shape)}, tmp_path / "b.pt")
    assert Contents.read(tmp_path / "b.pt").positions == 0


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 2, 8)])
def test_a_table_of_positions_of_another_shape_is_refused(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    keys = released_keys("repvit-m1.1", "mobileclip-s0", 16)
    names = [name for name in keys if "trunk" in name or name.endswith(WORDS)]
    state = {name: torch.zeros(()).expand(keys[name][0]) for name in names}
    torch.save({**state, f"detector.{TABLE}": torch.zeros(shape)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is damaged or of another model: context is"):
        load_upstream(tmp_path / "a.pt")


@pytest.mark.parametrize("end", [b"h", b"\x8a", b"X\xff\xff\xff\xff", b"t", b"R", b"0", b"u."])
def test_a_damaged_pickle_is_damaged_in_one_sentence(end: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"\x80\x02" + end)
    with pytest.raises(CheckpointError):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (("vision",), 3),
        (("vision", "depth"), 10**9),
        (("vision", "depth"), 2.5),
        (("vision", "window"), "x"),
        (("vision", "window"), 0),
        (("vision", "everywhere"), 1),
        (("text",), [1]),
        (("text", "vocabulary"), 2**40),
        (("memory",), 1),
        (("heads",), 0),
        (("grid",), -1),
        (("queries",), True),
        (("scales",), []),
        (("scales",), [3]),
        (("mean",), float("nan")),
        (("parts",), "geometry"),
        (("resolution",), 10**400),
    ],
)
def test_a_configuration_of_no_network_is_refused(
    place: tuple[Any, ...],
    new: Any,
    saved: Callable[[], Path],
) -> None:
    folder = saved()
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(changed(content, ("model", *place), new)))
    with pytest.raises((CheckpointError, ArgumentError)):
        load_folder(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Gives a folder of a tiny model, whose configuration may be changed."""
    from ..conftest import tiny_model

    folder = tmp_path_factory.mktemp("model")
    tiny_model().save(folder)
    sound = (folder / "config.json").read_text()

    def make() -> Path:
        (folder / "config.json").write_text(sound)
        return folder

    return make


def test_a_sound_configuration_is_read_as_it_was(saved: Callable[[], Path]) -> None:
    assert load_folder(saved())[1] == tiny_config()
    whole = ModelConfig("tinyvit-11m", "mobileclip-s0", 16)
    assert ModelConfig.from_dict(json.loads(json.dumps(whole.to_dict()))) == whole


@pytest.mark.parametrize("metadata", [{}, {"prefixes": "3"}, {"prefixes": "["}, {"model": "{}"}])
def test_a_partial_checkpoint_with_damaged_metadata_is_refused(
    metadata: dict[str, str], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from efficientsam3.train.merge import FORMAT

    sound = {
        "format": FORMAT,
        "prefixes": '["trunk."]',
        "model": json.dumps(tiny_config().to_dict()),
    }
    damaged = {**sound, **metadata} if metadata else {"format": FORMAT}
    save_file({"trunk.a": torch.zeros(1)}, tmp_path / "a.safetensors", damaged)
    with pytest.raises((CheckpointError, ArgumentError)):
        PartialCheckpoint.load(tmp_path / "a.safetensors")


# Archives -----------------------------------------------------------------------------------------


def archive_of(path: Path) -> bytearray:
    torch.save({"w": torch.zeros(3)}, path)
    return bytearray(path.read_bytes())


def test_an_archive_that_says_it_spans_several_disks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    data = archive_of(path)
    locator = data.rindex(b"PK\x06\x07")  # its last four bytes are the number of disks
    data[locator + 16 : locator + 20] = (2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        read_state(path)
    with pytest.raises(CheckpointError, match="cannot be continued from"):
        load_checkpoint(path)


@pytest.mark.parametrize("method", [8, 12, 14, 99])
def test_an_archive_whose_entries_say_that_they_are_compressed_is_refused(
    method: int, tmp_path: Path
) -> None:
    path = save_checkpoint(tmp_path, 3, {"state": {"w": torch.zeros(3)}}, keep=1)
    data = bytearray(path.read_bytes())
    place = -1
    while (place := data.find(b"PK\x01\x02", place + 1)) >= 0:  # the central directory
        data[place + 10 : place + 12] = method.to_bytes(2, "little")
    place = -1
    while (place := data.find(b"PK\x03\x04", place + 1)) >= 0:
        data[place + 8 : place + 10] = method.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="cannot be continued from"):
        load_checkpoint(path)


def test_an_archive_whose_entry_says_that_it_is_a_folder_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, {"state": {"w": torch.arange(6.0)}}, keep=1)
    torch.save({"w": torch.arange(6.0)}, tmp_path / "w.pt")
    for file in (path, tmp_path / "w.pt"):
        data = bytearray(file.read_bytes())
        entry = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02"))
        while not data[entry + 46 :].startswith((b"archive/data/0", b"w/data/0")):
            entry = data.find(b"PK\x01\x02", entry + 1)
        data[entry + 38] = 0x10  # its external attributes
        file.write_bytes(data)
    with pytest.raises(CheckpointError, match="archive/data/0 is no plain file"):
        load_checkpoint(path)
    assert read_state(tmp_path / "w.pt")["w"].tolist() == [0, 1, 2, 3, 4, 5]

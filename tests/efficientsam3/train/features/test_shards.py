"""Safetensors shards of features: what was written is read, after kills and damage too."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from efficientsam3.train.errors import FeatureFileError
from efficientsam3.train.features import ShardFeatures
from efficientsam3.train.features.shards import FORMAT, Description, ShardWriter

SHAPE = (2, 3, 3)
RECORD_BYTES = 2 * 18
DESCRIPTION = Description(SHAPE, {"name": "t"})


def record(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=SHAPE).astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    DESCRIPTION.write(tmp_path)
    return tmp_path


def write(folder: Path, numbers: range, *, flush: bool = True, rank: int = 0) -> None:
    """Write records in shards of four."""
    writer = ShardWriter(folder, DESCRIPTION, rank, shard_bytes=4 * RECORD_BYTES)
    for number in numbers:
        writer.append(f"k{number}", record(number))
    if flush:
        writer.flush()


def check(folder: Path, numbers: range) -> None:
    features = ShardFeatures(folder)
    assert sorted(features) == sorted(f"k{n}" for n in numbers)
    for number in numbers:
        assert features[f"k{number}"].dtype == np.float16
        assert (features[f"k{number}"] == record(number)).all()
    features.verify()


def test_records_are_read_as_written(folder: Path) -> None:
    write(folder, range(10))
    check(folder, range(10))
    assert len(list(folder.glob("*.safetensors"))) == 3
    features = ShardFeatures(folder)
    assert (features["k3"] == record(3)).all()
    features = pickle.loads(pickle.dumps(features))  # as a worker gets them
    assert features.shape == SHAPE
    assert "k3" in features
    batch = features.batch(["k7", "k2"])
    assert batch.dtype == torch.float32
    assert (batch[1].numpy() == record(2)).all()
    with pytest.raises(FeatureFileError, match=r"no features of 'k10' \(it has 10 records\)"):
        features["k10"]
    with pytest.raises(FeatureFileError, match="lacks the features of 2 samples, such as 'a', 'b'"):
        features.require(["k1", "a", "b"])


def test_the_format_is_as_documented(folder: Path) -> None:
    write(folder, range(2), rank=3)
    with safe_open(folder / "003-00000.safetensors", "np") as file:
        metadata = file.metadata()
        assert sorted(file.keys()) == ["k0", "k1"]
    assert metadata["format"] == FORMAT
    crc32 = json.loads(metadata["crc32"])
    assert crc32 == {f"k{n}": zlib.crc32(record(n).tobytes()) for n in range(2)}


def test_an_interrupted_writer_leaves_complete_shards(folder: Path) -> None:
    write(folder, range(6), flush=False)
    check(folder, range(4))
    write(folder, range(4, 11))
    check(folder, range(11))


WRITE_FOREVER = """
import sys
from pathlib import Path
import numpy as np
from efficientsam3.train.features.shards import Description, ShardWriter
shape = (64, 64, 64)
writer = ShardWriter(Path(sys.argv[1]), Description(shape, {"name": "t"}), shard_bytes=1 << 20)
number = 0
while True:
    writer.append(f"k{number}", np.full(shape, number % 100, np.float16))
    number += 1
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_complete_shards(tmp_path: Path) -> None:
    description = Description((64, 64, 64), {"name": "t"})
    description.write(tmp_path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, tmp_path], env=environment)
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("*.safetensors"))) < 3 and time.monotonic() < end:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    features = ShardFeatures(tmp_path)
    count = len(features)
    assert count >= 6
    assert sorted(features) == sorted(f"k{n}" for n in range(count))
    for number in range(count):
        assert (features[f"k{number}"] == number % 100).all()
    writer = ShardWriter(tmp_path, description)
    writer.append(f"k{count}", np.zeros(description.shape, np.float16))
    writer.flush()
    ShardFeatures(tmp_path).verify()
    assert len(ShardFeatures(tmp_path)) == count + 1


@pytest.mark.parametrize("lost", [1, RECORD_BYTES, 4 * RECORD_BYTES, 4 * RECORD_BYTES + 64, None])
def test_a_shard_cut_short_is_an_error(folder: Path, lost: int | None) -> None:
    write(folder, range(8))
    path = folder / "000-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-lost] if lost else b"")
    with pytest.raises(FeatureFileError, match=r"000-00000\.safetensors is damaged or cut short"):
        ShardFeatures(folder)


def test_a_flipped_bit_is_found(folder: Path) -> None:
    write(folder, range(4))
    path = folder / "000-00000.safetensors"
    content = bytearray(path.read_bytes())
    place = content.index(record(1).tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    features = ShardFeatures(folder)
    assert (features["k0"] == record(0)).all()
    with pytest.raises(FeatureFileError, match="record of 'k1' differs from its checksum"):
        features["k1"]
    with pytest.raises(FeatureFileError, match="record of 'k1' differs from its checksum"):
        features.verify()
    assert ShardFeatures(folder, check=False)["k1"].shape == SHAPE


def test_another_safetensors_file_is_refused(folder: Path) -> None:
    from safetensors.numpy import save_file

    path = folder / "000-00000.safetensors"
    save_file({"k0": record(0)}, path)
    with pytest.raises(FeatureFileError, match="not a shard of features"):
        ShardFeatures(folder)
    save_file({"k0": record(0)}, path, {"format": FORMAT, "crc32": "{}"})
    with pytest.raises(FeatureFileError, match="other tensors than its metadata names"):
        ShardFeatures(folder)
    save_file({"k0": record(0)}, path, {"format": FORMAT, "crc32": "["})
    with pytest.raises(FeatureFileError, match="damaged or cut short"):
        ShardFeatures(folder)


def test_a_folder_without_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match=r"no features\.json"):
        ShardFeatures(tmp_path)
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(FeatureFileError, match="does not describe"):
        ShardFeatures(tmp_path)
    (tmp_path / "features.json").write_text('{"format": 1}')
    with pytest.raises(FeatureFileError, match="has format 1"):
        ShardFeatures(tmp_path)


def test_records_that_cannot_be_stored_are_refused(folder: Path) -> None:
    writer = ShardWriter(folder, DESCRIPTION)
    with pytest.raises(FeatureFileError, match="k0: features have shape"):
        writer.append("k0", np.zeros((2, 3)))
    with (
        pytest.raises(FeatureFileError, match=r"k0: .* not finite in float16"),
        np.errstate(over="ignore"),
    ):
        writer.append("k0", np.full(SHAPE, 1e6, np.float32))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_complete_shards(folder: Path) -> None:
    write(folder, range(4))
    with (
        file_size_limit(150),
        pytest.raises(FeatureFileError, match=r"00001\.safetensors could not be written"),
    ):
        write(folder, range(4, 8))
    assert sorted(p.name for p in folder.iterdir()) == ["000-00000.safetensors", "features.json"]
    write(folder, range(4, 8))
    check(folder, range(8))

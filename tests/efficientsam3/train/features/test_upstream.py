"""Features in the files of upstream's trainer."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from efficientsam3.train.errors import FeatureFileError
from efficientsam3.train.features import UpstreamFeatures, open_features
from efficientsam3.train.features.upstream import write_upstream

SHAPE = (2, 3, 3)
RECORD_BYTES = 2 * 18


def record(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=SHAPE).astype(np.float16)


def test_records_are_read_as_written(tmp_path: Path) -> None:
    write_upstream(tmp_path, [(f"k{n}", record(n)) for n in range(3)], rank=0, seed=7)
    write_upstream(tmp_path, [("sa_9", record(9))], rank=1)
    features = open_features(tmp_path, SHAPE)
    assert isinstance(features, UpstreamFeatures)
    assert sorted(features) == ["k0", "k1", "k2", "sa_9"]
    assert (features["k1"] == record(1)).all()
    assert (features["sa_9"] == record(9)).all()
    assert (features.seed("k1"), features.seed("sa_9")) == (7, 0)
    assert (features.batch(["k2"])[0].numpy() == record(2)).all()
    # byte for byte what upstream documents
    values = (tmp_path / "rank0-values.bin").read_bytes()
    assert len(values) == 3 * (4 + RECORD_BYTES)
    assert values[: 4 + RECORD_BYTES] == struct.pack("<i", 7) + record(0).tobytes()
    assert (tmp_path / "rank0-keys.txt").read_text() == "k0\nk1\nk2\n"


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match="no rank"):
        UpstreamFeatures(tmp_path)
    write_upstream(tmp_path, [("k0", record(0))])
    with pytest.raises(FeatureFileError, match="need 10,616,836"):
        UpstreamFeatures(tmp_path)
    path = tmp_path / "rank0-values.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FeatureFileError, match="cut short"):
        UpstreamFeatures(tmp_path, SHAPE)
    with pytest.raises(FeatureFileError, match="one line each"):
        write_upstream(tmp_path, [("a\nb", record(0))])

"""Teacher features on disk: what was written is read, after kills and damage too."""

from __future__ import annotations

import errno
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from efficientsam3.distill import shards
from efficientsam3.distill.data.batches import Subset
from efficientsam3.distill.errors import DataError, FeatureFileError
from efficientsam3.distill.features import open_features, save_features, save_text_features
from efficientsam3.distill.shards import Description, Features, ShardWriter
from efficientsam3.distill.teachers import ImageTeacher, TextTeacher
from efficientsam3.distill.upstream_features import UpstreamFeatures, write_upstream

from .conftest import Shapes, tiny_net

SHAPE = (2, 3, 3)
RECORD = 2 * 18


def record(number: int) -> np.ndarray:
    return np.random.default_rng(number).normal(size=SHAPE).astype(np.float16)


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "features"
    folder.mkdir(exist_ok=True)
    Description(SHAPE, {"name": "t"}).write(folder)
    return folder


def write(folder: Path, numbers: range, *, finish: bool = True, per_shard: int = 4) -> None:
    writer = ShardWriter(folder, SHAPE, shard_bytes=64 + per_shard * RECORD)
    for number in numbers:
        writer.append(f"k{number}", record(number))
    if finish:
        writer.finish()
    writer.close()


def check(folder: Path, numbers: range) -> None:
    features = Features(folder)
    assert sorted(features) == sorted(f"k{n}" for n in numbers)
    for number in numbers:
        assert (features[f"k{number}"] == record(number)).all()
    features.verify()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write(folder, range(10))
    check(folder, range(10))
    assert len(list(folder.glob("*.values"))) == 3
    features = pickle.loads(pickle.dumps(Features(folder)))
    assert features.shape == SHAPE
    assert "k3" in features
    batch = features.batch(["k7", "k2"])
    assert batch.dtype == torch.float32
    assert (batch[1].numpy() == record(2)).all()
    with pytest.raises(FeatureFileError, match="no features of 'k10'"):
        features["k10"]
    with pytest.raises(FeatureFileError, match="lacks the features of 2 samples, such as 'a', 'b'"):
        features.require(["k1", "a", "b"])


def test_the_format_is_as_documented(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write(folder, range(2))
    content = (folder / "000-00000.values").read_bytes()
    assert content[:8] == b"ES3FEAT1"
    assert struct.unpack("<4I", content[8:24]) == (3, *SHAPE)
    assert content[64 + RECORD :] == record(1).tobytes()
    lines = [json.loads(x) for x in (folder / "000-00000.index").read_text().splitlines()]
    assert [x.get("key") for x in lines] == ["k0", "k1", None]
    assert lines[-1]["records"] == 2


def test_a_run_killed_between_records_goes_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write(folder, range(6), finish=False)
    write(folder, range(6, 11))
    check(folder, range(11))
    # The shard that the kill left open was filled up first.
    lines = (folder / "000-00001.index").read_text().splitlines()
    assert [json.loads(x).get("key") for x in lines] == ["k4", "k5", "k6", "k7", None]


def test_a_run_killed_within_a_record_goes_on(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write(folder, range(3), finish=False)
    with (folder / "000-00000.values").open("ab") as file:
        file.write(b"\1" * 7)  # of a record whose line never came
    with (folder / "000-00000.index").open("a") as lines:
        lines.write('{"key": "k3", "cr')
    assert len(Features(folder)) == 3
    write(folder, range(3, 5))
    check(folder, range(5))


@pytest.mark.parametrize("lost", [1, RECORD, RECORD + 5, 4 * RECORD, 4 * RECORD + 64])
def test_a_shard_cut_short_is_an_error_and_is_mended(tmp_path: Path, lost: int) -> None:
    folder = folder_of(tmp_path)
    write(folder, range(8))
    path = folder / "000-00000.values"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(FeatureFileError, match=r"000-00000\.values is cut short: 4 records"):
        Features(folder)
    ShardWriter(folder, SHAPE).finish()  # what a resumed command does first
    kept = 4 - -(-min(lost, 4 * RECORD) // RECORD)
    assert sorted(Features(folder)) == sorted(f"k{n}" for n in [*range(kept), *range(4, 8)])
    write(folder, range(kept, 4))
    check(folder, range(8))


def test_other_ranks_shards_are_mended_too(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    writer = ShardWriter(folder, SHAPE, rank=3, world=4)
    writer.append("k0", record(0))
    writer.append("k1", record(1))
    writer.close()
    path = folder / "003-00000.values"
    path.write_bytes(path.read_bytes()[:-1])
    write(folder, range(1, 2))  # now one rank alone
    check(folder, range(2))


def test_damage_is_found(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write(folder, range(4))
    path = folder / "000-00000.values"
    content = bytearray(path.read_bytes())
    content[64 + RECORD + 3] ^= 1
    path.write_bytes(content)
    features = Features(folder)
    assert (features["k0"] == record(0)).all()
    with pytest.raises(FeatureFileError, match=r"record 1 \('k1'\) differs from its checksum"):
        features["k1"]
    with pytest.raises(FeatureFileError, match="differs from its sha256"):
        features.verify()
    assert Features(folder, check=False)["k1"].shape == SHAPE
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(FeatureFileError, match="its header is damaged"):
        Features(folder)["k0"]
    (folder / "000-00000.index").write_text('{"key": 1}\n')
    with pytest.raises(FeatureFileError, match="line 1 is damaged"):
        Features(folder)


def test_no_features(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match=r"no features\.json"):
        Features(tmp_path)
    (tmp_path / "features.json").write_text("{")
    with pytest.raises(FeatureFileError, match="does not describe"):
        Features(tmp_path)
    (tmp_path / "features.json").write_text('{"format": 9}')
    with pytest.raises(FeatureFileError, match="format 9"):
        Features(tmp_path)


def test_bad_records(tmp_path: Path) -> None:
    writer = ShardWriter(folder_of(tmp_path), SHAPE)
    with pytest.raises(FeatureFileError, match="k0: features have shape"):
        writer.append("k0", np.zeros((2, 3)))
    with (
        pytest.raises(FeatureFileError, match=r"k0: .* not finite in float16"),
        np.errstate(over="ignore"),
    ):
        writer.append("k0", np.full(SHAPE, 1e6, np.float32))
    writer.close()


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path)
    writer = ShardWriter(folder, SHAPE)
    writer.append("k0", record(0))

    def full(file: object, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", full)
        with pytest.raises(FeatureFileError, match=r"disk of .* is full at k1"):
            writer.append("k1", record(1))
    write(folder, range(1, 3))
    check(folder, range(3))


# From teachers ------------------------------------------------------------------------------


def test_a_teachers_maps(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    teacher = ImageTeacher.of(net, config)
    seen: list[tuple[int, int]] = []
    wrote = save_features(
        teacher, shapes, tmp_path, batch=3, progress=lambda done, of: seen.append((done, of))
    )
    assert wrote == 4
    assert seen == [(3, 4), (4, 4)]
    features = open_features(tmp_path)
    assert features.shape == (32, 8, 8)
    with torch.no_grad():
        want = net.part("trunk")(shapes[2].pixels(config.resolution))[0]
    got = torch.from_numpy(features["shape 2"].astype(np.float32))
    torch.testing.assert_close(got, want, atol=2e-3, rtol=2e-3)


def test_saving_goes_on_where_it_was(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    teacher = ImageTeacher.of(net, config)
    assert save_features(teacher, Subset(shapes, [0, 2]), tmp_path) == 2
    path = tmp_path / "000-00000.values"
    path.write_bytes(path.read_bytes()[:-10])
    assert [save_features(teacher, shapes, tmp_path, rank=r, world=2) for r in range(2)] == [1, 2]
    assert save_features(teacher, shapes, tmp_path) == 0
    Features(tmp_path).verify()
    assert len(Features(tmp_path)) == 4


def test_another_teacher(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    save_features(ImageTeacher.of(net, config), shapes, tmp_path)
    with torch.no_grad():
        net.part("trunk").pos_embed.add_(1)
    with pytest.raises(FeatureFileError, match="Choose another folder"):
        save_features(ImageTeacher.of(net, config), shapes, tmp_path)
    with pytest.raises(DataError, match="empty"):
        save_features(ImageTeacher.of(net, config), Shapes(0), tmp_path)


def test_too_little_space(tmp_path: Path, shapes: Shapes, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    config, net = tiny_net()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FeatureFileError, match=r"4 records of .* need .* GiB"):
        save_features(ImageTeacher.of(net, config), shapes, tmp_path)


def test_a_text_teachers_tokens(tmp_path: Path) -> None:
    config, net = tiny_net()
    teacher = TextTeacher.of(net, config)
    phrases = ["red apple", "dog", "red apple", "Grünkohl"]
    assert save_text_features(teacher, phrases, tmp_path, batch=2) == 3
    assert save_text_features(teacher, [*phrases, "cat"], tmp_path) == 1
    features = open_features(tmp_path)
    assert features.shape == (16, 16)
    want = teacher.read(["dog"])[0][0]
    got = torch.from_numpy(features["dog"].astype(np.float32))
    torch.testing.assert_close(got, want, atol=2e-3, rtol=2e-3)
    with pytest.raises(DataError, match="no phrase"):
        save_text_features(teacher, [], tmp_path)


# Upstream's format --------------------------------------------------------------------------


def test_upstreams_format_round_trip(tmp_path: Path) -> None:
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
    assert len(values) == 3 * (4 + RECORD)
    assert values[: 4 + RECORD] == struct.pack("<i", 7) + record(0).tobytes()
    assert (tmp_path / "rank0-keys.txt").read_text() == "k0\nk1\nk2\n"


def test_upstreams_files_that_do_not_fit(tmp_path: Path) -> None:
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

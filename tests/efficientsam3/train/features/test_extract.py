"""Features of teachers are computed once; a later call computes what is missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from efficientsam3.data.image_folder import ImageFolder
from efficientsam3.data.subsets import Subset
from efficientsam3.errors import DataError
from efficientsam3.train.errors import FeatureFileError
from efficientsam3.train.features import ShardFeatures, open_features
from efficientsam3.train.features.extract import extract_image_features, extract_text_features
from efficientsam3.train.teachers import ImageTeacher, TextTeacher

from ..conftest import Shapes, tiny_net

MAP_BYTES = 2 * 32 * 8 * 8


def assert_close_to_half(got: Any, want: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(got.astype(np.float32)), want, atol=2e-3, rtol=2e-3)


def test_maps_of_images(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    progress: list[tuple[int, int]] = []
    wrote = extract_image_features(
        ImageTeacher.of(net, config),
        shapes,
        tmp_path,
        batch=3,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert wrote == 4
    assert progress == [(3, 4), (4, 4)]
    features = open_features(tmp_path)
    assert features.shape == (32, 8, 8)
    with torch.no_grad():
        want = net.part("trunk")(shapes[2].pixels(config.resolution))[0]
    assert_close_to_half(features["shape 2"], want)


def test_a_later_call_computes_what_is_missing(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    teacher = ImageTeacher.of(net, config)
    assert extract_image_features(teacher, Subset(shapes, [0]), tmp_path) == 1
    assert extract_image_features(teacher, Subset(shapes, [0, 2]), tmp_path) == 1
    path = tmp_path / "000-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    wrote = [extract_image_features(teacher, shapes, tmp_path, rank=r, world=2) for r in range(2)]
    assert wrote == [1, 2]
    assert extract_image_features(teacher, shapes, tmp_path) == 0
    ShardFeatures(tmp_path).verify()
    assert len(ShardFeatures(tmp_path)) == 4


def test_a_damaged_shard_of_another_rank_is_computed_again(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    teacher = ImageTeacher.of(net, config)
    for rank in range(4):
        extract_image_features(teacher, shapes, tmp_path, rank=rank, world=4)
    path = tmp_path / "003-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert extract_image_features(teacher, shapes, tmp_path) == 1  # now one rank alone
    assert not path.exists()
    ShardFeatures(tmp_path).verify()


@pytest.mark.slow
def test_an_interrupted_call_keeps_its_shards(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    teacher = ImageTeacher.of(net, config)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    options: Any = {"batch": 1, "shard_bytes": 2 * MAP_BYTES}
    with pytest.raises(KeyboardInterrupt):
        extract_image_features(teacher, shapes, tmp_path, on_progress=stop, **options)
    assert sorted(ShardFeatures(tmp_path)) == ["shape 0", "shape 1"]
    assert extract_image_features(teacher, shapes, tmp_path, **options) == 2
    ShardFeatures(tmp_path).verify()


def test_a_folder_of_another_teacher_is_refused(tmp_path: Path, shapes: Shapes) -> None:
    config, net = tiny_net()
    extract_image_features(ImageTeacher.of(net, config), shapes, tmp_path)
    with torch.no_grad():
        net.part("trunk").pos_embed.add_(1)
    with pytest.raises(FeatureFileError, match="Choose another folder"):
        extract_image_features(ImageTeacher.of(net, config), shapes, tmp_path)
    with pytest.raises(DataError, match="empty"):
        extract_image_features(ImageTeacher.of(net, config), Shapes(0), tmp_path)


def test_too_little_space_is_said_before_computing(
    tmp_path: Path, shapes: Shapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, net = tiny_net()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(FeatureFileError, match=r"4 records of .* need .* GiB"):
        extract_image_features(ImageTeacher.of(net, config), shapes, tmp_path)


def test_tokens_of_phrases(tmp_path: Path) -> None:
    config, net = tiny_net()
    teacher = TextTeacher.of(net, config)
    phrases = ["red apple", "dog", "red apple", "Grünkohl"]
    assert extract_text_features(teacher, phrases, tmp_path, batch=2) == 3
    assert extract_text_features(teacher, [*phrases, "cat"], tmp_path) == 1
    features = open_features(tmp_path)
    assert sorted(features) == sorted({*phrases, "cat"})
    assert features.shape == (16, 16)
    assert_close_to_half(features["dog"], teacher.encode(["dog"])[0][0])
    with pytest.raises(DataError, match="no phrase"):
        extract_text_features(teacher, [], tmp_path)


def test_features_of_a_file_that_changed_are_computed_again(
    tmp_path: Path, shapes: Shapes, caplog: pytest.LogCaptureFixture
) -> None:
    photos, features = tmp_path / "photos", tmp_path / "features"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(shapes[i].image).save(photos / f"{i}.png")
    (photos / "notes.txt").write_text("no image")
    config, net = tiny_net()
    teacher = ImageTeacher.of(net, config)
    source = ImageFolder(photos)
    assert "1 file is passed over" in caplog.text and "1 .txt" in caplog.text
    one = 2 * 32 * 8 * 8  # a shard for each record
    assert extract_image_features(teacher, source, features, shard_bytes=one) == 3
    assert extract_image_features(teacher, source, features, shard_bytes=one) == 0
    Image.fromarray(255 - shapes[1].image).save(photos / "1.png")
    assert extract_image_features(teacher, source, features, shard_bytes=one) == 1
    assert "1 of 1 images changed since their features were saved" in caplog.text
    with torch.no_grad():
        want = net.part("trunk")(source[1].pixels(config.resolution))[0]
    found = open_features(features)
    assert len(found) == 3
    assert_close_to_half(found["1.png"], want)

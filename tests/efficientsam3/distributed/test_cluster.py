"""A cluster of several nodes of Ray on this machine: what dies is made up for, each image once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import efficientsam3 as es3
from efficientsam3.distributed.folder import shard_places
from efficientsam3.distributed.shards import decode_masks, read_shard

from .conftest import ASK, write_pictures

pytest.importorskip("ray", reason="needs the extra `ray`")
pytest.importorskip("pyarrow")

pytestmark = [
    pytest.mark.slow,  # processes that import torch
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
ROOT = Path(__file__).parents[3]
ROWS = 20


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without cores, so that nothing runs on it, and two nodes with one core each."""
    from efficientsam3.distributed.cluster import import_ray

    import_ray()
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    cluster.removable = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    yield cluster
    cluster.shutdown()


def command(photos: Path, out: Path, model: Path, *more: str, rows: int = ROWS) -> list[str]:
    words = [sys.executable, "-m", "efficientsam3", "annotate", str(photos), "--out", str(out)]
    words += ["-c", "person", "-c", "bus", "--threshold", "0.2", "--rows", str(rows)]
    return [*words, "-m", str(model), "--dtype", "float32", *more]


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def end_commands() -> Iterator[None]:
    """No command outlives a test that fails."""
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def start(words: list[str], **variables: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT / "model"), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200", **variables}
    pipe = subprocess.PIPE
    STARTED.append(subprocess.Popen(words, env=env, stdout=pipe, stderr=pipe, text=True))
    return STARTED[-1]


def wait_for_shards(process: subprocess.Popen[str], out: Path, count: int) -> None:
    end = time.monotonic() + 600
    while len(list(out.glob("annotations/part-*"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("images", "rows"), [(300, ROWS), pytest.param(10_000, 256, marks=pytest.mark.long)]
)
def test_a_node_and_the_command_are_killed_and_each_image_is_there_once(
    cluster: Any, model_folder: Path, tmp_path: Path, images: int, rows: int
) -> None:
    photos, out = write_pictures(tmp_path / "photos", images), tmp_path / "out"
    bad, shards = (7, 150, images - 1), -(-images // rows)
    for number in bad:
        (photos / f"{number:04d}.png").write_bytes(b"no image")
    words = command(photos, out, model_folder, "--ray", cluster.address, rows=rows)

    process = start(words)
    wait_for_shards(process, out, 2)
    cluster.remove_node(cluster.removable, allow_graceful=False)
    wait_for_shards(process, out, 5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path.name: path.read_bytes() for path in out.glob("annotations/part-*.parquet")}
    assert 5 <= len(before) < shards

    process = start(words)
    _, said = process.communicate(timeout=3000)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert f"{len(bad)} images of {images} failed" in said
    assert all(f"{number:04d}.png cannot be read" in said for number in bad)
    assert f"partitions of {shards} done before" in said and "images a second" in said
    kept = {path.name: path.read_bytes() for path in out.glob("annotations/part-*.parquet")}
    assert len(kept) == shards
    assert {name: kept[name] for name in before} == before, "what was done is not done again"

    records = [record for place in shard_places(str(out)) for record in read_shard(place)]
    assert [Path(r["key"]).name for r in records] == [f"{n:04d}.png" for n in range(images)]
    failed = [n for n, record in enumerate(records) if record["error"] is not None]
    assert failed == list(bad)
    model = es3.load(model_folder, dtype="float32", device="cpu")
    for number in range(0, images, 25):
        if number in bad:
            continue
        found = model.segment(photos / f"{number:04d}.png", **ASK)
        listed = records[number]["instances"]
        whole = [i for i in range(len(found)) if found.mask(i).any()]
        assert [one["label"] for one in listed] == [found.labels[i] for i in whole]
        scores = [one["score"] for one in listed]
        # Batches round in another way than images one by one.
        assert scores == pytest.approx([float(found.scores[i]) for i in whole], abs=2e-5)
        for i, one, mask in zip(whole, listed, decode_masks(records[number]), strict=True):
            assert (mask != found.mask(i)).sum() <= 3
            assert np.abs(np.array(found.crop(i)[1]) - one["box"]).max() <= 1


def test_a_cluster_is_found(cluster: Any, model_folder: Path, tmp_path: Path) -> None:
    photos, out = write_pictures(tmp_path / "photos", 12), tmp_path / "out"
    words = command(photos, out, model_folder, "--ray", "auto", "--workers", "1")
    process = start(words, RAY_ADDRESS=cluster.address)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0 and "by 1 worker" in said, said
    assert len(list(out.glob("annotations/part-*.parquet"))) == 1


def test_the_same_command_again_starts_nothing(model_folder: Path, tmp_path: Path) -> None:
    photos, out = write_pictures(tmp_path / "photos", 12), tmp_path / "out"
    words = command(photos, out, model_folder, "--workers", "1", "--coco")
    process = start(words)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert "12 images with" in said and "by 1 worker" in said
    assert len(list(out.glob("coco/*.json"))) == 1
    started = time.monotonic()
    process = start(words)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0 and "1 partition of 1 done before" in said
    assert "images a second" not in said, f"{time.monotonic() - started} s"
    process = start([*words, "--max-instances", "1"])
    _, said = process.communicate(timeout=600)
    assert process.returncode == 2
    assert "max_instances was None and is 1. Name another folder" in said


def test_videos_are_tracked(model_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    from ..video.films import write_film

    for name in ("a", "b"):
        write_film(tmp_path / f"{name}.mp4", 5)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    words = command(tmp_path / "*.mp4", tmp_path / "out", model_folder, "--workers", "1")
    process = start([*words, "--tracker", "iou"])
    _, said = process.communicate(timeout=600)
    assert process.returncode == 1, said
    assert "10 frames with" in said and "frames a second" in said
    assert "1 video of 3 could not be read to the end" in said
    records = [r for place in shard_places(str(tmp_path / "out")) for r in read_shard(place)]
    assert [r["frame"] for r in records] == [*range(5), *range(5), None]

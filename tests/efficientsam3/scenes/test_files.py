"""Scenes as files: what the benchmarks' readers expect, after any interruption."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.evaluate.truth import read_truth
from efficientsam3.evaluate.veval import read_clips
from efficientsam3.scenes import files
from efficientsam3.scenes.clips import film
from efficientsam3.scenes.compose import World
from efficientsam3.scenes.files import SceneFilesError, choose, write_clips, write_scenes
from efficientsam3.scenes.phrases import Query

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
numpy_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def gold(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(world, tmp_path_factory.mktemp("gold"), 6, first=3)


@pytest.fixture(scope="module")
def veval(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(world, tmp_path_factory.mktemp("veval"), 3, frames=5)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# Images -------------------------------------------------------------------------------------


def test_a_record_is_an_image_and_a_phrase(gold: Path, world: World) -> None:
    content = read(gold)
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert len({r["id"] for r in content["images"]}) == len(content["images"])
    for record in content["images"]:
        assert record["width"] == record["height"] == 96
        assert record["is_instance_exhaustive"] == 1
        with Image.open(gold.parent / "images" / record["file_name"]) as image:
            assert image.size == (96, 96)
    assert {r["file_name"] for r in content["images"]} == {
        f"scene_{seed:07d}.jpg" for seed in range(3, 9)
    }


@numpy_warns
def test_annotations_are_the_scenes_objects(gold: Path, world: World) -> None:
    content = read(gold)
    for record in content["images"]:
        scene = world.scene(int(record["file_name"][6:13]))
        query = next(q for q in scene.queries if q.phrase == record["text_input"])
        found = [a for a in content["annotations"] if a["image_id"] == record["id"]]
        assert len(found) == len(query.objects)
        for annotation, index in zip(found, query.objects, strict=True):
            mask = scene.objects[index].mask
            np.testing.assert_array_equal(coco.decode(annotation["segmentation"]), mask)
            assert annotation["area"] == pytest.approx(mask.sum() / 96**2)
            box = coco.toBbox(annotation["segmentation"]) / 96
            np.testing.assert_allclose(annotation["bbox"], box)


def test_there_are_negatives(gold: Path) -> None:
    content = read(gold)
    positive = {a["image_id"] for a in content["annotations"]}
    share = len(positive) / len(content["images"])
    assert 0.3 < share < 0.7


def test_images_are_as_the_scenes(gold: Path, world: World) -> None:
    with Image.open(gold.parent / "images" / "scene_0000003.jpg") as image:
        error = np.abs(np.asarray(image, int) - world.scene(3).image)
    assert error.mean() < 4


# Clips --------------------------------------------------------------------------------------


def test_videos_have_their_frames(veval: Path) -> None:
    content = read(veval)
    assert [v["video_name"] for v in content["videos"]] == [f"clip_{i:07d}" for i in range(3)]
    for video in content["videos"]:
        assert video["length"] == len(video["file_names"]) == 5
        for name in video["file_names"]:
            with Image.open(veval.parent / "frames" / name) as image:
                assert image.size == (video["width"], video["height"]) == (96, 96)


@numpy_warns
def test_masklets_are_the_clips_objects(veval: Path, world: World) -> None:
    content = read(veval)
    names = {c["id"]: c["name"] for c in content["categories"]}
    for pair in content["video_np_pairs"]:
        assert names[pair["category_id"]] == pair["noun_phrase"]
        clip = film(world, pair["video_id"] - 1, 5)
        query = next(q for q in clip.queries if q.phrase == pair["noun_phrase"])
        found = [
            a
            for a in content["annotations"]
            if (a["video_id"], a["category_id"]) == (pair["video_id"], pair["category_id"])
        ]
        assert len(found) == pair["num_masklets"] == len(query.objects)
        for annotation, index in zip(found, query.objects, strict=True):
            for frame, lengths, box, area in zip(
                clip,
                annotation["segmentations"],
                annotation["bboxes"],
                annotation["areas"],
                strict=True,
            ):
                mask = frame.masks[index]
                if not mask.any():
                    assert lengths is box is area is None
                    continue
                np.testing.assert_array_equal(coco.decode(lengths), mask)
                np.testing.assert_array_equal(box, coco.toBbox(lengths))
                assert area == mask.sum()
    assert any(not pair["num_masklets"] for pair in content["video_np_pairs"])


# Our own tools read them -----------------------------------------------------------------------


def test_the_evaluation_reads_the_scenes(gold: Path) -> None:
    truth = read_truth(gold)
    content = read(gold)
    assert truth.layout == "saco"
    assert [p.phrase for p in truth.pairs] == [r["text_input"] for r in content["images"]]
    assert sum(len(p.targets) for p in truth.pairs) == len(content["annotations"])
    for pair in truth.pairs:
        for target in pair.targets:
            assert max(target.box) > 1  # pixels again


@numpy_warns
def test_the_evaluation_reads_the_clips(veval: Path) -> None:
    content = read(veval)
    truth = read_clips(veval)
    assert truth.has_negatives
    assert len(truth.clips) == len(content["video_np_pairs"])
    assert sum(len(c.tracks) for c in truth.clips.values()) == len(content["annotations"])


# Interruptions ------------------------------------------------------------------------------

Write = Callable[[Path], Path]


def failing(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """Saving images breaks after a number of them."""
    saved, save = [0], files._save

    def broken(image: files.Pixels, path: Path) -> None:
        if saved[0] == after:
            raise error
        saved[0] += 1
        save(image, path)

    monkeypatch.setattr(files, "_save", broken)


@pytest.fixture(params=["scenes", "clips"])
def write(request: pytest.FixtureRequest, world: World) -> Write:
    if request.param == "scenes":
        return lambda folder: write_scenes(world, folder, 4)
    return lambda folder: write_clips(world, folder, 2, frames=3)


def test_a_stopped_run_goes_on_to_the_same_files(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        failing(patch, 3, KeyboardInterrupt())
        write(tmp_path / "stopped")
    assert not list((tmp_path / "stopped").glob("*.json"))
    journal = next((tmp_path / "stopped").glob(".*.journal"))
    with journal.open("a") as file:
        file.write('{"file": "cut sho')  # as a kill leaves it
    write(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_what_is_done_is_not_done_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    before = contents(tmp_path)
    failing(monkeypatch, 0, AssertionError("rendered again"))
    assert write(tmp_path) == path
    assert contents(tmp_path) == before


def test_a_full_disk_is_said_and_gone_on_from(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(SceneFilesError, match=r"is full.*goes on"):
        failing(patch, 1, OSError(errno.ENOSPC, "No space left on device"))
        write(tmp_path)
    assert write(tmp_path).exists()


def test_other_errors_of_the_disk_stay_what_they_are(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 1, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        write(tmp_path)


def test_other_scenes_in_the_folder_are_said(world: World, tmp_path: Path) -> None:
    write_scenes(world, tmp_path, 2)
    with pytest.raises(SceneFilesError, match=r"count 2 instead of 3.*another folder"):
        write_scenes(world, tmp_path, 3)


def test_a_journal_of_other_scenes_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        failing(patch, 1, KeyboardInterrupt())
        write_scenes(world, tmp_path, 3)
    with pytest.raises(SceneFilesError, match="seed 0 instead of 9"):
        write_scenes(world, tmp_path, 3, first=9)


def test_a_damaged_journal_is_said(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".gold.journal").write_text("nonsense\n")
    with pytest.raises(SceneFilesError, match=r"is damaged.*Delete it"):
        write_scenes(world, tmp_path, 3)


def test_nothing_to_write_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(SceneFilesError, match="at least 1 scene; got 0"):
        write_scenes(world, tmp_path, 0)


# Which phrases ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positive", "negative", "count", "expected"),
    [(9, 9, 8, (4, 4)), (2, 9, 8, (2, 6)), (9, 1, 8, (7, 1)), (1, 1, 8, (1, 1)), (5, 5, 1, (1, 0))],
)
def test_half_of_the_phrases_are_negative(
    positive: int, negative: int, count: int, expected: tuple[int, int]
) -> None:
    queries = [Query(f"p{i}", (0,), "name") for i in range(positive)]
    queries += [Query(f"n{i}", (), "near") for i in range(negative)]
    chosen = choose(queries, count, 5)
    assert (sum(bool(q.objects) for q in chosen), sum(not q.objects for q in chosen)) == expected
    assert chosen == choose(queries, count, 5)
    assert len(set(chosen)) == len(chosen)

"""Scenes as files: what readers of SA-Co expect, after any interruption."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from efficientsam3.data.veval import read_clip_annotations
from efficientsam3.errors import ArgumentError, RunFileError
from efficientsam3.evaluate.ground_truth import read_ground_truth
from efficientsam3_stickers import scene_files
from efficientsam3_stickers.clips import make_clip
from efficientsam3_stickers.scene_files import SceneFilesError, write_clips, write_scenes
from efficientsam3_stickers.scenes import SceneGenerator

numpy_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def gold(generator: SceneGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(generator, tmp_path_factory.mktemp("gold"), 6, first_seed=3)


@pytest.fixture(scope="module")
def veval(generator: SceneGenerator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(generator, tmp_path_factory.mktemp("veval"), 3, frames=5)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


# Images -------------------------------------------------------------------------------------


def test_a_record_is_a_pair_of_an_image_and_a_phrase(gold: Path, generator: SceneGenerator) -> None:
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
def test_annotations_are_the_objects_of_the_scenes(gold: Path, generator: SceneGenerator) -> None:
    content = read(gold)
    for record in content["images"]:
        scene = generator.scene(int(record["file_name"][6:13]))
        query = next(q for q in scene.queries if q.phrase == record["text_input"])
        found = [a for a in content["annotations"] if a["image_id"] == record["id"]]
        assert len(found) == len(query.objects)
        for annotation, index in zip(found, query.objects, strict=True):
            mask = scene.objects[index].mask
            np.testing.assert_array_equal(coco.decode(annotation["segmentation"]), mask)
            assert annotation["area"] == pytest.approx(mask.sum() / 96**2)
            box = coco.toBbox(annotation["segmentation"]) / 96
            np.testing.assert_allclose(annotation["bbox"], box)


def test_about_half_of_the_pairs_are_negative(gold: Path) -> None:
    content = read(gold)
    positive = {a["image_id"] for a in content["annotations"]}
    share = len(positive) / len(content["images"])
    assert 0.3 < share < 0.7


def test_images_are_those_of_the_scenes(gold: Path, generator: SceneGenerator) -> None:
    with Image.open(gold.parent / "images" / "scene_0000003.jpg") as image:
        error = np.abs(np.asarray(image, int) - generator.scene(3).image)
    assert error.mean() < 4


# Clips --------------------------------------------------------------------------------------


def test_videos_list_their_frames(veval: Path) -> None:
    content = read(veval)
    assert [v["video_name"] for v in content["videos"]] == [f"clip_{i:07d}" for i in range(3)]
    for video in content["videos"]:
        assert video["length"] == len(video["file_names"]) == 5
        for name in video["file_names"]:
            with Image.open(veval.parent / "frames" / name) as image:
                assert image.size == (video["width"], video["height"]) == (96, 96)


@numpy_warns
def test_masklets_are_the_objects_of_the_clips(veval: Path, generator: SceneGenerator) -> None:
    content = read(veval)
    names = {c["id"]: c["name"] for c in content["categories"]}
    for pair in content["video_np_pairs"]:
        assert names[pair["category_id"]] == pair["noun_phrase"]
        clip = make_clip(generator, pair["video_id"] - 1, 5)
        query = next(q for q in clip.queries if q.phrase == pair["noun_phrase"])
        found = [
            a
            for a in content["annotations"]
            if (a["video_id"], a["category_id"]) == (pair["video_id"], pair["category_id"])
        ]
        assert len(found) == pair["num_masklets"] == len(query.objects)
        for annotation, index in zip(found, query.objects, strict=True):
            for frame, run_lengths, box, area in zip(
                clip,
                annotation["segmentations"],
                annotation["bboxes"],
                annotation["areas"],
                strict=True,
            ):
                mask = frame.masks[index]
                if not mask.any():
                    assert run_lengths is box is area is None
                    continue
                np.testing.assert_array_equal(coco.decode(run_lengths), mask)
                np.testing.assert_array_equal(box, coco.toBbox(run_lengths))
                assert area == mask.sum()
    assert any(not pair["num_masklets"] for pair in content["video_np_pairs"])


# The evaluation reads them ----------------------------------------------------------------------


def test_the_evaluation_reads_the_scenes(gold: Path) -> None:
    truth = read_ground_truth(gold)
    content = read(gold)
    assert truth.layout == "saco"
    assert [p.phrase for p in truth.pairs] == [r["text_input"] for r in content["images"]]
    assert sum(len(p.targets) for p in truth.pairs) == len(content["annotations"])
    for pair in truth.pairs:
        for target in pair.targets:
            assert max(target.box) > 1  # boxes of truth are in pixels


@numpy_warns
def test_the_evaluation_reads_the_clips(veval: Path) -> None:
    content = read(veval)
    truth = read_clip_annotations(veval)
    assert truth.lists_negatives
    assert len(truth.queries) == len(content["video_np_pairs"])
    assert sum(len(c.tracks) for c in truth.queries.values()) == len(content["annotations"])


# Runs that are stopped, continued and changed ---------------------------------------------------

Write = Callable[..., Path]


def fail_after(monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException) -> None:
    """Saving an image raises an error after a number of images."""
    saved, save = [0], scene_files._save_image

    def save_or_fail(image: scene_files.Pixels, path: Path) -> None:
        if saved[0] == count:
            raise error
        saved[0] += 1
        save(image, path)

    monkeypatch.setattr(scene_files, "_save_image", save_or_fail)


@pytest.fixture(params=["scenes", "clips"])
def write(request: pytest.FixtureRequest, generator: SceneGenerator) -> Write:
    if request.param == "scenes":
        return lambda folder, count=4, **options: write_scenes(generator, folder, count, **options)
    return lambda folder, count=2, **options: write_clips(
        generator, folder, count, frames=3, **options
    )


def test_a_stopped_run_continues_to_the_same_files(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "complete")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fail_after(patch, 3, KeyboardInterrupt())
        write(tmp_path / "stopped")
    assert not list((tmp_path / "stopped").glob("*.json"))
    run_file = next((tmp_path / "stopped").glob("*.jsonl"))
    with run_file.open("a") as file:
        file.write('{"input": "cut sho')  # the line that a killed run leaves
    write(tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "complete")


def test_finished_scenes_are_not_rendered_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path)
    before = contents(tmp_path)
    fail_after(monkeypatch, 0, AssertionError("rendered again"))
    assert write(tmp_path) == path
    assert contents(tmp_path) == before


def test_more_scenes_extend_a_run(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one", 1)
    reports: list[tuple[int, int]] = []
    write(tmp_path / "one", 2, progress=lambda *report: reports.append(report))
    assert reports == [(1, 2), (2, 2)]
    write(tmp_path / "two", 2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    path = write(tmp_path / "two", 1, first_seed=1)
    assert read(path)["info"]["seed"] == 1 and read(path)["info"]["count"] == 1


def test_restart_renders_all_scenes_again(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    before = contents(tmp_path)
    fail_after(monkeypatch, 0, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, restart=True)
    monkeypatch.undo()
    write(tmp_path, restart=True)
    assert contents(tmp_path) == before


def test_changed_settings_start_the_run_again_with_a_sentence(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "first", phrases=2)
    with caplog.at_level(logging.WARNING):
        path = write(tmp_path / "first", phrases=4)
    assert "phrases was 2 and is 4. The run starts again" in caplog.text
    write(tmp_path / "second", phrases=4)
    assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


def test_a_full_disk_is_an_error_and_the_run_continues(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        monkeypatch.context() as patch,
        pytest.raises(SceneFilesError, match=r"is full.*to continue"),
    ):
        fail_after(patch, 1, OSError(errno.ENOSPC, "No space left on device"))
        write(tmp_path)
    assert write(tmp_path).exists()


def test_other_errors_of_the_disk_are_not_changed(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 1, PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(PermissionError):
        write(tmp_path)


@pytest.mark.parametrize("restart", [False, True])
def test_files_of_others_are_refused_and_kept(
    generator: SceneGenerator, tmp_path: Path, restart: bool
) -> None:
    for name, error in (("scenes.jsonl", RunFileError), ("gold.json", SceneFilesError)):
        file = tmp_path / name
        file.write_text('{"images": []}\n')
        with pytest.raises(error, match="is left as it is"):
            write_scenes(generator, tmp_path, 3, restart=restart)
        assert file.read_text() == '{"images": []}\n'
        file.unlink()


def test_nothing_to_write_is_an_error(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="at least 1; got count=0"):
        write(tmp_path, 0)

"""Runs that predict a split: each image once, stops, changes and missing images."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientsam3 import ImageError, ImageModel
from efficientsam3.errors import RunFileError
from efficientsam3.evaluate import (
    AnnotationError,
    GroundTruth,
    PredictionError,
    Progress,
    evaluate_images,
    read_ground_truth,
    read_predictions,
    score_images,
    write_coco_results,
)
from efficientsam3.evaluate.model_identity import model_identity

Write = Callable[[str, Any], Path]

# The untrained model's scores are between 0.3 and 0.45.
LOW = {"threshold": 0.42, "min_score": 0.35}


def test_each_image_is_encoded_once(
    tiny: ImageModel,
    truth: GroundTruth,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[Any] = []
    encode = ImageModel.encode

    def counting(self: ImageModel, images: Any, **options: Any) -> Any:
        encoded.append(images)
        return encode(self, images, **options)

    monkeypatch.setattr(ImageModel, "encode", counting)
    seen: list[Progress] = []
    run_file = tmp_path / "out/p.jsonl"
    report = evaluate_images(tiny, truth, images, run_file, progress=seen.append, **LOW)
    assert [len(images) for images in encoded] == [1, 1, 1]
    assert [(p.done, p.total) for p in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[0].rate > 0 and seen[0].rate > 0
    assert report.counts["predictions"] > 0 and report.settings["model"] == "tiny"
    # The file holds what the model predicts.
    direct = tiny.segment(images / "a.png", ["red square", "dog"], threshold=0.35)
    first = json.loads(run_file.read_text().splitlines()[1])
    assert [r["image_id"] for r in first["result"]] == [
        {"red square": 10, "dog": 11}[label] for label in direct.labels
    ]
    assert [r["score"] for r in first["result"]] == direct.scores.tolist()
    assert [r["segmentation"] for r in first["result"]] == direct.rles
    # The COCO result list holds the same.
    results = tmp_path / "p.json"
    assert write_coco_results(results, run_file) == sum(
        len(p) for p in read_predictions(run_file, truth).by_pair.values()
    )
    again = score_images(truth, read_predictions(results, truth), threshold=0.42)
    assert _same(again.metrics, report.metrics)


def _same(one: dict[str, float], two: dict[str, float]) -> bool:
    return one.keys() == two.keys() and all(
        a == two[name] or (math.isnan(a) and math.isnan(two[name])) for name, a in one.items()
    )


class Stop(Exception):
    """Stands for any exception that ends a run."""


def stop_after(images: int) -> Callable[[Progress], None]:
    def progress(now: Progress) -> None:
        if now.done == images:
            raise Stop

    return progress


@pytest.mark.parametrize("cut", [0, 1, 40, "all but the line's end"])
def test_a_stopped_run_continues_and_gives_the_same(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path, cut: int | str
) -> None:
    complete = evaluate_images(tiny, truth, images, tmp_path / "complete.jsonl", **LOW)
    run_file = tmp_path / "stopped.jsonl"
    with pytest.raises(Stop):
        evaluate_images(tiny, truth, images, run_file, progress=stop_after(2), **LOW)
    lines = (tmp_path / "complete.jsonl").read_bytes().splitlines(keepends=True)
    assert run_file.read_bytes() == b"".join(lines[:3])
    with run_file.open("ab") as file:  # the third image's line, as far as it was written
        file.write(lines[3][: cut if isinstance(cut, int) else -1])
    seen: list[Progress] = []
    report = evaluate_images(tiny, truth, images, run_file, progress=seen.append, **LOW)
    assert [(p.before, p.done) for p in seen] == [(2, 3)]
    assert run_file.read_bytes() == b"".join(lines)
    assert _same(report.metrics, complete.metrics)


def test_images_that_are_encoded_together_give_the_same_to_rounding(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    (images / "b.png").unlink()
    one = evaluate_images(tiny, truth, images, tmp_path / "one.jsonl", skip_missing=True, **LOW)
    options: dict[str, Any] = {**LOW, "skip_missing": True, "batch_size": 2}
    seen: list[Progress] = []
    run_file = tmp_path / "p.jsonl"
    with pytest.raises(Stop):
        evaluate_images(tiny, truth, images, run_file, progress=stop_after(1), **options)
    two = evaluate_images(tiny, truth, images, run_file, progress=seen.append, **options)
    assert (seen[0].before, seen[-1].done, seen[-1].failed) == (1, 3, 1)
    assert two.counts == one.counts
    assert two.metrics == pytest.approx(one.metrics, abs=1e-4, nan_ok=True)
    records = [json.loads(line) for line in run_file.read_text().splitlines()[1:]]
    assert [record["input"] for record in records] == list(truth.images)


def test_a_run_that_finished_nothing_starts_again(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    run_file = tmp_path / "p.jsonl"
    for start in (b"", b'{"for', b'{"format": "efficientsam3-run-1", "ki'):
        run_file.write_bytes(start)
        assert evaluate_images(tiny, truth, images, run_file, **LOW).counts["pairs"] == 5
    run_file.write_text("my notes\n")
    with pytest.raises(RunFileError, match="is not a file of predictions that a run wrote"):
        evaluate_images(tiny, truth, images, run_file, **LOW)
    assert run_file.read_text() == "my notes\n"


def test_other_arguments_start_the_run_again(
    tiny: ImageModel,
    toy: SimpleNamespace,
    truth: GroundTruth,
    images: Path,
    write: Write,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_file = images.parent / "p.jsonl"
    evaluate_images(tiny, truth, images, run_file, **LOW)
    before = run_file.read_bytes()
    evaluate_images(tiny, truth, images, run_file, threshold=0.42, min_score=0.1)
    assert "min_score was 0.35 and is 0.1. The run starts again" in caplog.text
    assert run_file.with_name("p.jsonl.previous").read_bytes() == before
    other = read_ground_truth(write("gold.json", toy.saco(toy.PAIRS[:4])))
    report = evaluate_images(tiny, other, images, run_file, threshold=0.42, min_score=0.1)
    assert "annotations was" in caplog.text and report.counts["pairs"] == 4
    caplog.clear()
    evaluate_images(tiny, other, images, run_file, restart=True, **LOW)
    assert not caplog.records


def test_changed_images_are_predicted_again(
    tiny: ImageModel,
    truth: GroundTruth,
    images: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_file = tmp_path / "p.jsonl"
    evaluate_images(tiny, truth, images, run_file, **LOW)
    noise = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(images / "b.png")
    seen: list[Progress] = []
    report = evaluate_images(tiny, truth, images, run_file, progress=seen.append, **LOW)
    assert [(p.before, p.done) for p in seen] == [(2, 3)]
    assert "1 of 3 inputs changed after the earlier run" in caplog.text
    fresh = evaluate_images(tiny, truth, images, tmp_path / "fresh.jsonl", **LOW)
    assert _same(report.metrics, fresh.metrics)


def test_images_of_another_folder_are_predicted_again(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    run_file, other = tmp_path / "p.jsonl", tmp_path / "other"
    evaluate_images(tiny, truth, images, run_file, **LOW)
    shutil.copytree(images, other)
    for image in truth.images:
        Image.new("RGB", (60, 40)).save(other / image)
    report = evaluate_images(tiny, truth, other, run_file, **LOW)
    fresh = evaluate_images(tiny, truth, other, tmp_path / "fresh.jsonl", **LOW)
    assert _same(report.metrics, fresh.metrics)


def test_other_weights_are_another_model(tiny: ImageModel) -> None:
    identity = model_identity(tiny)
    assert json.loads(json.dumps(identity)) == identity
    other = ImageModel.from_config(tiny.config, "tiny", device="cpu", dtype="float32")
    changed = model_identity(other)
    assert {k for k in identity if identity[k] != changed[k]} == {"weights"}
    assert model_identity(tiny) == identity


def test_a_run_of_fewer_images_is_continued_with_more(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    few, run_file = read_ground_truth(truth.paths[0], limit=1), tmp_path / "p.jsonl"
    assert evaluate_images(tiny, few, images, run_file, **LOW).counts["pairs"] == 2
    with pytest.raises(PredictionError, match=r"has 1 of 3 images: .* Run it again"):
        read_predictions(run_file, truth)
    seen: list[Progress] = []
    evaluate_images(tiny, truth, images, run_file, progress=seen.append, **LOW)
    assert [p.before for p in seen] == [1, 1]
    # The few can be scored out of the many.
    assert score_images(few, read_predictions(run_file, few)).counts["pairs"] == 2


# Missing images ---------------------------------------------------------------------------------


def test_missing_images_are_reported_first(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    (images / "b.png").unlink()
    with pytest.raises(AnnotationError, match=r"1 of 3 images .* b\.png \(image id 12\)"):
        evaluate_images(tiny, truth, images, tmp_path / "p.jsonl", **LOW)
    with pytest.raises(AnnotationError, match="there is no folder of images at"):
        evaluate_images(tiny, truth, tmp_path / "none", tmp_path / "p.jsonl", **LOW)
    assert not (tmp_path / "p.jsonl").exists()


def test_skipped_images_are_predicted_once_they_exist(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    run_file, away = tmp_path / "p.jsonl", tmp_path / "away.png"
    shutil.move(images / "b.png", away)
    (images / "sub/c.png").write_bytes(b"no image")
    seen: list[Progress] = []
    report = evaluate_images(
        tiny, truth, images, run_file, skip_missing=True, progress=seen.append, **LOW
    )
    assert report.counts["pairs"] == 2 and seen[-1].failed == 2
    assert set(report.failed) == {"b.png", "sub/c.png"}
    assert "there is no image b.png" in report.failed["b.png"]
    assert "cannot be read as an image" in report.failed["sub/c.png"]
    with pytest.raises(ImageError, match=r"image id 13 of .*gold\.json: .*c\.png cannot be read"):
        shutil.move(away, images / "b.png")
        evaluate_images(tiny, truth, images, run_file, **LOW)
    Image.new("RGB", (60, 40)).save(images / "sub/c.png")
    report = evaluate_images(tiny, truth, images, run_file, **LOW)
    assert report.counts["pairs"] == 5 and not report.failed


def test_images_are_found_in_several_folders_by_their_bare_names(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    shutil.move(images / "sub/c.png", tmp_path / "more/c.png")
    folders = [images, tmp_path / "more"]
    report = evaluate_images(tiny, truth, folders, tmp_path / "p.jsonl", **LOW)
    assert report.counts["images"] == 3


def test_images_of_another_size_are_named(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (61, 40)).save(images / "b.png")
    with pytest.raises(ImageError, match=r"image id 12 .*b\.png has 40 x 61 .* says 40 x 60"):
        evaluate_images(tiny, truth, images, tmp_path / "p.jsonl", **LOW)


def test_images_annotated_without_their_exif_rotation(
    tiny: ImageModel, truth: GroundTruth, images: Path, tmp_path: Path
) -> None:
    plain = evaluate_images(tiny, truth, images, tmp_path / "plain.jsonl", **LOW)
    turned = Image.Exif()
    turned[0x112] = 6  # to be shown on its side; the annotations are of the stored pixels
    with Image.open(images / "a.png") as image:
        image.load()
    image.save(images / "a.png", exif=turned)
    report = evaluate_images(tiny, truth, images, tmp_path / "turned.jsonl", **LOW)
    assert _same(report.metrics, plain.metrics)

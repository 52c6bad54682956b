"""What fuzzing found: each input that did not end in an answer or a typed error, as a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from efficientsam3.data.annotated_images import AnnotatedImages
from efficientsam3.data.coco import CocoAnnotations
from efficientsam3.data.json_records import read_json
from efficientsam3.data.object_videos import read_gray, read_object_videos
from efficientsam3.data.phrases import read_phrases
from efficientsam3.data.sa1b import SA1B
from efficientsam3.data.saco import SaCoAnnotations
from efficientsam3.data.sav import SAV
from efficientsam3.errors import (
    AnnotationError,
    DataError,
    EfficientSam3Error,
    ImageError,
    MaskError,
    PromptError,
    RunFileError,
)
from efficientsam3.evaluate.errors import PredictionError
from efficientsam3.evaluate.ground_truth import read_ground_truth
from efficientsam3.evaluate.images import find_image_files
from efficientsam3.evaluate.predictions import Prediction, Predictions, read_predictions
from efficientsam3.evaluate.score import score_images
from efficientsam3.io import rle
from efficientsam3.io.frames import read_frames
from efficientsam3.io.images import read_rgb
from efficientsam3.prompts import read_object_prompts
from efficientsam3.segment_files import SegmentRun
from efficientsam3.video.track_file import TrackFile, read_tracked

from .annotations import Sa1b, Sav
from .runs import Tracks, instances
from .samples import COCO, HEIGHT, LVIS, SACO, WIDTH, changed, picture

# Masks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [1e9, -1e9, 10**400, 1e300])
def test_a_polygon_far_outside_the_image_is_refused(far: float) -> None:
    # pycocotools makes a point for each pixel of an edge, and ended the process.
    with pytest.raises(MaskError, match="at most 100,016 from 0"):
        rle.from_segmentation([[0, 0, far, 0, far, far]], (HEIGHT, WIDTH))


def test_a_polygon_may_reach_over_the_border_of_the_image() -> None:
    mask = rle.decode(rle.from_segmentation([[-50, -50, 5000, -50, 5000, 90, -50, 90]], (12, 16)))
    assert mask.all()


@pytest.mark.parametrize("counts", [[10**12], "a", [0]])
def test_a_mask_that_no_memory_holds_is_refused(counts: Any) -> None:
    with pytest.raises(MaskError, match="at most 4,294,967,295 pixels"):
        rle.decode({"size": [10**6, 10**6], "counts": counts})


# JSON ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000, "nested too deeply"),
        (b"9" * 10_000, "number that is too long"),
    ],
)
def test_json_that_python_cannot_read_is_refused(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(AnnotationError, match=sentence):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("sound", "place", "new", "sentence"),
    [
        (COCO, ("annotations", 0, "area"), "big", "has area 'big'"),
        (COCO, ("annotations", 0, "area"), 10**400, "has area 1000"),
        (COCO, ("annotations", 0, "bbox"), [0, 0, 10**400, 1], "has bbox"),
        (COCO, ("images", 0, "height"), 10**400, "has height 1000"),
        (COCO, ("images", 0, "width"), 10**9, "at most 268,435,456 pixels"),
        (COCO, ("categories", 0, "synonyms"), 7, "has synonyms 7"),
        (LVIS, ("images", 0, "not_exhaustive_category_ids"), 7, "it is a list of ids"),
        (LVIS, ("images", 0, "neg_category_ids"), [{}], "it is a list of ids"),
    ],
)
def test_a_value_of_another_type_is_named(
    sound: Any, place: tuple[Any, ...], new: Any, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(changed(sound, place, new)))
    with pytest.raises(AnnotationError, match=sentence):
        for index in range(len(reader := CocoAnnotations(tmp_path / "truth.json"))):
            reader[index]


def test_ids_of_categories_may_be_numbers_and_texts(tmp_path: Path) -> None:
    content = changed(COCO, ("categories", 1, "id"), "dog-7")
    content = changed(content, ("annotations", 1, "category_id"), "dog-7")
    (tmp_path / "truth.json").write_text(json.dumps(content))
    reader = CocoAnnotations(tmp_path / "truth.json")
    assert {q.phrase for q in reader[0].queries} == {"cat", "dog"}


def test_a_category_whose_name_is_an_underscore_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(changed(COCO, ("categories", 0, "name"), "_")))
    assert CocoAnnotations(tmp_path / "a.json").phrases == ["_", "dog"]


@pytest.mark.parametrize(
    ("place", "new"),
    [
        (("annotations", 0, "point_coords"), []),
        (("annotations", 0, "point_coords"), [[1, "x"]]),
        (("annotations", 1, "point_coords"), [1, 2]),
        (("annotations", 0, "area"), "x"),
        (("image",), 3.5),
    ],
)
def test_annotations_of_sa1b_are_checked(place: tuple[Any, ...], new: Any, tmp_path: Path) -> None:
    (tmp_path / "sa_1.json").write_text(json.dumps(changed(Sa1b.sound, place, new)))
    (tmp_path / "sa_1.jpg").write_bytes(picture("JPEG"))
    with pytest.raises(AnnotationError, match=r"sa_1\.json"):
        SA1B(tmp_path)[0]


@pytest.mark.parametrize("height", ["", "tall", 10**9, None, float("inf")])
def test_annotations_of_sav_are_checked(height: Any, tmp_path: Path) -> None:
    content = changed(Sav.sound, ("video_height",), height)
    (tmp_path / "sav_000001_manual.json").write_text(json.dumps(content))
    (tmp_path / "sav_000001").mkdir()
    with pytest.raises(EfficientSam3Error):
        SAV(tmp_path).cut(0, 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    "content", [{"categories": 3}, {"categories": [3]}, {"images": [3]}, {"categories": [{}]}]
)
def test_phrases_of_a_file_of_another_kind_are_refused(content: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError):
        read_phrases(tmp_path / "a.json")


def test_lists_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not a text in UTF-8"):
        read_phrases(tmp_path / "a.txt")
    (tmp_path / "labels" / "v").mkdir(parents=True)
    with pytest.raises(AnnotationError, match="not a text in UTF-8"):
        read_object_videos(tmp_path / "labels", videos=tmp_path / "a.txt")


def test_a_map_of_objects_that_pillow_does_not_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"DDS " + b"\x7c\0\0\0" + bytes(120))
    with pytest.raises(AnnotationError, match="cannot be read as an image"):
        read_gray(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_of_a_missing_image(name: str, tmp_path: Path) -> None:
    content = changed(SACO, ("images", 0, "file_name"), name)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    data = AnnotatedImages(tmp_path, SaCoAnnotations(tmp_path / "truth.json"))
    with pytest.raises(DataError, match="which is missing"):
        data[0]
    with pytest.raises(AnnotationError, match="images of"):
        find_image_files(read_ground_truth(tmp_path / "truth.json"), tmp_path)


def test_a_column_of_captions_that_is_no_text_is_refused(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    broken = pyarrow.array([b"caf\xe9", b"\xff"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"re_caption": broken}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="not parquet, or is cut short"):
        read_phrases(tmp_path / "a.parquet")


def test_a_column_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"re_caption": ["a"], "other": [1]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"other", b"oth\xffr"))
    with pytest.raises(DataError, match="not parquet, or is cut short"):
        read_phrases(tmp_path / "a.parquet")


@pytest.mark.parametrize("masks", [{}, "x", [10**400], [[{}]], [[[]]]])
def test_masks_that_are_no_numbers_are_refused(masks: Any) -> None:
    with pytest.raises(PromptError, match="masks are"):
        read_object_prompts((48, 64), 32, None, None, None, masks)


# Predictions --------------------------------------------------------------------------------------


def test_average_precision_of_masks_names_an_instance_that_has_none(tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(COCO))
    truth = read_ground_truth(tmp_path / "truth.json")
    low = Prediction((1, 1, 5, 5), None, 0.2)  # below the threshold of cgF1
    with pytest.raises(PredictionError, match=r"a prediction of 'cat' .* has a box and no mask"):
        score_images(truth, Predictions({(1, 1): [low]}), iou="mask")


@pytest.mark.parametrize("result", [{"a": 1}, "text", 3, [3]])
def test_damaged_predictions_are_named(result: Any, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(SACO))
    truth = read_ground_truth(tmp_path / "truth.json")
    head = {"format": "efficientsam3-run-1", "kind": "predictions", "asked": {}}
    record = {"input": "a.png", "identity": None, "result": result}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(head)}\n{json.dumps(record)}\n")
    with pytest.raises(PredictionError, match=r"p\.jsonl"):
        read_predictions(tmp_path / "p.jsonl", truth)


# Run files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        {"frame": 0},
        {"frame": -1, "time": None, "size": [4, 6], "objects": []},
        {"frame": 0, "size": [4, 6], "objects": []},
        {"frame": 0, "time": "x", "size": [4, 6], "objects": []},
        {"frame": 0, "time": 0, "size": [4], "objects": []},
        {"frame": 0, "time": 0, "size": [4, 6], "objects": [{"id": 0}]},
        {"end": True, "stop": "x"},
        {"end": True, "stop": None, "left_out": [1]},
        {"a": 1},
    ],
)
def test_a_damaged_record_of_tracks_is_named(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with TrackFile(path, Tracks.asked, Tracks.video) as file:
        file.write_frame = None
        file._open()
    with path.open("a") as lines:
        lines.write(json.dumps(record) + "\n" + '{"end": true, "stop": null}\n')
    with pytest.raises(RunFileError, match=r"t\.jsonl has a damaged record"):
        TrackFile(path, Tracks.asked, Tracks.video)
    with pytest.raises(RunFileError, match=r"t\.jsonl has a damaged record"):
        list(read_tracked(path))


@pytest.mark.parametrize("place", ["name", "folder", "written", "result"])
def test_a_damaged_record_of_an_image_is_named(place: str, tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(picture())
    arguments = {"concepts": ["cat", "dog"]}

    class Model:
        def segment(self, pixels: Any, **arguments: Any) -> Any:
            return instances(0)

    def open_run() -> SegmentRun:
        return SegmentRun(tmp_path / "out", arguments, {"model": "x"}, masks=False, overlays=False)

    from efficientsam3.segment_files import find_images

    with open_run() as run:
        list(run.segment(Model(), run.pending(find_images([image], tmp_path / "out"))))  # type: ignore[arg-type]
    path = tmp_path / "out" / "run.jsonl"
    head, line = path.read_text().splitlines()
    path.write_text(f"{head}\n{json.dumps(changed(json.loads(line), (place,), 7))}\n{line}\n")
    with pytest.raises(RunFileError, match=r"run\.jsonl has a damaged record"):
        open_run()


def test_labels_of_rows_of_several_lengths_are_refused() -> None:
    labels = [[1], [1, 0], 1]
    with pytest.raises(PromptError, match=r"one number for each; got \[\[1\], \[1, 0\], 1\]"):
        read_object_prompts((48, 64), 24, None, [[[3, 4]]] * 3, labels, None)


# Pictures -----------------------------------------------------------------------------------------


def test_an_avif_without_a_time_scale_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def divide(image: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", divide)
    with pytest.raises(ImageError, match="division by zero"):
        read_rgb(tmp_path / "a.png")


# Videos -------------------------------------------------------------------------------------------


def test_a_video_whose_title_is_no_text_is_read(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "a title of many words"
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = 32, 32
        for _ in range(3):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8)))
            )
        container.mux(stream.encode())
    data = path.read_bytes()
    assert b"a title" in data
    path.write_bytes(data.replace(b"a title", b"\xff\xfetitle"))
    with read_frames(str(path)) as reader:
        assert len(list(reader)) == 3

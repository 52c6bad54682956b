"""Asking a model about a split, being stopped, going on; and scoring what is in a file."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from efficientsam3 import ImageError, ImageModel, MissingAbilityError
from efficientsam3.evaluate import (
    AnnotationError,
    Pair,
    Prediction,
    PredictionError,
    Predictions,
    Progress,
    ResumeError,
    Target,
    Truth,
    evaluate_images,
    read_predictions,
    read_truth,
    score_images,
    write_results,
)
from efficientsam3.evaluate.images import run_identity

Write = Callable[[str, Any], Path]
pytestmark = pytest.mark.usefixtures("one_thread")

# The untrained model's scores are between 0.3 and 0.45.
LOW = {"threshold": 0.42, "floor": 0.35}


@pytest.fixture
def truth(toy: SimpleNamespace, write: Write) -> Truth:
    return read_truth(write("gold.json", toy.saco()))


# Files of predictions -------------------------------------------------------------------------


def test_perfect_predictions(toy: SimpleNamespace, write: Write, truth: Truth) -> None:
    rows = [
        toy.result(number, box, 0.9)
        for number, (_, _, boxes) in enumerate(toy.PAIRS, 10)
        for box in boxes
    ]
    found = read_predictions(write("p.json", rows), truth)
    for iou in ("mask", "box"):
        report = score_images(truth, found, iou=iou)
        assert report.figures["cgF1"] == pytest.approx(100, abs=0.02)
        assert report.figures["AP"] == pytest.approx(100)
    assert report.counts == {
        "pictures": 3,
        "pairs": 5,
        "positive_pairs": 3,
        "negative_pairs": 2,
        "instances": 4,
        "predictions": 4,
        "IL_TP": 3,
        "IL_FP": 0,
        "IL_FN": 0,
        "IL_TN": 2,
        "pairs_left_out": 0,
    }
    nothing = score_images(truth, read_predictions(write("none.json", []), truth))
    assert (nothing.figures["cgF1"], nothing.figures["AP"]) == (0, 0)
    plain = nothing.to_dict()
    assert plain["positive_macro_F1"] is None and json.loads(json.dumps(plain)) == plain


def test_figures_by_hand(toy: SimpleNamespace, write: Write, truth: Truth) -> None:
    rows = [
        toy.result(10, toy.LEFT, 0.9),  # hit; RIGHT is missed
        toy.result(11, toy.LEFT, 0.8),  # there is no dog
        toy.result(12, toy.LEFT, 0.49),  # right, but scores too little
        toy.result(14, toy.TOP, 0.5),  # hit: at least 0.5
    ]
    figures = score_images(truth, read_predictions(write("p.json", rows), truth)).figures
    # TP 2 of 2 predictions in positive pairs, of 4 instances: F1 = 2 * 1 * .5 / 1.5
    assert figures["pmF1"] == pytest.approx(100 * 2 / 3, abs=0.02)
    # TP 2, FP 1, FN 1, TN 1: (2 - 1) / sqrt(3 * 3 * 2 * 2) = 1 / 6
    assert figures["IL_MCC"] == pytest.approx(1 / 6, abs=1e-6)
    assert figures["cgF1"] == pytest.approx(100 / 9, abs=0.02)
    assert figures["precision"] == pytest.approx(100 * 2 / 3, abs=0.02)
    # AP, red square: 0.9 hit, 0.49 hit of 3 instances: 67 of 101 recalls. Blue thing: 1.
    assert figures["AP"] == pytest.approx(100 * (67 / 101 + 1) / 2)


def test_what_was_never_in_a_file(toy: SimpleNamespace) -> None:
    one, two = np.zeros((2, 20, 30), bool)
    one[2:12, 3:13], two[2:12, 3:10] = True, True  # IoU 0.7
    pairs = (
        Pair((0, 0), "scene 0", (20, 30), "apple", "apple", ((Target.of(one),),)),
        Pair((0, 1), "scene 0", (20, 30), "pear", "pear", ((),)),
    )
    truth = Truth("scenes", "saco", (), pairs)
    found = Predictions({(0, 0): [Prediction.of(two, 0.7)]})
    report = score_images(truth, found)
    assert pairs[0].targets[0].box == (3, 2, 13, 12)
    assert (report.figures["AP50"], report.figures["AP75"]) == (pytest.approx(100), 0)
    assert report.figures["pmF1@50"] == pytest.approx(100, abs=0.02)
    assert report.figures["IL_MCC"] == pytest.approx(1, abs=1e-5)


def test_pairs_that_are_not_exhaustive_have_no_cgf1(toy: SimpleNamespace, write: Write) -> None:
    content = toy.saco()
    content["images"][1]["is_instance_exhaustive"] = 0
    truth = read_truth(write("g.json", content))
    rows = [toy.result(11, toy.LEFT, 0.9), toy.result(12, toy.LEFT, 0.9)]
    report = score_images(truth, read_predictions(write("p.json", rows), truth))
    assert (report.counts["IL_FP"], report.counts["pairs_left_out"]) == (0, 1)


def test_boxes_alone_are_enough_for_box_overlap(
    toy: SimpleNamespace, write: Write, truth: Truth
) -> None:
    row = toy.result(12, toy.LEFT, 0.9)
    del row["segmentation"]
    x, y, w, h = row["bbox"]
    height, width = toy.SIZE
    row["bbox"] = [x / width, y / height, w / width, h / height]  # as SA-Co's own files have them
    found = read_predictions(write("p.json", [row]), truth)
    assert score_images(truth, found, iou="box").counts["IL_TP"] == 1
    with pytest.raises(PredictionError, match=r"'red square' in b\.png .* has a box and no mask"):
        score_images(truth, found)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"predictions": []}, "is no list of predictions"),
        ([{"image_id": 10}], r"predictions\[0\] has no 'score'"),
        ([5], r"predictions\[0\] is a int"),
        ([{"image_id": 99, "score": 1}], r"predictions\[0\] has image_id 99, which .*gold\.json"),
        ([{"image_id": [1], "score": 1}], r"predictions\[0\] has an image_id .* no id"),
        ([{"image_id": 10, "score": 1}], "neither 'segmentation' nor 'bbox'"),
        ([{"image_id": 10, "score": None, "bbox": [0, 0, 5, 5]}], "has score None"),
        (
            [{"image_id": 10, "score": 1, "segmentation": {"size": [4, 4], "counts": [16]}}],
            "has a segmentation of 4 x 4, but its picture is 40 x 60",
        ),
        ('[{"image_id": 1', "is no JSON, or cut short"),
    ],
)
def test_bad_predictions_are_named(truth: Truth, write: Write, rows: Any, sentence: str) -> None:
    with pytest.raises(PredictionError, match=sentence):
        read_predictions(write("p.json", rows), truth)


def lvis(toy: SimpleNamespace) -> dict[str, Any]:
    """Two pictures and three categories; nobody looked for dogs in the first, or cars at all."""
    height, width = toy.SIZE
    size = {"width": width, "height": height}
    box = {"bbox": toy.xywh(toy.LEFT), "segmentation": toy.rle_of(toy.LEFT), "area": 400}
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "neg_category_ids": [], **size},
            {"id": 2, "file_name": "b.png", "neg_category_ids": [2], **size},
        ],
        "categories": [
            {"id": number, "name": name, "frequency": "f"}
            for number, name in ((1, "red_square"), (2, "dog"), (3, "car"))
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, **box},
            {"id": 2, "image_id": 2, "category_id": 1, **box},
        ],
    }


def test_categories_that_nobody_looked_for_are_not_scored(
    toy: SimpleNamespace, write: Write
) -> None:
    truth = read_truth(write("lvis.json", lvis(toy)))
    rows = [
        toy.result(1, toy.LEFT, 0.9, category=1),
        toy.result(1, toy.LEFT, 0.9, category=2),  # nobody looked
        toy.result(1, toy.LEFT, 0.9, category=3),
        toy.result(2, toy.LEFT, 0.9, category=2),  # someone did
    ]
    report = score_images(truth, read_predictions(write("p.json", rows), truth))
    counts = [report.counts[f"IL_{n}"] for n in ("TP", "FP", "FN", "TN")]
    assert counts == [1, 1, 1, 0] and report.counts["predictions"] == 2
    assert report.figures["AP"] == report.figures["APf"] == pytest.approx(100 * 51 / 101)
    with pytest.raises(PredictionError, match=r"predictions\[0\] has category_id 7, which"):
        read_predictions(write("p.json", [toy.result(1, toy.LEFT, 0.9, category=7)]), truth)
    with pytest.raises(PredictionError, match=r"predictions\[0\] has no 'category_id'"):
        read_predictions(write("p.json", [{"image_id": 1, "score": 1}]), truth)


def test_a_model_is_asked_for_categories(
    tiny: ImageModel, toy: SimpleNamespace, write: Write, pictures: Path, tmp_path: Path
) -> None:
    truth = read_truth(write("lvis.json", lvis(toy)))
    journal = tmp_path / "p.jsonl"
    assert evaluate_images(tiny, truth, pictures, journal, floor=0.1).counts["pairs"] == 3
    lines = journal.read_text().splitlines()[1:]
    rows = [row for line in lines for row in json.loads(line)["predictions"]]
    assert {(r["image_id"], r["category_id"]) for r in rows} == {(1, 1), (2, 1), (2, 2)}
    direct = tiny.segment(pictures / "b.png", ["red square", "dog"], threshold=0.1)
    dogs = [r["score"] for r in rows if (r["image_id"], r["category_id"]) == (2, 2)]
    assert dogs == direct.scores[np.array(direct.labels) == "dog"].tolist()


# A model --------------------------------------------------------------------------------------


def test_a_model_is_asked_once_a_picture(
    tiny: ImageModel,
    truth: Truth,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[Any] = []
    encode = ImageModel.encode

    def counting(self: ImageModel, image: Any) -> Any:
        encoded.append(image)
        return encode(self, image)

    monkeypatch.setattr(ImageModel, "encode", counting)
    seen: list[Progress] = []
    journal = tmp_path / "out/p.jsonl"
    report = evaluate_images(tiny, truth, pictures, journal, progress=seen.append, **LOW)
    assert sum(isinstance(i, np.ndarray) or hasattr(i, "shape") for i in encoded) == 3
    assert [(p.done, p.total) for p in seen] == [(1, 3), (2, 3), (3, 3)]
    assert seen[0].rate > 0 and seen[0].left > seen[2].left == 0
    assert report.counts["predictions"] > 0 and report.settings["model"] == "tiny"
    # What the file holds is what the model says.
    direct = tiny.segment(pictures / "a.png", ["red square", "dog"], threshold=0.35)
    first = json.loads(journal.read_text().splitlines()[1])
    assert [r["image_id"] for r in first["predictions"]] == [
        {"red square": 10, "dog": 11}[label] for label in direct.labels
    ]
    assert [r["score"] for r in first["predictions"]] == direct.scores.tolist()
    assert [r["segmentation"] for r in first["predictions"]] == direct.rles
    # And so it is as COCO's result list.
    results = tmp_path / "p.json"
    assert write_results(results, journal) == sum(
        len(p) for p in read_predictions(journal, truth).by_pair.values()
    )
    again = score_images(truth, read_predictions(results, truth), threshold=0.42)
    assert _same(again.figures, report.figures)


def _same(one: dict[str, float], two: dict[str, float]) -> bool:
    return one.keys() == two.keys() and all(
        a == two[name] or (math.isnan(a) and math.isnan(two[name])) for name, a in one.items()
    )


class Stop(Exception):
    """A run's end that nothing foresees."""


def stop_after(pictures: int) -> Callable[[Progress], None]:
    def progress(now: Progress) -> None:
        if now.done == pictures:
            raise Stop

    return progress


@pytest.mark.parametrize("cut", [0, 1, 40, "all but the line's end"])
def test_a_stopped_run_goes_on_and_gives_the_same(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path, cut: int | str
) -> None:
    whole = evaluate_images(tiny, truth, pictures, tmp_path / "whole.jsonl", **LOW)
    journal = tmp_path / "stopped.jsonl"
    with pytest.raises(Stop):
        evaluate_images(tiny, truth, pictures, journal, progress=stop_after(2), **LOW)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    assert journal.read_bytes() == b"".join(lines[:3])
    with journal.open("ab") as file:  # the third picture's line, as far as it came
        file.write(lines[3][: cut if isinstance(cut, int) else -1])
    seen: list[Progress] = []
    report = evaluate_images(tiny, truth, pictures, journal, progress=seen.append, **LOW)
    assert [(p.before, p.done) for p in seen] == [(2, 3)]
    assert journal.read_bytes() == b"".join(lines)
    assert _same(report.figures, whole.figures)


def test_a_run_that_began_with_nothing_begins_anew(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path
) -> None:
    journal = tmp_path / "p.jsonl"
    for start in (b"", b'{"for', b'{"format": 1, "iden'):
        journal.write_bytes(start)
        assert evaluate_images(tiny, truth, pictures, journal, **LOW).counts["pairs"] == 5
    journal.write_text("my notes\n")
    with pytest.raises(ResumeError, match="is no file of predictions; name another"):
        evaluate_images(tiny, truth, pictures, journal, **LOW)
    assert journal.read_text() == "my notes\n"


def test_predictions_of_another_run_are_not_gone_on_with(
    tiny: ImageModel, toy: SimpleNamespace, truth: Truth, pictures: Path, write: Write
) -> None:
    journal = pictures.parent / "p.jsonl"
    evaluate_images(tiny, truth, pictures, journal, **LOW)
    before = journal.read_bytes()
    with pytest.raises(ResumeError, match=r"floor was 0\.35 and is 0\.1.*--restart"):
        evaluate_images(tiny, truth, pictures, journal, threshold=0.42, floor=0.1)
    other = read_truth(write("gold.json", toy.saco(toy.PAIRS[:4])))
    with pytest.raises(ResumeError, match="annotations was"):
        evaluate_images(tiny, other, pictures, journal, **LOW)
    assert journal.read_bytes() == before
    report = evaluate_images(tiny, other, pictures, journal, restart=True, **LOW)
    assert report.counts["pairs"] == 4


def test_other_weights_are_another_run(tiny: ImageModel, truth: Truth) -> None:
    identity = run_identity(tiny, truth, "text", 0.05)
    assert json.loads(json.dumps(identity)) == identity
    other = ImageModel.from_config(tiny.config, "tiny", device="cpu", dtype="float32")
    changed = run_identity(other, truth, "text", 0.05)
    assert {k for k in identity if identity[k] != changed[k]} == {"weights"}
    assert run_identity(tiny, truth, "text", 0.05) == identity


def test_more_pictures_go_on_with_fewer(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path
) -> None:
    few, journal = read_truth(truth.paths[0], limit=1), tmp_path / "p.jsonl"
    assert evaluate_images(tiny, few, pictures, journal, **LOW).counts["pairs"] == 2
    with pytest.raises(PredictionError, match=r"has 1 of 3 pictures: .* Run it again"):
        read_predictions(journal, truth)
    seen: list[Progress] = []
    evaluate_images(tiny, truth, pictures, journal, progress=seen.append, **LOW)
    assert [p.before for p in seen] == [1, 1]
    # The few can be scored out of the many.
    assert score_images(few, read_predictions(journal, few)).counts["pairs"] == 2


# Pictures that are missing ---------------------------------------------------------------------


def test_missing_pictures_are_said_before_anything_is_done(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "b.png").unlink()
    with pytest.raises(AnnotationError, match=r"1 of 3 pictures .* b\.png \(image id 12\)"):
        evaluate_images(tiny, truth, pictures, tmp_path / "p.jsonl", **LOW)
    with pytest.raises(AnnotationError, match="there is no folder of images at"):
        evaluate_images(tiny, truth, tmp_path / "none", tmp_path / "p.jsonl", **LOW)
    assert not (tmp_path / "p.jsonl").exists()


def test_missing_pictures_are_left_out_when_asked_and_done_when_they_come(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path
) -> None:
    journal, away = tmp_path / "p.jsonl", tmp_path / "away.png"
    shutil.move(pictures / "b.png", away)
    (pictures / "sub/c.png").write_bytes(b"no picture")
    seen: list[Progress] = []
    report = evaluate_images(
        tiny, truth, pictures, journal, skip_missing=True, progress=seen.append, **LOW
    )
    assert report.counts["pairs"] == 2 and seen[-1].failed == 2
    assert set(report.failed) == {"b.png", "sub/c.png"}
    assert "there is no picture b.png" in report.failed["b.png"]
    assert "cannot be read as an image" in report.failed["sub/c.png"]
    with pytest.raises(ImageError, match=r"image id 13 of .*gold\.json: .*c\.png cannot be read"):
        shutil.move(away, pictures / "b.png")
        evaluate_images(tiny, truth, pictures, journal, **LOW)
    Image.new("RGB", (60, 40)).save(pictures / "sub/c.png")
    report = evaluate_images(tiny, truth, pictures, journal, **LOW)
    assert report.counts["pairs"] == 5 and not report.failed


def test_pictures_are_found_in_several_folders_by_their_bare_names(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    shutil.move(pictures / "sub/c.png", tmp_path / "more/c.png")
    folders = [pictures, tmp_path / "more"]
    report = evaluate_images(tiny, truth, folders, tmp_path / "p.jsonl", **LOW)
    assert report.counts["pictures"] == 3


def test_pictures_of_another_size_are_named(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (61, 40)).save(pictures / "b.png")
    with pytest.raises(ImageError, match=r"image id 12 .*b\.png has 40 x 61 .* says 40 x 60"):
        evaluate_images(tiny, truth, pictures, tmp_path / "p.jsonl", **LOW)


def test_pictures_are_seen_as_their_annotators_saw_them(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path
) -> None:
    plain = evaluate_images(tiny, truth, pictures, tmp_path / "plain.jsonl", **LOW)
    turned = Image.Exif()
    turned[0x112] = 6  # to be shown on its side; the annotations are of the stored pixels
    with Image.open(pictures / "a.png") as image:
        image.load()
    image.save(pictures / "a.png", exif=turned)
    report = evaluate_images(tiny, truth, pictures, tmp_path / "turned.jsonl", **LOW)
    assert _same(report.figures, plain.figures)


# Other prompts --------------------------------------------------------------------------------


def test_boxes_give_miou(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path, toy: SimpleNamespace
) -> None:
    journal = tmp_path / "p.jsonl"
    report = evaluate_images(tiny, truth, pictures, journal, prompt="box")
    assert report.counts == {"pictures": 3, "instances": 4}
    direct: list[float] = []
    for picture, _, boxes in toy.PAIRS:
        for x0, y0, x1, y1 in boxes:
            true = np.zeros(toy.SIZE, bool)
            true[y0:y1, x0:x1] = True
            found: npt.NDArray[Any] = tiny.segment_objects(
                pictures / picture, boxes=[[x0, y0, x1, y1]]
            ).masks[0]
            direct.append((found & true).sum() / (found | true).sum())
    assert report.figures["mIoU"] == pytest.approx(100 * np.mean(direct), rel=0.02)
    assert report.figures["mIoU"] > 5
    with pytest.raises(PredictionError, match=r"answers to the prompt 'box', not to 'text'"):
        score_images(truth, read_predictions(journal, truth))


def test_exemplars_ask_for_positive_pairs(
    tiny: ImageModel, truth: Truth, pictures: Path, tmp_path: Path, toy: SimpleNamespace
) -> None:
    journal = tmp_path / "p.jsonl"
    report = evaluate_images(tiny, truth, pictures, journal, prompt="exemplar", **LOW)
    assert (report.counts["positive_pairs"], report.counts["negative_pairs"]) == (3, 0)
    first = json.loads(journal.read_text().splitlines()[1])["predictions"]
    direct = tiny.segment(pictures / "a.png", boxes=[toy.RIGHT], threshold=0.35)
    assert [r["score"] for r in first] == pytest.approx(direct.scores.tolist())
    assert {r["image_id"] for r in first} == {10}


def test_what_a_model_cannot_do_is_said_at_once(
    tiny: ImageModel, truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "abilities", frozenset({"concepts"}))
    out = tmp_path / "p.jsonl"
    with pytest.raises(PredictionError, match="has no mask head; compare boxes instead"):
        evaluate_images(tiny, truth, tmp_path, out)
    with pytest.raises(MissingAbilityError):
        evaluate_images(tiny, truth, tmp_path, out, prompt="box")
    with pytest.raises(PredictionError, match="'text' or 'exemplar' or 'box'; got 'click'"):
        evaluate_images(tiny, truth, tmp_path, out, prompt="click")
    with pytest.raises(PredictionError, match=r"floor 0\.9 and threshold 0\.5"):
        evaluate_images(tiny, truth, tmp_path, out, floor=0.9)
    with pytest.raises(PredictionError, match="'mask' or 'box'; got 'dice'"):
        score_images(truth, read_predictions(_empty(tmp_path), truth), iou="dice")


def _empty(folder: Path) -> Path:
    path = folder / "empty.json"
    path.write_text("[]")
    return path

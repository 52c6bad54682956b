"""Finding images, sorting out what is done, and the files that come out: without a model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from efficientsam3.batch import Question, Results, Source, find_images, segment_images
from efficientsam3.errors import ImageError, PromptError
from efficientsam3.types import BitPatch, Instances

Box = tuple[int, int, int, int]


class Finder:
    """Stands for a model: finds what it is told to, in every image."""

    def __init__(self, *items: tuple[str, float, Box], masks: bool = True) -> None:
        self.items, self.masks, self.asked = items, masks, 0

    def segment(self, image: Any, concepts: Any, **options: Any) -> Instances:
        self.asked += 1
        _, height, width = image.shape
        patches = [
            BitPatch.cut(self.mask(box, height, width)) if self.masks else None
            for *_, box in self.items
        ]
        return Instances(
            boxes=np.array([box for *_, box in self.items], np.float32).reshape(-1, 4),
            scores=np.array([score for _, score, _ in self.items], np.float32),
            presence=np.full(len(self.items), 0.75, np.float32),
            labels=[label for label, *_ in self.items],
            size=(height, width),
            patches=patches if self.masks else None,
            concepts=tuple(concepts or ()),
            concept_presence=dict.fromkeys(concepts or (), 0.75),
        )

    @staticmethod
    def mask(box: Box, height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        return mask


# pycocotools hands numpy 2 an array in the old way when it decodes.
numpy_warns = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TWO = (("person", 0.9, (2, 2, 6, 8)), ("bus", 0.8, (0, 0, 12, 10)))
QUESTION = Question(("person", "bus"))


def paint(path: Path, size: tuple[int, int] = (16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(path)
    return path


def run(
    images: list[Any], out: Path, model: Finder, question: Question = QUESTION, **options: Any
) -> tuple[Results, list[Any]]:
    """Do what is to be done, and merge; returns the results and errors."""
    settings = options.pop("settings", {"model": "finder"})
    results = Results(out, question, settings, **options)
    tasks = results.plan(find_images(images, out)).tasks
    answers = [answer for _, answer in segment_images(model, results, tasks)]  # type: ignore[arg-type]
    results.merge()
    return results, [answer for answer in answers if isinstance(answer, Exception)]


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "instances.json").read_text())


# Images --------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("b.jpg", "a.PNG", "sub/deep/c.webp", ".thumbs/d.jpg", "._b.jpg"):
        paint(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def names(found: list[Source]) -> list[str]:
    return [os.path.relpath(source.path, source.folder) for source in found]


def test_a_folder_means_all_under_it(photos: Path) -> None:
    assert names(find_images([photos], "out")) == ["a.PNG", "b.jpg", "sub/deep/c.webp"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg"]),
        ("*", ["a.PNG", "b.jpg", "sub/deep/c.webp"]),
        ("**/*", ["a.PNG", "b.jpg", "sub/deep/c.webp"]),
        ("**/*.webp", ["sub/deep/c.webp"]),
        ("[ab].*", ["a.PNG", "b.jpg"]),
    ],
)
def test_patterns(photos: Path, pattern: str, expected: list[str]) -> None:
    assert names(find_images([f"{photos}/{pattern}"], "out")) == expected


def test_patterns_where_the_folder_s_own_name_looks_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trip [2020]"
    paint(folder / "a.jpg")
    monkeypatch.chdir(folder)
    assert names(find_images(["*.jpg"], "out")) == ["a.jpg"]
    assert names(find_images([folder / "a.jpg"], "out")) == ["a.jpg"]


def test_each_image_once(photos: Path) -> None:
    given = [photos / "b.jpg", photos, f"{photos}/*.jpg", photos / "sub" / ".." / "b.jpg"]
    assert len(find_images(given, "out")) == 3


def test_results_are_no_input(photos: Path) -> None:
    run([photos], photos, Finder(*TWO))  # results among the images
    assert len(find_images([photos], photos)) == 3
    assert len(find_images([f"{photos}/**/*"], photos)) == 3


def test_what_is_not_there(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image or folder at .*nosuch\.jpg"):
        find_images([photos / "nosuch.jpg"], "out")
    with pytest.raises(ImageError, match=r"no image matches .*\*\.tif"):
        find_images([f"{photos}/*.tif"], "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"no images in .*empty: their names end in \.avif"):
        find_images([tmp_path / "empty"], "out")


# Questions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to find"),
        ({"concepts": ("cat", " ")}, "got an empty one"),
        ({"concepts": ("cat", "dog"), "boxes": ((0, 0, 1, 1),)}, "show one concept; got 2"),
        ({"boxes": ((5, 5, 1, 9),)}, "box 5,5,1,9 is empty or inverted"),
    ],
)
def test_wrong_questions_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Question(**arguments)


# Files ---------------------------------------------------------------------------------------


def test_the_coco_file(tmp_path: Path) -> None:
    paint(tmp_path / "in/b.jpg")
    paint(tmp_path / "in/sub/a.png", (30, 20))
    run([tmp_path / "in"], tmp_path / "out", Finder(*TWO))
    content = read(tmp_path / "out")
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "person"), (2, "bus")]
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in content["images"]] == [
        (1, "b.jpg", 16, 12),
        (2, "sub/a.png", 30, 20),
    ]
    assert content["images"][0]["presence"] == {"person": 0.75, "bus": 0.75}
    assert content["info"]["folder"] == str(tmp_path / "in")
    first, second, third, _ = content["annotations"]
    assert first.pop("segmentation")["size"] == [12, 16]
    assert first == {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [2, 2, 4, 6],
        "area": 24,
        "iscrowd": 0,
        "score": 0.9,
        "presence": 0.75,
        "number": 1,
    }
    assert (second["category_id"], second["number"], third["image_id"]) == (2, 2, 2)


@numpy_warns
def test_pycocotools_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", Finder(*TWO))
    data = COCO(str(tmp_path / "out/instances.json"))
    masks = [data.annToMask(a) for a in data.loadAnns(data.getAnnIds(imgIds=[1]))]
    assert [m.sum() for m in masks] == [24, 120]
    assert np.array_equal(masks[0], Finder.mask(TWO[0][2], 12, 16))


def test_the_mask_file_numbers_the_instances_with_small_ones_on_top(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", Finder(*TWO))
    image = Image.open(tmp_path / "out/masks/a.png")
    assert image.mode == "P" and image.size == (16, 12)
    numbers = np.asarray(image)
    person, bus = (Finder.mask(box, 12, 16) for *_, box in TWO)
    assert np.array_equal(numbers == 1, person)
    assert np.array_equal(numbers == 2, bus & ~person)
    assert image.getpalette()[:3] == [0, 0, 0]


def test_more_instances_than_a_byte_counts(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png", (300, 4))
    items = [("bead", 0.5, (x, 0, x + 1, 4)) for x in range(300)]
    run([tmp_path / "in"], tmp_path / "out", Finder(*items), Question(("bead",)), overlays=False)
    with Image.open(tmp_path / "out/masks/a.png") as image:
        assert np.array_equal(np.asarray(image)[0], np.arange(1, 301))


def test_boxes_alone_where_the_model_has_no_masks(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    results, _ = run([tmp_path / "in"], tmp_path / "out", Finder(*TWO, masks=False))
    first, _ = read(tmp_path / "out")["annotations"]
    assert "segmentation" not in first and first["area"] == 24
    assert not (tmp_path / "out/masks").exists()
    assert results.plan(find_images([tmp_path / "in"], tmp_path / "out")).done == 1


def test_nothing_found(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", Finder())
    content = read(tmp_path / "out")
    assert content["annotations"] == [] and len(content["images"]) == 1
    with Image.open(tmp_path / "out/masks/a.png") as image:
        assert not np.asarray(image).any()


def test_names_that_would_meet(tmp_path: Path) -> None:
    images = [paint(tmp_path / name) for name in ("x/a.jpg", "x/A.png", "y/a.jpg", "x/a.jpg.png")]
    run(images, tmp_path / "out", Finder(*TWO))
    written = sorted(p.name for p in (tmp_path / "out/masks").iterdir())
    assert len({name.lower() for name in written}) == 4
    assert len(read(tmp_path / "out")["images"]) == 4
    again = Results(tmp_path / "out", QUESTION, {"model": "finder"})
    assert again.plan(find_images(images, tmp_path / "out")).done == 4


def test_results_of_other_commands_stay(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "y/a.jpg"):
        run([paint(tmp_path / name)], tmp_path / "out", Finder(*TWO))
    content = read(tmp_path / "out")
    assert [i["file_name"] for i in content["images"]] == ["x/a.jpg", "y/a.jpg"]
    (tmp_path / "x/a.jpg").unlink()
    run([tmp_path / "y/a.jpg"], tmp_path / "out", Finder(*TWO))
    assert [i["file_name"] for i in read(tmp_path / "out")["images"]] == ["a.jpg"]


# Going on ------------------------------------------------------------------------------------


def again(out: Path, images: Path, question: Question = QUESTION, **options: Any) -> Any:
    settings = options.pop("settings", {"model": "finder"})
    return Results(out, question, settings, **options).plan(find_images([images], out))


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    folder, out = paint(tmp_path / "in/a.png").parent, tmp_path / "out"
    run([folder], out, Finder(*TWO))
    paint(folder / "b.png")
    model = Finder(*TWO)
    run([folder], out, model)
    assert model.asked == 1
    assert len(read(out)["images"]) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"question": Question(("person", "bus"), threshold=0.3)}, "threshold was 0.5, is 0.3"),
        ({"question": Question(("bus",))}, "concepts was person, bus, is bus"),
        ({"settings": {"model": "other"}}, "model was finder, is other"),
        ({"settings": {"model": "finder", "weights": ["x" * 200]}}, "other weights"),
    ],
)
def test_other_settings_are_named(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    folder, out = paint(tmp_path / "in/a.png").parent, tmp_path / "out"
    run([folder], out, Finder(*TWO))
    plan = again(out, folder, **change)
    assert plan.again == {f"made with other settings: {why}": 1} and len(plan.tasks) == 1
    question, settings = change.get("question", QUESTION), change.get("settings", {})
    merged = Results(out, question, settings or {"model": "finder"}).merge()
    assert (merged.images, merged.left_out) == (0, 1)


def test_changed_images_and_lost_files_are_done_again(tmp_path: Path) -> None:
    folder, out = paint(tmp_path / "in/a.png").parent, tmp_path / "out"
    run([folder], out, Finder(*TWO), masks=False)
    assert again(out, folder, masks=False).done == 1
    assert again(out, folder).again == {"without masks": 1}
    (out / "overlays/a.jpg").unlink()
    assert again(out, folder, masks=False).again == {"without overlays": 1}
    assert again(out, folder, masks=False, overlays=False).done == 1
    paint(folder / "a.png", (20, 20))
    assert again(out, folder, masks=False).again == {"the image has changed": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    folder, out = paint(tmp_path / "in/a.png").parent, tmp_path / "out"
    results, _ = run([folder], out, Finder(*TWO))
    (out / "records/a.json").write_text(content)
    assert len(again(out, folder).tasks) == 1
    assert results.merge().images == 0


def test_a_record_is_there_only_when_all_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = paint(tmp_path / "in/a.png").parent, tmp_path / "out"
    run([folder], out, Finder(*TWO))

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr("efficientsam3.draw.overlay", fail)
        run([folder], out, Finder(*TWO), Question(("cat",)))
    assert len(again(out, folder).tasks) == 1, "what was half overwritten is not taken for done"


def test_one_bad_image_costs_itself(tmp_path: Path) -> None:
    paint(tmp_path / "in/b.png")
    (tmp_path / "in/a.jpg").write_bytes(b"no image")
    _, errors = run([tmp_path / "in"], tmp_path / "out", Finder(*TWO))
    assert len(errors) == 1 and isinstance(errors[0], ImageError)
    assert [i["file_name"] for i in read(tmp_path / "out")["images"]] == ["b.png"]


@numpy_warns
def test_overlaps_are_whole_in_the_run_lengths(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", Finder(*TWO))
    bus = read(tmp_path / "out")["annotations"][1]
    assert np.array_equal(coco.decode(bus["segmentation"]), Finder.mask(TWO[1][2], 12, 16))
    assert bus["area"] == 120

"""Finding images, continuing earlier runs, and the files that are written; without a model."""

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

from efficientsam3.errors import ImageError, PromptError, RunFileError
from efficientsam3.segment_files import ImageFile, SegmentRun, Task, find_images
from efficientsam3.types import BitPatch, Instances

Box = tuple[int, int, int, int]


class FakeModel:
    """Finds the same given instances in every image."""

    def __init__(self, *items: tuple[str, float, Box], masks: bool = True) -> None:
        self.items, self.masks, self.calls = items, masks, 0

    def segment(self, image: Any, concepts: Any = None, **options: Any) -> Instances:
        self.calls += 1
        height, width = image.shape[:2]
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
ARGUMENTS = {"concepts": ["person", "bus"]}
MODEL = {"model": "fake"}


def paint(path: Path, size: tuple[int, int] = (16, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(path)
    return path


def run(
    sources: list[Any], out: Path, model: FakeModel, arguments: Any = ARGUMENTS, **options: Any
) -> list[Exception]:
    """Segment what is pending, and write the COCO file; returns the errors."""
    with SegmentRun(out, arguments, options.pop("identity", MODEL), **options) as results:
        tasks = results.pending(find_images(sources, out))
        outcomes = [outcome for _, outcome in results.segment(model, tasks)]  # type: ignore[arg-type]
        results.write_coco()
    return [outcome for outcome in outcomes if isinstance(outcome, Exception)]


def pending(
    sources: list[Any], out: Path, arguments: Any = ARGUMENTS, **options: Any
) -> list[Task]:
    with SegmentRun(out, arguments, options.pop("identity", MODEL), **options) as results:
        return results.pending(find_images(sources, out))


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


def names(found: list[ImageFile]) -> list[str]:
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


def test_results_of_a_run_are_not_its_input(photos: Path) -> None:
    run([photos], photos, FakeModel(*TWO))  # results among the images
    assert len(find_images([photos], photos)) == 3
    assert len(find_images([f"{photos}/**/*"], photos)) == 3


def test_missing_sources_are_named(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no image or folder at .*nosuch\.jpg"):
        find_images([photos / "nosuch.jpg"], "out")
    with pytest.raises(ImageError, match=r"no image matches .*\*\.tif"):
        find_images([f"{photos}/*.tif"], "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match=r"no images in .*empty: their names end in \.avif"):
        find_images([tmp_path / "empty"], "out")


# Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to find"),
        ({"concepts": ["cat", " "]}, "a concept is a phrase such as 'person'; got ' '"),
        ({"concepts": ["cat", "dog"], "boxes": [(0, 0, 1, 1)]}, "show one concept; got 2"),
        ({"boxes": [(5, 5, 1, 9)]}, r"box \[5.0, 5.0, 1.0, 9.0\] is empty or inverted"),
        ({"concepts": ["cat"], "threshold": 1.5}, "threshold is between 0 and 1; got 1.5"),
    ],
)
def test_wrong_arguments_are_refused_before_an_image_is_read(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        SegmentRun(tmp_path / "out", arguments, MODEL)
    assert not (tmp_path / "out").exists()


# Files ---------------------------------------------------------------------------------------


def test_the_coco_file(tmp_path: Path) -> None:
    paint(tmp_path / "in/b.jpg")
    paint(tmp_path / "in/sub/a.png", (30, 20))
    run([tmp_path / "in"], tmp_path / "out", FakeModel(*TWO))
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
    run([tmp_path / "in"], tmp_path / "out", FakeModel(*TWO))
    data = COCO(str(tmp_path / "out/instances.json"))
    masks = [data.annToMask(a) for a in data.loadAnns(data.getAnnIds(imgIds=[1]))]
    assert [m.sum() for m in masks] == [24, 120]
    assert np.array_equal(masks[0], FakeModel.mask(TWO[0][2], 12, 16))


def test_the_mask_file_numbers_the_instances_with_small_ones_on_top(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", FakeModel(*TWO))
    image = Image.open(tmp_path / "out/masks/a.png")
    assert image.mode == "P" and image.size == (16, 12)
    numbers = np.asarray(image)
    person, bus = (FakeModel.mask(box, 12, 16) for *_, box in TWO)
    assert np.array_equal(numbers == 1, person)
    assert np.array_equal(numbers == 2, bus & ~person)
    assert image.getpalette()[:3] == [0, 0, 0]


def test_more_instances_than_a_byte_counts(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png", (300, 4))
    items = [("bead", 0.5, (x, 0, x + 1, 4)) for x in range(300)]
    run(
        [tmp_path / "in"],
        tmp_path / "out",
        FakeModel(*items),
        {"concepts": ["bead"]},
        overlays=False,
    )
    with Image.open(tmp_path / "out/masks/a.png") as image:
        assert np.array_equal(np.asarray(image)[0], np.arange(1, 301))


def test_boxes_alone_where_the_model_has_no_masks(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", FakeModel(*TWO, masks=False))
    first, _ = read(tmp_path / "out")["annotations"]
    assert "segmentation" not in first and first["area"] == 24
    assert not (tmp_path / "out/masks").exists()
    assert not pending([tmp_path / "in"], tmp_path / "out")


def test_nothing_found(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", FakeModel())
    content = read(tmp_path / "out")
    assert content["annotations"] == [] and len(content["images"]) == 1
    with Image.open(tmp_path / "out/masks/a.png") as image:
        assert not np.asarray(image).any()


def test_names_that_would_meet(tmp_path: Path) -> None:
    images = [paint(tmp_path / name) for name in ("x/a.jpg", "x/A.png", "y/a.jpg", "x/a.jpg.png")]
    run(images, tmp_path / "out", FakeModel(*TWO))
    written = sorted(p.name for p in (tmp_path / "out/masks").iterdir())
    assert len({name.lower() for name in written}) == 4
    assert len(read(tmp_path / "out")["images"]) == 4
    assert not pending(images, tmp_path / "out")


def test_results_of_other_commands_stay_and_keep_their_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Names are relative to the folder of the first command."""
    for name in ("x/a.jpg", "y/a.jpg"):
        run([paint(tmp_path / name)], tmp_path / "out", FakeModel(*TWO))
    content = read(tmp_path / "out")
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "../y/a.jpg"]
    assert content["info"]["folder"] == str(tmp_path / "x")
    assert "outside of it" in caplog.text
    (tmp_path / "x/a.jpg").unlink()
    run([tmp_path / "y/a.jpg"], tmp_path / "out", FakeModel(*TWO))
    assert [i["file_name"] for i in read(tmp_path / "out")["images"]] == ["../y/a.jpg"]
    assert sorted(p.name for p in (tmp_path / "out/masks").iterdir()) == ["a.jpg.png", "a.png"]


def test_pages_are_images_of_their_own_and_keep_their_names(tmp_path: Path) -> None:
    def stack(levels: list[int]) -> None:
        first, *rest = [Image.fromarray(np.full((12, 16), v, np.uint16)) for v in levels]
        first.save(tmp_path / "a.tif", save_all=True, append_images=rest)

    class Brightness(FakeModel):
        def __init__(self) -> None:
            super().__init__(*TWO)
            self.seen: list[int] = []

        def segment(self, image: Any, concepts: Any = None, **options: Any) -> Instances:
            self.seen.append(int(image.mean()))
            return super().segment(image, concepts, **options)

    def segment(pages: str) -> tuple[list[int], dict[str, int]]:
        model = Brightness()
        with SegmentRun(tmp_path / "out", ARGUMENTS, MODEL) as results:
            images = find_images([tmp_path / "a.tif"], tmp_path / "out", pages=pages)
            tasks = results.pending(images)
            assert not [e for _, e in results.segment(model, tasks) if isinstance(e, Exception)]  # type: ignore[arg-type]
            results.write_coco()
            return model.seen, results.several_pages(images)

    stack([1000, 2000])
    assert segment("first") == ([62], {str(tmp_path / "a.tif"): 2}), "one scale for all pages"
    assert segment("all") == ([125], {}), "the first is done before"
    names = [(i["file_name"], i["width"]) for i in read(tmp_path / "out")["images"]]
    assert names == [("a.tif", 16), ("a.tif#page=2", 16)]
    stack([1000, 2000, 4000])
    assert segment("all") == ([62, 125, 249], {})
    names = [i["file_name"] for i in read(tmp_path / "out")["images"]]
    assert names == ["a.tif", "a.tif#page=2", "a.tif#page=3"]
    written = sorted(p.name for p in (tmp_path / "out/masks").iterdir())
    assert written == ["a-page2.png", "a-page3.png", "a.png"]
    stack([1000])
    assert segment("all") == ([249], {})
    assert [i["file_name"] for i in read(tmp_path / "out")["images"]] == ["a.tif"]
    with pytest.raises(ImageError, match="pages is 'first' or 'all'"):
        find_images([tmp_path], "out", pages="two")


def test_what_is_passed_over_is_counted(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("d.CR2", "sub/e.cr2", "f.heic.part"):
        (photos / name).write_bytes(b"?")
    run([photos], photos, FakeModel(*TWO))
    said = "4 files are passed over, because Pillow does not read them: 2 .cr2, 1 .part, 1 .txt"
    assert caplog.text.count("passed over") == 1 and said in caplog.text
    caplog.clear()
    find_images([f"{photos}/*"], photos)
    assert said in caplog.text, "the results of the run are not counted"


def test_an_empty_name_is_no_source() -> None:
    with pytest.raises(ImageError, match="empty"):
        find_images([""], "out")


# Continuing ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image, segmented into ``out``."""
    folder = paint(tmp_path / "in/a.png").parent
    run([folder], tmp_path / "out", FakeModel(*TWO))
    return folder


def test_finished_images_are_not_segmented_again(folder: Path, tmp_path: Path) -> None:
    paint(folder / "b.png")
    model = FakeModel(*TWO)
    run([folder], tmp_path / "out", model)
    assert model.calls == 1
    assert len(read(tmp_path / "out")["images"]) == 2
    run([folder], tmp_path / "out", model, restart=True)
    assert model.calls == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arguments": {**ARGUMENTS, "threshold": 0.3}}, "threshold was None and is 0.3"),
        ({"arguments": {"concepts": ["bus"]}}, "concepts was person, bus and is bus"),
        ({"identity": {"model": "other"}}, "model was fake and is other"),
        ({"identity": {"model": "fake", "weights": "x" * 200}}, "weights was None and is xxx"),
    ],
)
def test_other_arguments_start_the_run_again(
    folder: Path,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "out"
    assert len(pending([folder], out, **change)) == 1
    assert message in caplog.text and "The run starts again" in caplog.text
    assert not pending([folder], out), "nothing is lost before the first new result"
    model = FakeModel(("bus", 0.9, (2, 2, 6, 8)))
    run([folder], out, model, **change)
    assert model.calls == 1
    assert len(read(out)["annotations"]) == 1


def test_changed_images_are_segmented_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paint(folder / "b.png")
    run([folder], tmp_path / "out", FakeModel(*TWO))
    paint(folder / "a.png", (20, 20))
    assert [task.name for task in pending([folder], tmp_path / "out")] == ["a"]
    assert "1 of 2 inputs changed after the earlier run" in caplog.text
    run([folder], tmp_path / "out", FakeModel(*TWO))
    assert [image["width"] for image in read(tmp_path / "out")["images"]] == [20, 16]


def test_images_without_their_files_are_segmented_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, out = paint(tmp_path / "in/a.png").parent, tmp_path / "out"
    run([folder], out, FakeModel(*TWO), masks=False)
    assert not pending([folder], out, masks=False)
    assert len(pending([folder], out)) == 1
    assert "1 of 1 images lack their masks or overlays" in caplog.text
    (out / "overlays/a.jpg").unlink()
    assert len(pending([folder], out, masks=False)) == 1
    assert not pending([folder], out, masks=False, overlays=False)


def test_another_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.jsonl").write_text("a note of mine\n")
    with pytest.raises(RunFileError, match="is not a file of instances"):
        SegmentRun(tmp_path / "out", ARGUMENTS, MODEL)
    assert (tmp_path / "out/run.jsonl").read_text() == "a note of mine\n"


def test_an_image_is_finished_only_with_all_its_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    paint(folder / "b.png")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr("efficientsam3.viz.overlay.overlay", fail)
        run([folder], tmp_path / "out", FakeModel(*TWO))
    assert [task.name for task in pending([folder], tmp_path / "out")] == ["b"]


def test_an_image_that_became_unreadable_is_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "a.png").write_bytes(b"no image")
    assert len(run([folder], tmp_path / "out", FakeModel(*TWO))) == 1
    assert read(tmp_path / "out")["images"] == []
    assert len(pending([folder], tmp_path / "out")) == 1, "it is tried again"


def test_one_bad_image_costs_itself(tmp_path: Path) -> None:
    paint(tmp_path / "in/b.png")
    (tmp_path / "in/a.jpg").write_bytes(b"no image")
    errors = run([tmp_path / "in"], tmp_path / "out", FakeModel(*TWO))
    assert len(errors) == 1 and isinstance(errors[0], ImageError)
    assert [i["file_name"] for i in read(tmp_path / "out")["images"]] == ["b.png"]


@numpy_warns
def test_overlaps_are_whole_in_the_run_lengths(tmp_path: Path) -> None:
    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", FakeModel(*TWO))
    bus = read(tmp_path / "out")["annotations"][1]
    assert np.array_equal(coco.decode(bus["segmentation"]), FakeModel.mask(TWO[1][2], 12, 16))
    assert bus["area"] == 120


def test_boxes_are_the_extent_of_the_masks(tmp_path: Path) -> None:
    class Rough(FakeModel):
        """The boxes of a model: not exactly around the masks, and one mask without a pixel."""

        def segment(self, *arguments: Any, **options: Any) -> Instances:
            found = super().segment(*arguments, **options)
            found.boxes[:] += np.array([-1, 1.5, 2, -0.5], np.float32)
            return found

    paint(tmp_path / "in/a.png")
    run([tmp_path / "in"], tmp_path / "out", Rough(*TWO, ("bus", 0.7, (3, 3, 3, 3))))
    content = read(tmp_path / "out")
    assert [a["bbox"] for a in content["annotations"]] == [[2, 2, 4, 6], [0, 0, 12, 10]]
    assert [a["number"] for a in content["annotations"]] == [1, 2]
    assert "left_out" not in content["images"][0]
    with SegmentRun(tmp_path / "out", ARGUMENTS, MODEL) as results:
        assert results.write_coco().left_out == 1, "a run that is continued counts them too"

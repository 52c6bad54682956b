"""COCO files of ``segment`` and ``CocoWriter``, read by pycocotools, Supervision and ourselves."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from efficientsam3.data.coco import CocoAnnotations
from efficientsam3.io import rle
from efficientsam3.segment_files import SegmentRun, find_images

from .instances import FILE_NAMES, QUICK, SLOW, Mask, Scene, farthest_wrong, scenes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def save(path: Path, size: tuple[int, int]) -> Path:
    Image.new("RGB", size[::-1]).save(path)
    return path


def read_with_pycocotools(path: Path) -> tuple[list[str], list[tuple[str, Any, Mask]]]:
    """Image files, and the class, the box and the mask of each annotation."""
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    files = [image["file_name"] for image in coco.loadImgs(coco.getImgIds())]
    rows = [
        (coco.cats[row["category_id"]]["name"], row["bbox"], coco.annToMask(row).astype(bool))
        for row in coco.loadAnns(coco.getAnnIds())
    ]
    assert all(row["iscrowd"] == 0 for row in coco.anns.values())
    return files, rows


def check(scene: Scene, rows: list[tuple[str, Any, Mask]], tolerance: float = 0) -> None:
    """Every instance with a pixel is there, with its class, its box and its pixels."""
    assert [name for name, *_ in rows] == [scene.labels[i] for i in scene.seen]
    for (x0, y0, x1, y1), i, (_, box, mask) in zip(scene.boxes, scene.seen, rows, strict=True):
        assert list(box) == [x0, y0, x1 - x0, y1 - y0]
        limit = tolerance + 1 if tolerance else 0
        assert farthest_wrong(scene.masks[i], mask) <= limit


def check_own_reader(path: Path, scene: Scene, file_name: str) -> None:
    """The reader of training and evaluation. It makes phrases of names: one space between words."""
    reader = CocoAnnotations(path)
    assert [reader.file(i) for i in range(len(reader))] == [file_name]
    by_class = {}
    for query in reader[0].queries:
        for place in query.objects:
            by_class[place] = query.phrase
    objects = reader[0].objects
    phrases = [" ".join(scene.labels[i].replace("_", " ").split()) for i in scene.seen]
    assert [by_class[i] for i in range(len(objects))] == phrases
    assert [o.box for o in objects] == [tuple(map(float, box)) for box in scene.boxes]
    for i, found in zip(scene.seen, objects, strict=True):
        assert np.array_equal(rle.decode(found.mask or {}), scene.masks[i])


# The command -----------------------------------------------------------------------------------


class Answer:
    """A model that gives one answer."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def segment(self, image: Any, **arguments: Any) -> Any:
        return self.scene.instances()


def check_segment(scene: Scene, stem: str) -> None:
    with folder() as place:
        image = save(place / f"{stem}.png", scene.size)
        arguments = {"concepts": scene.names}
        with SegmentRun(place / "out", arguments, {"model": "m"}, overlays=False) as run:
            # The command may spell a phrase in another way; that is its name from then on.
            spelled = dict(zip(scene.names, run.categories, strict=True))
            scene = Scene(run.categories, [spelled[x] for x in scene.labels], scene.masks)
            tasks = run.pending(find_images([image], place / "out"))
            list(run.segment(Answer(scene), tasks))  # type: ignore[arg-type]
            drawn = {}
            for tolerance in (0.0, 1.5):
                written = run.write_coco(masks="polygon", tolerance=tolerance)
                drawn[tolerance] = read_with_pycocotools(written.path)[1]
            written = run.write_coco()
        assert written.left_out == len(scene.masks) - len(scene.seen)
        files, rows = read_with_pycocotools(written.path)
        assert files == [image.name]
        check(scene, rows)
        check_own_reader(written.path, scene, image.name)
        for tolerance, rows in drawn.items():
            check(scene, rows, tolerance)


@pytest.mark.slow
@QUICK
@given(scenes(printable=True), FILE_NAMES)
def test_segment(scene: Scene, stem: str) -> None:
    check_segment(scene, stem)


@pytest.mark.long
@SLOW
@given(scenes(printable=True), FILE_NAMES)
def test_segment_more(scene: Scene, stem: str) -> None:
    check_segment(scene, stem)


# The writer ------------------------------------------------------------------------------------

TOLERANCES = st.sampled_from([0.0, 0.5, 1.0, 2.5])


def check_writer(scene: Scene, stem: str, tolerance: float) -> None:
    sv = pytest.importorskip("supervision")
    from supervision_adapters import CocoWriter, to_detections

    detections = to_detections(scene.instances(), keep_empty=True)
    with folder() as place:
        image = save(place / f"{stem}.png", scene.size)
        for masks in ("rle", "polygon"):
            out = CocoWriter(scene.names, masks=masks, tolerance=tolerance)
            assert out.add(image.name, detections) == len(scene.seen)
            assert out.left_out == len(scene.masks) - len(scene.seen)
            path = out.write(place / f"{masks}.json")
            assert [c["name"] for c in json.loads(path.read_text())["categories"]] == scene.names
            files, rows = read_with_pycocotools(path)
            assert files == [image.name]
            check(scene, rows, tolerance if masks == "polygon" else 0)

            data = sv.DetectionDataset.from_coco(str(place), str(path), force_masks=True)
            assert data.classes == scene.names
            (back,) = data.annotations.values()
            assert back.xyxy.tolist() == [list(map(float, box)) for box in scene.boxes]
            assert [data.classes[i] for i in back.class_id] == [scene.labels[i] for i in scene.seen]
            # Supervision draws the line of a polygon too, which is a pixel more on two sides.
            limit = 0 if masks == "rle" else tolerance + 1.5
            for i, drawn in zip(scene.seen, () if back.mask is None else back.mask, strict=True):
                assert farthest_wrong(scene.masks[i], np.asarray(drawn, bool)) <= limit


@QUICK
@given(scenes(), FILE_NAMES, TOLERANCES)
def test_writer(scene: Scene, stem: str, tolerance: float) -> None:
    check_writer(scene, stem, tolerance)


@pytest.mark.long
@SLOW
@given(scenes(), FILE_NAMES, TOLERANCES)
def test_writer_more(scene: Scene, stem: str, tolerance: float) -> None:
    check_writer(scene, stem, tolerance)

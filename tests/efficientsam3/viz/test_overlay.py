"""Overlay pictures: what is drawn where, at any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw

from efficientsam3.errors import ImageError
from efficientsam3.types import BitPatch, Instances, LogitPatch, Patch
from efficientsam3.viz.overlay import COLORS, LONGEST, PIXELS, draw_masks, instance_colors, overlay

Item = tuple[str, float, tuple[int, int, int, int]]


def rectangles(size: tuple[int, int], items: Sequence[Item], **changes: object) -> Instances:
    """Instances whose masks fill their boxes: (concept, score, x0 y0 x1 y1)."""
    patches: list[Patch] = []
    for _, _, (x0, y0, x1, y1) in items:
        patches.append(BitPatch(np.ones((y1 - y0, x1 - x0), bool), y0, x0))
    values: dict = {
        "boxes": np.array([box for *_, box in items], np.float32).reshape(-1, 4),
        "scores": np.array([score for _, score, _ in items], np.float32),
        "presence": np.ones(len(items), np.float32),
        "labels": [label for label, *_ in items],
        "size": size,
        "patches": patches,
        "concepts": tuple(dict.fromkeys(label for label, *_ in items)),
    }
    return Instances(**{**values, **changes})


def grey(height: int, width: int, value: int = 120) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def changed(image: np.ndarray, picture: Image.Image) -> np.ndarray:
    return (np.asarray(picture).astype(int) != image).any(2)


def test_the_mask_and_its_label_are_drawn_and_nothing_else() -> None:
    image = grey(600, 800)
    found = rectangles((600, 800), [("cat", 0.9, (200, 200, 500, 400))])
    picture = overlay(image, found)
    assert picture.mode == "RGB" and picture.size == (800, 600)
    there = changed(image, picture)
    assert there[200:400, 200:500].all()
    there[198:402, 198:502] = False  # a shadow of the contour
    rows, columns = np.nonzero(there)  # the label, above
    assert rows.min() > 170 and rows.max() < 200
    assert columns.min() > 290 and columns.max() < 410
    assert (image == 120).all(), "the image itself is not touched"


def test_contours_lie_on_all_sides_even_at_the_image_s_border() -> None:
    picture = np.asarray(
        overlay(grey(600, 800), rectangles((600, 800), [("wall", 0.9, (0, 0, 800, 600))]))
    )
    fill = picture[300, 100]
    for edge in (picture[300, 0], picture[300, -1], picture[0, 100], picture[-1, 100]):
        assert np.abs(edge.astype(int) - fill).sum() > 60


def test_what_lies_on_a_larger_thing_stays_visible() -> None:
    items = [("tie", 0.6, (300, 300, 340, 400)), ("person", 0.9, (100, 100, 600, 500))]
    picture = np.asarray(overlay(grey(600, 800), rectangles((600, 800), items)))
    assert np.abs(picture[350, 320].astype(int) - picture[350, 500]).sum() > 40


def test_colors_stay_with_concepts_and_instances() -> None:
    box = (0, 0, 5, 5)
    one = rectangles((9, 9), [("cat", 0.9, box)] * 14)
    assert len(set(instance_colors(one))) == 14
    assert instance_colors(one)[: len(COLORS)] == list(COLORS)
    two = rectangles((9, 9), [("dog", 0.9, box)] * 3, concepts=("cat", "dog"))
    more = rectangles((9, 9), [("cat", 0.9, box), *[("dog", 0.9, box)] * 3])
    assert instance_colors(two) == instance_colors(more)[1:], (
        "cat, absent from the first, keeps its color"
    )
    tracked = rectangles((9, 9), [("cat", 0.9, box)] * 2, track_ids=np.array([7, 3]))
    assert instance_colors(tracked) == [COLORS[7], COLORS[3]]


def test_nothing_found_is_the_image_itself() -> None:
    image = grey(600, 800)
    assert not changed(image, overlay(image, rectangles((600, 800), []))).any()


def test_boxes_are_drawn_where_there_are_no_masks() -> None:
    image = grey(600, 800)
    there = changed(
        image,
        overlay(image, rectangles((600, 800), [("cat", 0.9, (200, 200, 500, 400))], patches=None)),
    )
    assert there[200, 200:500].all() and there[200:400, 200].all()
    assert there[399, 200:500].all() and there[200:400, 499].all()
    assert not there[210:390, 210:490].any()


def test_an_instance_with_an_empty_mask_has_its_box() -> None:
    image = grey(600, 800)
    empty = [LogitPatch.cut(np.full((8, 8), -1, np.float32))]
    found = rectangles((600, 800), [("cat", 0.9, (200, 200, 500, 400))], patches=empty)
    there = changed(image, overlay(image, found))
    assert there[200, 200:500].all() and not there[210:390, 210:490].any()


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (40, 60), (480, 200)])
def test_small_images_are_enlarged(size: tuple[int, int]) -> None:
    height, width = size
    picture = overlay(grey(*size), rectangles(size, [("pixel", 0.5, (0, 0, width, height))]))
    assert 640 <= max(picture.size) < 1280
    assert changed(np.full((1, 1, 3), 120), picture).any()


@pytest.mark.parametrize("size", [(3, 3000), (3000, 3), (1, 20_000)])
def test_strips_get_room_for_labels(size: tuple[int, int]) -> None:
    height, width = size
    found = rectangles(size, [("wire", 0.5, (0, 0, (width + 1) // 2, (height + 1) // 2))])
    picture = overlay(grey(*size), found)
    assert min(picture.size) >= 160 and max(picture.size) <= LONGEST
    assert (np.asarray(picture) == COLORS[0]).all(2).any(), "the label's ground"


def test_panoramas_are_drawn_smaller_and_their_masks_lie_right() -> None:
    height, width = 1500, 20_000
    logits = np.full((40, 40), -5, np.float32)
    logits[10:30, 20:30] = 5
    patch = LogitPatch.cut(logits)
    box = np.array([patch.crop((height, width))[1]], np.float32)
    item = ("bridge", 0.9, (0, 0, 1, 1))
    image = grey(height, width)
    picture = overlay(image, rectangles((height, width), [item], patches=[patch], boxes=box))
    assert picture.width == LONGEST and picture.width * picture.height <= PIXELS
    there = changed(np.full((1, 1, 3), 120), picture)
    down, across = picture.height / height, picture.width / width
    x0, y0, x1, y1 = (box[0] * [across, down, across, down]).round().astype(int)
    assert there[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].all()
    assert not there[y1 + 4 :].any() and not there[:, : x0 - 4].any()
    pixels = overlay(
        image,
        rectangles(
            (height, width), [item], boxes=box, patches=[BitPatch(*cut(patch, height, width))]
        ),
    )
    differ = (np.asarray(pixels) != np.asarray(picture)).any(2)
    assert differ.mean() < 0.01, "masks of pixels are reduced to the same"


def cut(patch: LogitPatch, height: int, width: int) -> tuple[np.ndarray, int, int]:
    pixels, (left, top, _, _) = patch.crop((height, width))
    return pixels, top, left


def test_labels_of_a_crowd_do_not_hide_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "rounded_rectangle", lambda _, box, *a, **k: labels.append(box)
    )
    random = np.random.default_rng(0)
    items = []
    for _ in range(150):
        x, y = (int(v) for v in random.integers(0, 580, 2))
        items.append(("a long concept", float(random.random()), (x, y, x + 15, y + 15)))
    overlay(grey(600, 600), rectangles((600, 600), items))
    boxes = np.array(labels)
    assert 30 < len(boxes) < 150
    assert boxes.min() >= 0 and boxes.max() < 600
    covered = np.zeros((600, 600), int)
    for x0, y0, x1, y1 in boxes.round().astype(int):
        covered[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] += 1
    assert covered.max() == 1


def test_an_image_that_lies_on_its_side_is_turned() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    image = Image.new("RGB", (800, 600))
    image.getexif().update(exif)
    found = rectangles((800, 600), [("cat", 0.9, (10, 50, 100, 100))])
    assert overlay(image, found).size == (600, 800)


def test_another_image_is_refused() -> None:
    with pytest.raises(ImageError, match="800 x 600 pixels, but this one has 600 x 800"):
        overlay(grey(800, 600), rectangles((600, 800), []))
    with pytest.raises(ImageError, match=r"\(H, W, 3\) uint8 RGB; got \(6, 8\)"):
        overlay(np.zeros((6, 8)), rectangles((6, 8), []))


def test_masks_without_labels_have_an_edge_and_a_tint() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    image = grey(20, 20, 100)
    drawn = draw_masks(image, [mask], [(200, 0, 100)], fill=0.5)
    assert (drawn[5, 5:15] == (200, 0, 100)).all() and (drawn[5:15, 14] == (200, 0, 100)).all()
    assert (drawn[6:14, 6:14] == (150, 50, 100)).all()
    assert (drawn[~mask] == 100).all() and (image == 100).all()
    plain = draw_masks(image, [mask], [(200, 0, 100)], fill=0.5, outline=False)
    assert (plain[mask] == (150, 50, 100)).all()

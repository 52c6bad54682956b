"""Large pictures are read in tiles: what seams cut is one object, and small things are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import efficientsam3 as es3
from efficientsam3.masks.tiles import lay_tiles
from tests.efficientsam3.predictor.colors import COLORS, ColorModel
from tests.efficientsam3.predictor.conftest import same

Array = npt.NDArray[Any]


def picture(size: tuple[int, int], **rectangles: list[tuple[int, int, int, int]]) -> Array:
    """Gray, with rectangles (x0, y0, x1, y1) of colors."""
    out = np.full((*size, 3), 90, np.uint8)
    for color, boxes in rectangles.items():
        for x0, y0, x1, y1 in boxes:
            out[y0:y1, x0:x1] = COLORS[color]
    return out


def test_an_object_that_seams_cut_is_one_object_with_the_whole_mask() -> None:
    bar = (20, 60, 300, 90)  # through every column of tiles
    image = picture((200, 320), red=[bar])
    found = ColorModel().segment(image, "red", tile=(64, 16))
    assert len(found) == 1
    truth = np.zeros((200, 320), bool)
    truth[60:90, 20:300] = True
    mask = found.mask(0)
    assert (mask & truth).sum() / (mask | truth).sum() > 0.95
    np.testing.assert_allclose(found.boxes[0], bar, atol=1)


def test_an_object_at_the_corner_of_four_tiles_is_one_object() -> None:
    tiles = lay_tiles((200, 200), (64, 16), 64)
    x, y = tiles[0].box[2], tiles[0].box[3]  # the corner of the first tile
    image = picture((200, 200), red=[(x - 30, y - 30, x + 20, y + 20)])
    found = ColorModel().segment(image, "red", tile=(64, 16))
    assert len(found) == 1
    assert abs(int(found.mask(0).sum()) - 2500) < 100


def test_small_things_are_found_that_the_whole_picture_loses() -> None:
    small = [
        (30 + 97 * i, 40 + 71 * j, 34 + 97 * i, 44 + 71 * j) for i in range(6) for j in range(6)
    ]
    image = picture((512, 640), red=small)
    model = ColorModel()
    assert len(model.segment(image, "red")) == 0
    found = model.segment(image, "red", tile=64)
    assert sorted(map(tuple, found.boxes.round().astype(int).tolist())) == sorted(small)


def test_neighbors_in_two_tiles_stay_two_objects() -> None:
    image = picture((64, 120), red=[(20, 20, 60, 40)], green=[(60, 20, 100, 40)])
    image[42:60, 20:60] = COLORS["red"]  # two pixels below the first
    found = ColorModel().segment(image, ["red", "green"], tile=(64, 16))
    assert found.labels == ["red", "red", "green"]


def test_a_thing_larger_than_a_tile_is_found_once() -> None:
    image = picture((256, 256), blue=[(10, 10, 246, 246)])
    found = ColorModel().segment(image, "blue", tile=(64, 16))
    assert len(found) == 1
    assert found.concept_presence == {"blue": 1.0}
    truth = picture((256, 256), blue=[(10, 10, 246, 246)])[..., 2] == 255
    assert (found.mask(0) & truth).sum() / (found.mask(0) | truth).sum() > 0.97


def test_a_picture_that_one_tile_holds_is_read_once_and_the_answer_is_the_same() -> None:
    model, image = ColorModel(), picture((60, 90), red=[(5, 5, 30, 40)])
    plain = model.segment(image, ["red", "blue"])
    for tile in ("auto", 100, (90, 10)):
        model.seen.clear()
        same(model.segment(image, ["red", "blue"], tile=tile), plain)
        assert model.seen == [(60, 90)]


def test_tiles_cover_the_picture_and_overlap_as_asked() -> None:
    tiles = lay_tiles((1000, 700), (256, 64), 1008)
    seen = np.zeros((1000, 700), int)
    for tile in tiles:
        x0, y0, x1, y1 = tile.box
        assert (x1 - x0, y1 - y0) == (256, 256)
        seen[y0:y1, x0:x1] += 1
    assert seen.min() == 1
    lefts = sorted({tile.box[0] for tile in tiles})
    assert max(np.diff(lefts)) <= 256 - 64


def test_rle_and_masks_of_joined_objects_agree() -> None:
    from efficientsam3.io.rle import decode

    image = picture((150, 150), red=[(20, 20, 130, 60), (100, 100, 120, 120)])
    found = ColorModel().segment(image, "red", tile=(64, 16))
    for rle, mask in zip(found.rles, found.masks, strict=True):
        np.testing.assert_array_equal(decode(rle), mask)


def test_suppression_and_limits_hold_for_the_joined_objects() -> None:
    image = picture((150, 150), red=[(20, 20, 130, 60), (100, 100, 120, 120), (20, 100, 60, 120)])
    model = ColorModel()
    assert len(model.segment(image, "red", tile=(64, 16), max_instances=2)) == 2
    twice = model.segment(image, {"thing": ["red"]}, tile=(64, 16), nms=0.5)
    assert twice.labels == ["thing"] * 3


def test_a_model_without_masks_joins_boxes() -> None:
    model = ColorModel()
    model.abilities = frozenset({"concepts"})
    image = picture((200, 320), red=[(20, 60, 300, 90)])
    found = model.segment(image, "red", tile=(64, 16))
    assert found.patches is None
    np.testing.assert_allclose(found.boxes, [(20, 60, 300, 90)], atol=1)


def test_a_real_model_reads_tiles(tiny: es3.ImageModel, photo: Array) -> None:
    large = np.tile(photo, (3, 4, 1))
    found = tiny.segment(large, ["dog", "cat"], threshold=0.2, tile=(128, 16))
    assert found.size == large.shape[:2]
    assert len(found)
    assert (found.boxes[:, 2:] <= [large.shape[1], large.shape[0]]).all()


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (8, "at least 32 pixels; got 8"),
        (float("nan"), "whole numbers; got nan"),
        ((64, 64), "less than their side, 64 pixels; got 64"),
        ((64, -1), "got -1"),
        ("large", "got 'large'"),
        (True, "got True"),
        ((64, 8, 8), "got"),
    ],
)
def test_wrong_settings_are_refused(tiny: es3.ImageModel, tile: Any, message: str) -> None:
    with pytest.raises(es3.PromptError, match=message):
        tiny.segment(np.zeros((200, 200, 3), np.uint8), "dog", tile=tile)


def test_tiles_need_pixels_and_concepts(tiny: es3.ImageModel, photo: Array) -> None:
    with pytest.raises(es3.PromptError, match="encoded image"):
        tiny.segment(tiny.encode(photo), "dog", tile=64)
    with pytest.raises(es3.PromptError, match="tile goes with concepts and with"):
        tiny.segment(photo, "dog", boxes=[[2, 2, 20, 20]], tile=64)


# Windows of files -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("layout", [{"tile": (64, 64)}, {"rowsperstrip": 7}])
def test_windows_of_a_tiff_are_those_of_the_picture(
    tmp_path: Path, dtype: str, layout: dict[str, Any]
) -> None:
    tifffile = pytest.importorskip("tifffile")
    from efficientsam3.io.samples import read_rgb_array
    from efficientsam3.io.windows import WindowReader

    rng = np.random.default_rng(0)
    values = rng.integers(0, np.iinfo(dtype).max, (150, 170, 3)).astype(dtype)
    values[:75] //= 9  # one part of the picture is much darker
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, values, photometric="rgb", compression="zlib", **layout)
    whole = read_rgb_array(path)
    with WindowReader(path) as reader:
        assert reader.size == (150, 170)
        for x0, y0, x1, y1 in [(0, 0, 170, 150), (10, 20, 90, 75), (150, 140, 170, 150)]:
            np.testing.assert_allclose(
                reader.read((x0, y0, x1, y1)).astype(int), whole[y0:y1, x0:x1], atol=1
            )
        small = reader.reduce(40)
    assert small.shape == (50, 43, 3)
    assert abs(float(small.mean()) - float(whole.mean())) < 2


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
import tifffile
from efficientsam3.io import windows
from tests.efficientsam3.predictor.colors import ColorModel

side, path = int(sys.argv[1]), sys.argv[2]
def tiles():
    for y in range(0, side, 256):
        for x in range(0, side, 256):
            tile = np.full((256, 256, 3), 90, np.uint8)
            if (x // 256 + y // 256) % 7 == 0:
                tile[60:120, 40:256] = (255, 0, 0)
            yield tile
tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, photometric="rgb",
                 tile=(256, 256), compression="zlib")
model = ColorModel(128)
model.segment(np.zeros((300, 300, 3), np.uint8), "red", tile=(256, 32))
def peak():  # of this program alone; ru_maxrss begins with that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
found = model.segment(path, "red", tile=(1024, 128))
print(len(found), (peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    grown = {}
    for side in (4096, 12288):
        run = subprocess.run(
            [sys.executable, "-c", MEMORY, str(side), str(tmp_path / f"{side}.tif")],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
        )
        count, grown[side] = map(int, run.stdout.split())
        cells = range(side // 256)
        assert count == sum((x + y) % 7 == 0 for x in cells for y in cells)
    # The larger picture has 453 MB of pixels.
    assert grown[12288] < 80, grown

"""Tiles of a large picture, and the joining of what is found in them.

Masks are compared and joined as run lengths, so that memory does not grow with the picture.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..errors import PromptError, shorten
from ..io.rle import encode_cut
from ..types import Array, Box, Instances, LogitPatch, Patch, RunPatch

MIN_TILE = 32
"""Smallest side of a tile in pixels."""
AGREEMENT = 0.5
"""IoU, in the pixels that two tiles share, from which two masks are of one object."""
INSIDE = 0.5
"""Share of a mask from which it lies in another."""
COVERED = 0.25
"""Share of an object of the whole picture that objects of the tiles cover, from which they replace
it, if it fits into a tile, as its outline is coarse. A larger one is replaced from ``INSIDE``."""
COARSE_CELLS = 10
"""Cells of the model's mask below which an object of the whole picture has a coarse outline."""
AUTO_FROM = 1.5
"""With "auto", a picture is cut whose longer side is this many times the model's resolution."""
CUT_MARGIN = 64
"""A mask is cut by a border of its tile that is closer than a tile's side over this."""

Sides = frozenset[str]


# Layout ---------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """One window of a grid of windows that cover a picture.

    Attributes:
        box: (x0, y0, x1, y1) in pixels.
        row: Row of the grid.
        column: Column of the grid.
    """

    box: Box
    row: int
    column: int


def check_tile(tile: Any) -> tuple[int, int | None] | str | None:
    """Check the setting ``tile`` of ``segment``.

    Args:
        tile: None; "auto"; the side of a tile in pixels; or (side, overlap), where neighboring
            tiles share ``overlap`` pixels.

    Returns:
        None, "auto", or the side and the overlap; the overlap is None where it is not given.

    Raises:
        PromptError: The setting is none of these, or out of range.
    """
    if tile is None or (isinstance(tile, str) and tile == "auto"):
        return tile
    rule = "tile is None, 'auto', the side of a tile in pixels, or (side, overlap)"
    given = tile if isinstance(tile, (tuple, list)) else (tile,)
    try:
        numbers = [operator.index(number) for number in given]
    except TypeError:
        numbers = []
    if len(numbers) not in (1, 2) or any(isinstance(number, bool) for number in given):
        raise PromptError(f"{rule}, all whole numbers; got {shorten(tile)}")
    side = numbers[0]
    if side < MIN_TILE:
        raise PromptError(
            f"a tile has a side of at least {MIN_TILE} pixels; got {side}. The model's resolution "
            "is a good side: tile='auto'"
        )
    if len(numbers) == 1:
        return side, None
    if not 0 <= numbers[1] < side:
        raise PromptError(
            f"the overlap of tiles is from 0 to less than their side, {side} pixels; got "
            f"{numbers[1]}. Use the side of the largest object that is to be whole in one tile"
        )
    return side, numbers[1]


def parse_tile(text: str | None) -> int | tuple[int, ...] | str | None:
    """Parse the setting ``tile`` as commands and forms write it.

    Args:
        text: "auto", "1008", or "1008,128" with the overlap; None or empty for no tiles.

    Raises:
        PromptError: The text is none of these, or a number is out of range.
    """
    if text is None or not text.strip():
        return None
    parts = [part.strip() for part in text.split(",")]
    tile: Any = text.strip()
    if all(part.removeprefix("-").isdigit() for part in parts):
        numbers = tuple(map(int, parts))
        tile = numbers[0] if len(numbers) == 1 else numbers
    check_tile(tile)
    return tile


def lay_tiles(size: tuple[int, int], tile: Any, resolution: int) -> list[Tile]:
    """Cover a picture with tiles.

    Args:
        size: (height, width) of the picture in pixels.
        tile: As ``check_tile`` takes it. "auto": tiles of the model's resolution, for a picture
            whose longer side is more than ``AUTO_FROM`` times as long. An overlap that is not
            given is an eighth of the side.
        resolution: Pixels a side of the model's input.

    Returns:
        The tiles by rows; none where one tile would hold the picture.

    Raises:
        PromptError: The setting is wrong.
    """
    setting = check_tile(tile)
    if setting == "auto":
        setting = None if max(size) <= AUTO_FROM * resolution else (resolution, None)
    if setting is None or isinstance(setting, str):
        return []
    side, overlap = setting
    if max(size) <= side:
        return []
    overlap = side // 8 if overlap is None else overlap
    rows, columns = (_starts(length, side, overlap) for length in size)
    height, width = size
    return [
        Tile((x, y, min(x + side, width), min(y + side, height)), row, column)
        for row, y in enumerate(rows)
        for column, x in enumerate(columns)
    ]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """First pixels of tiles along one side, evenly spaced."""
    if length <= side:
        return [0]
    count = math.ceil((length - overlap) / (side - overlap))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


# Joining --------------------------------------------------------------------------------------


@dataclass
class _Object:
    """A mask, or a box in place of one, with its score."""

    rle: dict[str, Any]
    area: int
    score: float
    presence: float
    box: Array
    tile: Tile | None = None
    cut: Sides = frozenset()
    coarse: bool = False


class TileJoiner:
    """Joins the instances of one phrase that are found in tiles and in the whole picture.

    Two masks of neighboring tiles are of one object where they agree in the pixels that the tiles
    share; the object's mask is their union. A mask that a border of its tile cuts, and that was
    not continued, gives way to one that holds it. Of the whole picture, objects are kept that the
    tiles did not find.

    Args:
        size: (height, width) of the picture in pixels.
        nested: Whether objects lie within others, as wheels lie in cars: then an object is dropped
            only where a border cuts it, or another has the same mask.
    """

    def __init__(self, size: tuple[int, int], nested: bool = False) -> None:
        self.size, self.nested = size, nested
        self._pieces: list[_Object] = []
        self._presence: dict[str, float] = {}
        self._side = 0

    def add(self, found: Instances, tile: Tile) -> None:
        """Add the instances of a tile.

        Args:
            found: Instances of one phrase, in pixels of the tile.
            tile: The tile.
        """
        for name, value in found.concept_presence.items():
            self._presence[name] = max(value, self._presence.get(name, 0.0))
        left, top = tile.box[:2]
        self._side = max(self._side, tile.box[2] - left, tile.box[3] - top)
        for i in range(len(found)):
            pixels, (x0, y0, x1, y1) = _crop(found, i)
            if not pixels.size:
                continue
            box = (x0 + left, y0 + top, x1 + left, y1 + top)
            rle = _as_bytes(encode_cut(pixels, box, self.size))
            piece = _Object(
                rle,
                int(pixels.sum()),
                float(found.scores[i]),
                float(found.presence[i]),
                np.array(box, np.float32),
                tile,
                self._cut_sides(box, tile),
            )
            self._pieces.append(piece)

    def _cut_sides(self, box: Box, tile: Tile) -> Sides:
        height, width = self.size
        x0, y0, x1, y1 = tile.box
        margin = max(2, max(x1 - x0, y1 - y0) // CUT_MARGIN)
        cut = {
            "left": x0 > 0 and box[0] - x0 <= margin,
            "top": y0 > 0 and box[1] - y0 <= margin,
            "right": x1 < width and x1 - box[2] <= margin,
            "bottom": y1 < height and y1 - box[3] <= margin,
        }
        return frozenset(side for side, is_cut in cut.items() if is_cut)

    def join(self, whole: Instances) -> Instances:
        """Join what was added with the instances of the whole picture.

        Args:
            whole: Instances of the same phrase in the whole picture.

        Returns:
            The objects by decreasing scores.
        """
        joined = [self._union(group) for group in self._groups()]
        if self.nested:
            joined = [o for o in joined if not o.cut]
        joined = _without_parts(joined)
        coarse = [self._whole_object(whole, i) for i in range(len(whole))]
        if self.nested:
            kept = _not_in(coarse, joined)
        else:
            kept, joined = _choose(coarse, joined, self._side)
        has_masks = whole.patches is not None
        rows = whole[np.array(kept, np.int64)]
        boxes = [o.box for o in joined]
        patches: list[Patch] | None = None
        if has_masks:
            patches = [*(rows.patches or [])]
            patches += [RunPatch(o.rle, _whole_box(o.box)) for o in joined]
        presence = dict(whole.concept_presence)
        for name, value in self._presence.items():
            presence[name] = max(value, presence.get(name, 0.0))
        scores = np.array([o.score for o in joined], np.float32)
        label = [*whole.concepts, ""][0]
        found = replace(
            rows,
            boxes=np.concatenate([rows.boxes, np.array(boxes, np.float32).reshape(-1, 4)]),
            scores=np.concatenate([rows.scores, scores]),
            presence=np.concatenate(
                [rows.presence, np.array([o.presence for o in joined], np.float32)]
            ),
            labels=[*rows.labels, *[label] * len(joined)],
            phrases=[*rows.phrases, *[label] * len(joined)],
            patches=patches,
            concept_presence=presence,
        )
        return found[np.argsort(-found.scores, kind="stable")]

    def _groups(self) -> list[list[_Object]]:
        """Pieces by the object that they are of."""
        pieces = self._pieces
        parent = list(range(len(pieces)))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for i, j in _touching([piece.box for piece in pieces]):
            if root(i) != root(j) and self._agree(pieces[i], pieces[j]):
                parent[root(i)] = root(j)
        groups: dict[int, list[_Object]] = {}
        for i, piece in enumerate(pieces):
            groups.setdefault(root(i), []).append(piece)
        return list(groups.values())

    def _agree(self, a: _Object, b: _Object) -> bool:
        """Whether two pieces are equal where their tiles overlap."""
        if a.tile is None or b.tile is None or a.tile == b.tile:
            return False
        shared = _intersect(a.tile.box, b.tile.box)
        if shared is None:
            return False
        from pycocotools import mask as coco

        ones = np.ones((shared[3] - shared[1], shared[2] - shared[0]), bool)
        window = _as_bytes(encode_cut(ones, shared, self.size))
        parts = [coco.merge([o.rle, window], intersect=True) for o in (a, b)]
        return float(coco.iou(parts[:1], parts[1:], [False])[0, 0]) >= AGREEMENT

    def _union(self, group: Sequence[_Object]) -> _Object:
        if len(group) == 1:
            return group[0]
        from pycocotools import mask as coco

        tiles = [o.tile for o in group if o.tile is not None]
        rows, columns = [t.row for t in tiles], [t.column for t in tiles]
        cut = set()
        for piece, tile in zip(group, tiles, strict=True):
            # A side is continued by a piece of a tile beyond it.
            continued = {
                "left": min(columns) < tile.column,
                "right": max(columns) > tile.column,
                "top": min(rows) < tile.row,
                "bottom": max(rows) > tile.row,
            }
            cut |= {side for side in piece.cut if not continued[side]}
        rle = coco.merge([o.rle for o in group])
        x, y, w, h = coco.toBbox(rle).tolist()
        best = max(group, key=lambda o: o.score)
        box = np.array([x, y, x + w, y + h], np.float32)
        area = int(coco.area(rle))
        return _Object(rle, area, best.score, best.presence, box, best.tile, frozenset(cut))

    def _whole_object(self, whole: Instances, index: int) -> _Object:
        """An instance of the whole picture, with the cells of its logits as its mask."""
        box = whole.boxes[index]
        patch = None if whole.patches is None else whole.patches[index]
        rle = _cells(patch, self.size) if isinstance(patch, LogitPatch) else _of_box(box, self.size)
        from pycocotools import mask as coco

        area, score = int(coco.area(rle)), float(whole.scores[index])
        found = _Object(rle, area, score, float(whole.presence[index]), box)
        if isinstance(patch, LogitPatch):
            found.coarse = min(patch.logits.shape) < COARSE_CELLS
        return found


def _choose(
    whole: Sequence[_Object], joined: list[_Object], side: int
) -> tuple[list[int], list[_Object]]:
    """Of the whole picture, keep what the tiles did not find; drop parts of what is kept.

    Args:
        whole: Objects of the whole picture.
        joined: Objects of the tiles.
        side: Side of a tile in pixels.

    Returns:
        Rows of ``whole``, and objects of ``joined``.
    """
    if not whole or not joined:
        return list(range(len(whole))), joined
    from pycocotools import mask as coco

    inside = coco.iou([o.rle for o in joined], [o.rle for o in whole], [True] * len(whole))
    inside = np.asarray(inside).reshape(len(joined), len(whole))
    kept, dropped = [], set[int]()
    for column, one in enumerate(whole):
        there = np.flatnonzero(inside[:, column] >= INSIDE)
        entire = [joined[i].rle for i in there if not joined[i].cut]
        if entire and one.area:
            found = coco.merge(entire)
            fits = (one.box[2:] - one.box[:2]).max() <= side
            share = float(coco.iou([one.rle], [found], [True])[0, 0])
            if share >= (COVERED if fits else INSIDE):
                continue
        kept.append(column)
        dropped.update(int(i) for i in there if joined[i].cut)
    return kept, [o for i, o in enumerate(joined) if i not in dropped]


def _not_in(whole: Sequence[_Object], joined: Sequence[_Object]) -> list[int]:
    """Rows of the objects of the whole picture that are none of the tiles' objects."""
    if not whole or not joined:
        return list(range(len(whole)))
    from pycocotools import mask as coco

    same = coco.iou([o.rle for o in whole], [o.rle for o in joined], [False] * len(joined))
    best = np.asarray(same).reshape(len(whole), len(joined)).max(1)
    limits = [COVERED if one.coarse else AGREEMENT for one in whole]
    return np.flatnonzero(best < limits).tolist()


def _without_parts(objects: list[_Object]) -> list[_Object]:
    """Drop objects that are cut and lie in another, and the weaker of two that are the same."""
    from pycocotools import mask as coco

    # Entire ones first; of each kind the larger first.
    order = sorted(objects, key=lambda o: (bool(o.cut), -o.area))
    dropped = set[int]()
    for i, j in sorted(_touching([o.box for o in order])):
        if i in dropped or j in dropped:
            continue
        a, b = order[i], order[j]
        part = float(coco.iou([b.rle], [a.rle], [True])[0, 0])
        if b.cut and part >= INSIDE:
            dropped.add(j)
        elif float(coco.iou([b.rle], [a.rle], [False])[0, 0]) >= AGREEMENT:
            dropped.add(j if b.score <= a.score or (b.cut and not a.cut) else i)
    return [o for i, o in enumerate(order) if i not in dropped]


def _touching(boxes: Sequence[Array]) -> Iterable[tuple[int, int]]:
    """Pairs (i, j), i < j, of boxes that share pixels."""
    if len(boxes) < 2:
        return
    array = np.array(boxes)
    for i in range(len(array) - 1):
        low = np.maximum(array[i + 1 :, :2], array[i, :2])
        high = np.minimum(array[i + 1 :, 2:], array[i, 2:])
        for j in np.flatnonzero((high > low).all(1)):
            yield i, i + 1 + int(j)


def _crop(found: Instances, index: int) -> tuple[Array, Box]:
    """The mask of an instance in its box; the whole box where there are no masks."""
    if found.patches is not None:
        return found.crop(index)
    x0, y0, x1, y1 = _whole_box(found.boxes[index])
    return np.ones((max(0, y1 - y0), max(0, x1 - x0)), bool), (x0, y0, x1, y1)


def _whole_box(box: Array) -> Box:
    x0, y0, x1, y1 = (round(value) for value in box.tolist())
    return x0, y0, x1, y1


def _intersect(a: Box, b: Box) -> Box | None:
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None


def _as_bytes(rle: dict[str, Any]) -> dict[str, Any]:
    return {**rle, "counts": rle["counts"].encode("ascii")}


def _of_box(box: Array, size: tuple[int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = _whole_box(box)
    return _from_edges(np.tile([y0, y1], (max(0, x1 - x0), 1)), np.arange(x0, x1), size)


def _cells(patch: LogitPatch, size: tuple[int, int]) -> dict[str, Any]:
    """The positive cells of a patch as run lengths of the picture, without interpolation."""
    height, width = size
    bits = patch.logits > 0
    borders = np.rint((np.arange(len(bits) + 1) + patch.top) * height / patch.grid[0])
    edges, columns = [], []
    for cell in range(bits.shape[1]):
        first, last = (round((patch.left + cell + k) * width / patch.grid[1]) for k in (0, 1))
        changes = np.flatnonzero(np.diff(np.r_[0, bits[:, cell], 0]))
        rows = borders[changes].astype(np.int64).reshape(-1, 2)
        for column in range(first, last) if len(rows) else ():
            edges.append(rows)
            columns += [column] * len(rows)
    pairs = np.concatenate(edges) if edges else np.zeros((0, 2), np.int64)
    return _from_edges(pairs, np.array(columns, np.int64), size)


def _from_edges(edges: Array, columns: Array, size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths of vertical stretches: (K, 2) first and last row, and their (K,) columns."""
    from pycocotools import mask as coco

    height, width = size
    places, times = np.unique((columns[:, None] * height + edges).ravel(), return_counts=True)
    counts = np.diff(np.r_[0, places[times == 1], height * width]).astype(np.int64)
    if len(counts) > 1 and not counts[-1]:
        counts = counts[:-1]
    plain = {"size": [height, width], "counts": counts.tolist()}
    packed: dict[str, Any] = coco.frPyObjects(plain, height, width)
    return packed

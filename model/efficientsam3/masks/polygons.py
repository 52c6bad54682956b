"""Polygons of masks with holes and parts: one closed polygon for YOLO, one a part for COCO.

YOLO's readers draw a polygon through the centers of pixels, its line included. COCO's fill the area
between the corners of pixels. ``tolerance`` removes points from either.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from ..errors import ArgumentError, shorten
from ..io import rle
from ..io.rle import Mask
from ..types import Array

MaskForm = Literal["rle", "polygon"]
"""How COCO files have masks: run lengths, which hold every pixel, or a polygon for each part."""

_MAX_POINTS = 10_000
"""At most this many border points are compared to find the shortest bridges."""


def check_tolerance(tolerance: float) -> float:
    """Check the tolerance of polygons.

    Args:
        tolerance: Pixels, from 0.

    Returns:
        The tolerance.

    Raises:
        ArgumentError: It is not a finite number from 0.
    """
    if not isinstance(tolerance, (int, float)) or not 0 <= tolerance < math.inf:
        raise ArgumentError(
            f"tolerance is a number of pixels, at least 0; got {shorten(tolerance)}"
        )
    return float(tolerance)


def check_mask_form(masks: str) -> None:
    """Check in which form a COCO file is to have masks.

    Args:
        masks: "rle" or "polygon".

    Raises:
        ArgumentError: It is another.
    """
    if masks not in ("rle", "polygon"):
        raise ArgumentError(f"masks is 'rle' or 'polygon'; got {shorten(masks)}")


def trace(mask: Array, corners: bool = False) -> list[Array]:
    """Find the borders of a mask: outer borders and borders of holes.

    Args:
        mask: (h, w) bool.
        corners: Whether corners of pixels are returned instead of pixels. Pixel (x, y) has the
            corners (x, y) to (x + 1, y + 1).

    Returns:
        For each border the mask's pixels on it, (K, 2) xy in order. Neighbors in the list touch
        at a side or a corner. Borders of parts are clockwise, borders of holes counter-clockwise.
    """
    room = np.pad(np.asarray(mask, bool), 1)
    inside = room[1:-1, 1:-1]
    width = room.shape[1]
    starts, directions, pixels = [], [], []
    # Sides of pixels without a neighbor there, followed with the mask on the right. Direction 0 is
    # right, 1 down, 2 left, 3 up; a side starts at a corner of its pixel.
    for turn, (neighbor, corner) in enumerate(
        (
            (room[:-2, 1:-1], (0, 0)),
            (room[1:-1, 2:], (1, 0)),
            (room[2:, 1:-1], (1, 1)),
            (room[1:-1, :-2], (0, 1)),
        )
    ):
        y, x = np.nonzero(inside & ~neighbor)
        starts.append((y + corner[1]) * width + x + corner[0])
        directions.append(np.full(len(y), turn))
        pixels.append(np.stack([x, y], 1))
    start, direction, pixel = (np.concatenate(x) for x in (starts, directions, pixels))
    if not len(start):
        return []
    end = start + np.array([1, width, -1, -width])[direction]
    key = start * 4 + direction
    order = np.argsort(key)
    ranked = key[order]

    def side(turn: int) -> Array:
        """Find the side that continues at each side's end after a turn; -1 where there is none."""
        wanted = end * 4 + (direction + turn) % 4
        place = np.searchsorted(ranked, wanted).clip(max=len(ranked) - 1)
        return np.where(ranked[place] == wanted, order[place], -1)

    left, straight, right = side(3), side(0), side(1)
    # Left turns come first, so pixels that touch at a corner belong to one border.
    following = np.where(left >= 0, left, np.where(straight >= 0, straight, right)).tolist()
    borders, unvisited = [], np.ones(len(start), bool)
    for first in range(len(start)):
        if not unvisited[first]:
            continue
        loop, at = [first], following[first]
        while at != first:
            loop.append(at)
            at = following[at]
        unvisited[loop] = False
        if corners:
            borders.append(np.stack([start[loop] % width, start[loop] // width], 1))
            continue
        chain = pixel[loop]
        moved = (chain != np.roll(chain, 1, 0)).any(1)
        borders.append(chain[moved] if moved.any() else chain[:1])
    return borders


def join(borders: list[Array]) -> Array:
    """Join borders to one closed polygon by the shortest bridges.

    A bridge is walked there and back, so it has no area. Between a part and its hole it lies in
    the mask. Where it is drawn as a line, as OpenCV draws polygons, it is one pixel wide.

    Args:
        borders: Borders as ``trace`` returns them.

    Returns:
        (K, 2) xy, without points inside straight lines.
    """
    if not borders:
        return np.zeros((0, 2), int)
    points = np.concatenate(borders)
    owner = np.repeat(np.arange(len(borders)), [len(b) for b in borders])
    offset = np.cumsum([0, *(len(b) for b in borders)])
    first = max(range(len(borders)), key=lambda i: len(borders[i]))
    bridges = {}
    if len(borders) > 1:
        # A sample of very long borders is enough: a bridge is then a pixel or two longer.
        some = np.arange(len(points)) % (len(points) // _MAX_POINTS + 1) == 0
        some[offset[:-1]] = True
        kept = np.flatnonzero(some)
        found = _bridges(points[kept], owner[kept], first)
        bridges = {int(kept[i]): [int(kept[j]) for j in ends] for i, ends in found.items()}
    # Each border is followed once around from where it was entered, with the borders behind its
    # bridges inserted.
    out: list[int] = []
    work = [(int(offset[first]), 0)]  # a point and the steps done on its border; -1: only the point
    while work:
        entry, step = work.pop()
        if step < 0:
            out.append(entry)
            continue
        begin, end = int(offset[owner[entry]]), int(offset[owner[entry] + 1])
        while step <= end - begin:
            at = begin + (entry - begin + step) % (end - begin)
            out.append(at)
            step += 1
            if at in bridges:
                work.append((entry, step))
                for other in bridges.pop(at):
                    work += [(at, -1), (other, 0)]
                break
    return simplify(points[out])


def _bridges(points: Array, owner: Array, first: int) -> dict[int, list[int]]:
    """Find the shortest bridges that join all borders.

    Args:
        points: (P, 2) points of all borders.
        owner: (P,) border of each point.
        first: The border at which the polygon starts.

    Returns:
        For a point, the points of further borders to which bridges lead.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
    from scipy.spatial import Delaunay

    places, which = np.unique(points, axis=0, return_inverse=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    # Borders that share a pixel, then Delaunay neighbors, which contain the shortest bridges. Four
    # far corners make triangles possible where all pixels lie on one line.
    shared = which[order[1:]] == which[order[:-1]]
    pairs = [np.stack([order[:-1], order[1:]], 1)[shared]]
    some = np.zeros(len(places), int)
    some[which] = np.arange(len(points))
    far = 4 * (int(places.max()) + 2)
    corners = np.array([[-far, -far], [-far, 2 * far], [2 * far, -far], [2 * far, 2 * far]])
    # Points on a grid share lines and circles, which makes Qhull ten times slower.
    jittered = places + np.random.default_rng(0).uniform(-0.05, 0.05, places.shape)
    triangles = Delaunay(np.concatenate([jittered, corners])).simplices
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    pairs.append(some[edges[(edges < len(places)).all(1)]])
    a, b = np.concatenate(pairs).T
    a, b = a[owner[a] != owner[b]], b[owner[a] != owner[b]]
    length = 1 + np.hypot(*(points[a] - points[b]).T)  # a sparse graph has no edges of length 0
    low, high = np.minimum(owner[a], owner[b]), np.maximum(owner[a], owner[b])
    count = owner[-1] + 1
    order = np.lexsort((length, high, low))
    _, best = np.unique((low * count + high)[order], return_index=True)
    best = order[best]
    graph = coo_matrix((length[best], (low[best], high[best])), shape=(count, count))
    tree = minimum_spanning_tree(graph.tocsr())
    _, before = breadth_first_order(tree, first, directed=False)
    ends = {(int(low[i]), int(high[i])): (int(a[i]), int(b[i])) for i in best}
    bridges: dict[int, list[int]] = {}
    for border, parent in enumerate(before.tolist()):
        if parent >= 0:
            near, there = ends[min(border, parent), max(border, parent)]
            if owner[near] != parent:
                near, there = there, near
            bridges.setdefault(near, []).append(there)
    return bridges


def simplify(polygon: Array) -> Array:
    """Remove repeated points and points inside straight lines.

    Args:
        polygon: (K, 2) xy of a closed polygon.

    Returns:
        (L, 2) xy.
    """
    if len(polygon) > 1:
        moved = (polygon != np.roll(polygon, 1, 0)).any(1)
        polygon = polygon[moved] if moved.any() else polygon[:1]
    if len(polygon) < 3:
        return polygon
    before, after = polygon - np.roll(polygon, 1, 0), np.roll(polygon, -1, 0) - polygon
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    onward = (before * after).sum(1) > 0
    return polygon[(cross != 0) | ~onward]


def approximate(border: Array, tolerance: float) -> Array:
    """Remove points of a closed border, by the algorithm of Douglas and Peucker.

    Args:
        border: (K, 2) xy in order.
        tolerance: No point of the border is farther than this from the result, in pixels.

    Returns:
        (L, 2) xy, some of the points, at least two where there are two.
    """
    if tolerance <= 0 or len(border) < 3:
        return border
    closed = np.concatenate([border, border[:1]]).astype(float)
    far = int(np.hypot(*(closed - closed[0]).T).argmax())
    kept = np.zeros(len(closed), bool)
    kept[[0, far]] = True
    work = [(0, far), (far, len(border))]
    while work:
        begin, end = work.pop()
        if end - begin < 2:
            continue
        away = _distance(closed[begin + 1 : end], closed[begin], closed[end])
        worst = int(away.argmax())
        if away[worst] > tolerance:
            middle = begin + 1 + worst
            kept[middle] = True
            work += [(begin, middle), (middle, end)]
    return border[kept[:-1]]


def _distance(points: Array, begin: Array, end: Array) -> Array:
    """Distances of points (K, 2) to the line from one point to another."""
    line = end - begin
    length = float(line @ line)
    share = ((points - begin) @ line / length).clip(0, 1)[:, None] if length else 0.0
    return np.hypot(*(points - begin - share * line).T)


def outline(mask: Array, tolerance: float = 0.0) -> Array:
    """Convert a mask to one polygon through the centers of pixels.

    Args:
        mask: (h, w) bool.
        tolerance: Borders are simplified by at most this many pixels; 0 keeps every pixel.

    Returns:
        (K, 2) xy of pixels; empty for an empty mask.
    """
    return join([approximate(border, tolerance) for border in trace(mask)])


def part_polygons(mask: Array, tolerance: float = 0.0) -> list[Array]:
    """Convert a mask to a polygon for each part along the sides of pixels, as COCO has them.

    Bridges without area lead to holes. pycocotools gives back every pixel where ``tolerance`` is 0.

    Args:
        mask: (h, w) bool.
        tolerance: Borders are simplified by at most this many pixels. A part that would vanish is
            not simplified.

    Returns:
        (K, 2) xy for each part.
    """
    from pycocotools import mask as coco
    from scipy import ndimage

    numbers, count = ndimage.label(mask, np.ones((3, 3)))
    out = []
    for part, (rows, columns) in enumerate(ndimage.find_objects(numbers, count), 1):
        borders = trace(numbers[rows, columns] == part, corners=True)
        polygon = join([approximate(border, tolerance) for border in borders])
        size = (rows.stop - rows.start, columns.stop - columns.start)
        drawn = len(polygon) > 2 and coco.area(
            coco.merge(coco.frPyObjects([polygon.astype(float).ravel().tolist()], *size))
        )
        corner = np.array([columns.start, rows.start])
        out.append((polygon if drawn else join(borders)) + corner)
    return out


def to_polygons(mask: Mask, tolerance: float = 0.0) -> list[list[float]]:
    """Convert a mask to COCO's polygons: a list of x, y, x, y, ... for each part.

    Args:
        mask: (H, W) bool, or run lengths.
        tolerance: As in ``part_polygons``.

    Returns:
        In pixels of the mask; empty for a mask without a pixel.
    """
    x0, y0, x1, y1 = map(int, rle.box_of(mask))
    if x1 <= x0:
        return []
    pixels = rle.decode(rle.crop(mask, (x0, y0, x1, y1)))
    corner = np.array([x0, y0])
    return [
        (polygon + corner).astype(float).ravel().tolist()
        for polygon in part_polygons(pixels, tolerance)
    ]

"""A mask with holes and parts as one closed polygon, which is all that YOLO's labels can hold."""

from __future__ import annotations

import numpy as np

from efficientsam3.types import Array

MOST = 10_000
"""Points of borders among which the shortest bridges are looked for."""


def trace(mask: Array) -> list[Array]:
    """Borders of a (h, w) bool mask: outer ones and those of holes.

    Returns:
        For each border the pixels of the mask that lie on it, (K, 2) xy in order, each next to
        the one before, along a side or a corner; clockwise around parts, counter-clockwise
        around holes.
    """
    room = np.pad(np.asarray(mask, bool), 1)
    inside = room[1:-1, 1:-1]
    width = room.shape[1]
    starts, ways, pixels = [], [], []
    # The sides of pixels that have no neighbour there, walked with the mask on the right hand.
    # Way 0 is right, 1 down, 2 left, 3 up; a side begins at a corner of its pixel.
    for turn, (neighbour, corner) in enumerate(
        (
            (room[:-2, 1:-1], (0, 0)),
            (room[1:-1, 2:], (1, 0)),
            (room[2:, 1:-1], (1, 1)),
            (room[1:-1, :-2], (0, 1)),
        )
    ):
        y, x = np.nonzero(inside & ~neighbour)
        starts.append((y + corner[1]) * width + x + corner[0])
        ways.append(np.full(len(y), turn))
        pixels.append(np.stack([x, y], 1))
    start, way, pixel = np.concatenate(starts), np.concatenate(ways), np.concatenate(pixels)
    if not len(start):
        return []
    end = start + np.array([1, width, -1, -width])[way]
    key = start * 4 + way
    order = np.argsort(key)
    ranked = key[order]

    def side(turn: int) -> Array:
        """The side that goes on from each side's end after a turn; -1 where there is none."""
        wanted = end * 4 + (way + turn) % 4
        place = np.searchsorted(ranked, wanted).clip(max=len(ranked) - 1)
        return np.where(ranked[place] == wanted, order[place], -1)

    left, straight, right = side(3), side(0), side(1)
    # Left before all: pixels that touch at a corner belong together.
    following = np.where(left >= 0, left, np.where(straight >= 0, straight, right)).tolist()
    borders, waiting = [], np.ones(len(start), bool)
    for first in range(len(start)):
        if not waiting[first]:
            continue
        loop, at = [first], following[first]
        while at != first:
            loop.append(at)
            at = following[at]
        waiting[loop] = False
        chain = pixel[loop]
        moved = (chain != np.roll(chain, 1, 0)).any(1)
        borders.append(chain[moved] if moved.any() else chain[:1])
    return borders


def join(borders: list[Array]) -> Array:
    """Borders as one closed polygon: from one to the next by the shortest bridge, and back.

    A bridge has no area. Between a part and its hole it lies in the mask; where it is drawn as a
    line, as OpenCV draws polygons, parts are joined by one pixel's width.

    Returns:
        (K, 2) xy; points between others on a straight line are left out.
    """
    if not borders:
        return np.zeros((0, 2), int)
    points = np.concatenate(borders)
    owner = np.repeat(np.arange(len(borders)), [len(b) for b in borders])
    offset = np.cumsum([0, *(len(b) for b in borders)])
    first = max(range(len(borders)), key=lambda i: len(borders[i]))
    bridges = {}
    if len(borders) > 1:
        # Of very long borders some points do: a bridge is then a pixel or two longer.
        some = np.arange(len(points)) % (len(points) // MOST + 1) == 0
        some[offset[:-1]] = True
        kept = np.flatnonzero(some)
        found = _bridges(points[kept], owner[kept], first)
        bridges = {int(kept[i]): [int(kept[j]) for j in ends] for i, ends in found.items()}
    # Each border is walked once round from where it was entered, with what lies behind its bridges.
    out: list[int] = []
    work = [(int(offset[first]), 0)]  # a point and how far its border is walked; -1: the point only
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
    """The shortest bridges that join all borders, away from ``first``: point -> points beyond.

    points: (P, 2) of all borders. owner: (P,) the border of each.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
    from scipy.spatial import Delaunay

    places, which = np.unique(points, axis=0, return_inverse=True)
    which = which.reshape(-1)
    order = np.argsort(which, kind="stable")
    # Borders that share a pixel; then the neighbours, among which the shortest bridges are. Far
    # corners keep pixels on one line from being no triangles.
    shared = which[order[1:]] == which[order[:-1]]
    pairs = [np.stack([order[:-1], order[1:]], 1)[shared]]
    some = np.zeros(len(places), int)
    some[which] = np.arange(len(points))
    far = 4 * (int(places.max()) + 2)
    corners = np.array([[-far, -far], [-far, 2 * far], [2 * far, -far], [2 * far, 2 * far]])
    # Pixels lie on many lines and circles at once, which costs Qhull ten times the time.
    shaken = places + np.random.default_rng(0).uniform(-0.05, 0.05, places.shape)
    triangles = Delaunay(np.concatenate([shaken, corners])).simplices
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    pairs.append(some[edges[(edges < len(places)).all(1)]])
    a, b = np.concatenate(pairs).T
    a, b = a[owner[a] != owner[b]], b[owner[a] != owner[b]]
    length = 1 + np.hypot(*(points[a] - points[b]).T)  # to a sparse graph, 0 is no bridge
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
    """A closed polygon without repeats and without points on a straight way."""
    if len(polygon) > 1:
        moved = (polygon != np.roll(polygon, 1, 0)).any(1)
        polygon = polygon[moved] if moved.any() else polygon[:1]
    if len(polygon) < 3:
        return polygon
    before, after = polygon - np.roll(polygon, 1, 0), np.roll(polygon, -1, 0) - polygon
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    onward = (before * after).sum(1) > 0
    return polygon[(cross != 0) | ~onward]


def outline(mask: Array) -> Array:
    """The one polygon of a (h, w) bool mask: (K, 2) xy of pixels; empty without a pixel."""
    return join(trace(mask))

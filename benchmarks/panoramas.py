"""Panoramas of stickers with known truth: found whole, in tiles, and by Supervision's slicer.

    python benchmarks/panoramas.py --table docs/tables/panoramas.md
    python benchmarks/panoramas.py --flat 20000

A panorama is a square of scenes of 336 px, the tile's side. Tiles overlap, so that their borders
cross the scenes everywhere. An object is found where a mask of its name has an IoU of 0.5 with it,
and cut in two where two masks of its name lie in it and each covers a tenth of it. Seconds are of
processor time, which other processes of the machine do not change much.

--flat segments a file of so many pixels a side in windows, and prints the peak of memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import put_table, say

import efficientsam3 as es3

SCENE = 336
START, END = "<!-- table:panoramas -->", "<!-- /table:panoramas -->"


class Thing(NamedTuple):
    """A true object: its name, its mask within a scene, and the scene's corner (y, x)."""

    name: str
    mask: np.ndarray
    corner: tuple[int, int]


class Counts:
    """What one way found in all panoramas."""

    def __init__(self) -> None:
        self.true = self.found = self.cut = self.masks = self.right = 0
        self.seconds = 0.0

    def add(self, things: list[Thing], labels: list[str], masks: list[np.ndarray]) -> None:
        self.true += len(things)
        self.masks += len(masks)
        areas = [mask.sum() for mask in masks]
        right = set()
        for thing in things:
            y, x = thing.corner
            shared, pieces = 0.0, 0
            for i, (label, mask) in enumerate(zip(labels, masks, strict=True)):
                if label != thing.name:
                    continue
                both = (mask[y : y + SCENE, x : x + SCENE] & thing.mask).sum()
                iou = both / max(1, areas[i] + thing.mask.sum() - both)
                if iou >= 0.5:
                    right.add(i)
                shared = max(shared, iou)
                pieces += both >= 0.5 * areas[i] and both >= 0.1 * thing.mask.sum()
            self.found += int(shared >= 0.5)
            self.cut += int(pieces > 1)
        self.right += len(right)


def make_panorama(generator: Any, seed: int, side: int) -> tuple[np.ndarray, list[Thing]]:
    image = np.zeros((side * SCENE, side * SCENE, 3), np.uint8)
    things = []
    for place in range(side * side):
        y, x = (SCENE * part for part in divmod(place, side))
        scene = generator.scene(seed * side * side + place)
        image[y : y + SCENE, x : x + SCENE] = scene.image
        things += [Thing(o.concept.name, o.mask, (y, x)) for o in scene.objects]
    return image, things


def compare(options: argparse.Namespace) -> str:
    from efficientsam3_stickers.art import StickerArt
    from efficientsam3_stickers.concepts import SPLITS
    from efficientsam3_stickers.scenes import SceneGenerator
    from supervision_adapters import ConceptDetector

    model = es3.load(options.model, device="cpu", dtype="float32")
    generator = SceneGenerator(
        StickerArt.open(), SPLITS["seen"], SCENE, options.concepts, tiles=options.objects
    )
    names, threshold = options.concepts, options.threshold
    slicer = ConceptDetector(model, names, threshold=threshold).slicer(SCENE, SCENE // 8)

    def ask(image: np.ndarray, tile: Any) -> tuple[list[str], list[np.ndarray]]:
        found = model.segment(image, names, threshold=threshold, tile=tile)
        return found.labels, list(found.masks)

    def slice_it(image: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
        found = slicer(image)
        masks = [] if found.mask is None else list(np.asarray(found.mask))
        return [names[i] for i in found.class_id], masks

    ways: dict[str, Callable[[np.ndarray], tuple[list[str], list[np.ndarray]]]] = {
        "the whole picture": lambda image: ask(image, None),
        f"`tile={SCENE}`": lambda image: ask(image, SCENE),
        "`sv.InferenceSlicer`": slice_it,
    }
    counts = {name: Counts() for name in ways}
    for seed in range(options.panoramas):
        image, things = make_panorama(generator, seed, options.side)
        for name, way in ways.items():
            began = time.process_time()
            labels, masks = way(image)
            counts[name].seconds += time.process_time() - began
            counts[name].add(things, labels, masks)
            say(f"panorama {seed}: {name}: {vars(counts[name])}")
    megapixels = options.panoramas * (options.side * SCENE) ** 2 / 1e6
    rows = ["| | found | of all masks right | cut in two | seconds a megapixel |"]
    rows += ["|---|---|---|---|---|"]
    for name, c in counts.items():
        rows.append(
            f"| {name} | {c.found} of {c.true} | {c.right} of {c.masks} | {c.cut} | "
            f"{c.seconds / megapixels:.1f} |"
        )
    return "\n".join(rows)


def measure_memory(options: argparse.Namespace) -> None:
    """Segment a TIFF of tiles with random squares, written tile by tile."""
    import tifffile

    block = 2000  # a multiple of 16, as tiles of TIFF are
    side = options.flat // block * block
    model = es3.load(options.model, device="cpu", dtype="float32")
    rng = np.random.default_rng(0)

    def tiles() -> Iterator[np.ndarray]:
        for _ in range((side // block) ** 2):
            colors = rng.integers(0, 255, (40, 40, 3), np.uint8)
            yield colors.repeat(block // 40, 0).repeat(block // 40, 1)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.tif"
        tifffile.imwrite(path, tiles(), shape=(side, side, 3), dtype=np.uint8, tile=(block, block))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = time.process_time()
        found = model.segment(path, options.concepts[:1], tile=(options.tile, 0))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    say(
        f"{side} x {side} px, {len(found)} instances: peak {peak:,.0f} MiB, "
        f"{before:,.0f} MiB before; {time.process_time() - began:.0f} s of processor time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--panoramas", type=int, default=2)
    parser.add_argument("--side", type=int, default=3, help="scenes along each side")
    parser.add_argument("--objects", type=int, default=2, help="objects along a side of a scene")
    parser.add_argument("--concepts", nargs="+", default=["strawberry", "pig face", "tiger"])
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--table", type=Path, help="a Markdown file to put the table into")
    parser.add_argument("--flat", type=int, help="pixels a side of a file that is read in windows")
    parser.add_argument("--tile", type=int, default=2000, help="with --flat: the side of tiles")
    options = parser.parse_args()
    if options.flat:
        measure_memory(options)
        return
    table = compare(options)
    say(table)
    if options.table:
        put_table(table, options.table, START, END)


if __name__ == "__main__":
    main()

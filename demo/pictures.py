"""Makes the pictures of the README: what the demo and the examples draw, small enough to commit.

    make demo && python demo/pictures.py

The example with YOLO is not among them: its weights come from Ultralytics' site.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "demo" / "scenes" / "images"
FOUND = ("scene_0000001", "scene_0000007")
"""Chosen by eye; the demo leaves all twelve in out/demo/answers."""
CURATED = ("animal", "plant", "food", "vehicle")
WIDTH = 960


def main() -> None:
    answers = [ROOT / "out" / "demo" / "answers" / f"{name}.jpg" for name in FOUND]
    if not all(path.is_file() for path in answers):
        sys.exit("the demo has left no pictures: make demo")
    save([Image.open(path) for path in answers], 1, "answers")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run("supervision_image", "--out", str(out / "image.jpg"))
        run("supervision_video", "--out", str(out / "film.mp4"))
        run("text_to_yolo_dataset", "--out", str(out / "dataset"))
        run("fiftyone_curation", str(SCENES), ", ".join(CURATED), cwd=out)
        curated = sorted((out / "out" / "fiftyone_curation" / "pictures").glob("*.jpg"))[:4]
        save([Image.open(out / "image.jpg"), *frames(out / "film.mp4", 2)], 3, "supervision")
        save([Image.open(out / "dataset" / "sheet.jpg")], 1, "dataset")
        save([Image.open(path) for path in curated], 4, "fiftyone")


def run(example: str, *arguments: str, cwd: Path = ROOT) -> None:
    script = ROOT / "examples" / f"{example}.py"
    subprocess.run([sys.executable, str(script), *arguments], check=True, cwd=cwd)


def frames(film: Path, count: int) -> list[Image.Image]:
    """Some frames of a film, the last among them."""
    import supervision as sv

    every = list(sv.get_video_frames_generator(str(film)))
    chosen = np.linspace(len(every) // 2, len(every) - 1, count).astype(int)
    return [Image.fromarray(every[i][..., ::-1]) for i in chosen]


def save(pictures: Sequence[Image.Image], columns: int, name: str) -> None:
    """Side by side, as wide together as the page."""
    wide = WIDTH // columns
    small = [p.convert("RGB").resize((wide, round(p.height * wide / p.width))) for p in pictures]
    rows = [small[i : i + columns] for i in range(0, len(small), columns)]
    heights = [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (WIDTH, sum(heights)), "white")
    for y, row in zip(np.cumsum([0, *heights]).tolist(), rows, strict=False):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * wide, y))
    path = ROOT / "docs" / f"{name}.jpg"
    sheet.save(path, quality=85)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
